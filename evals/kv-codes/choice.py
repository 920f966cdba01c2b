#!/usr/bin/env python3
"""How keys and values are best coded in 8 and 4 bits when every entry, one token's vector in one KV head, stands for itself.

Prompts run in full precision. Then 64 more tokens of the text run once for each scheme, while attention sees the entries as the
scheme would decode them, and the distributions after them are compared with those under exact entries. PolyKV takes no part, see
run.py. For models with plain attention and a head size that is a power of two, at least 32. Writes choice-NAME.md beside this file.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import torch
import transformers

PROMPT, SCORED, RUN = 1408, 64, 32


def least_and_step(vectors, bits):
    """Runs of 32 numbers with a step between codes, whose rounding to 11 bits is left out, and a code of 0 of 12 bits with its sign."""
    runs = vectors.unflatten(-1, (-1, RUN))
    least, largest = runs.amin(-1, keepdim=True), runs.amax(-1, keepdim=True)
    most = 2**bits - 1
    step = ((largest - least) / most).maximum(least.abs().maximum(largest.abs()) / 2047).clamp_min(1e-30)
    zero = (-least / step).round()
    codes = ((runs / step).round() + zero).clamp(0, most)
    return (step * (codes - zero)).flatten(-2)


def symmetric(vectors, bits):
    """Runs with a step in f16 such that the number farthest from 0 has the first code, as Q4_0 of GGUF."""
    runs = vectors.unflatten(-1, (-1, RUN))
    farthest = runs.gather(-1, runs.abs().argmax(-1, keepdim=True))
    half = 2 ** (bits - 1)
    step = (-farthest / half).half().float()
    codes = (runs / step.where(step != 0, 1)).round().clamp(-half, half - 1)
    return (step * codes).flatten(-2)


def rotated(vectors, bits):
    """A vector is multiplied by a Hadamard matrix of its own size first."""
    rotation = torch.ones(1, 1)
    while len(rotation) < vectors.shape[-1]:
        rotation = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), rotation) / 2**0.5
    return least_and_step(vectors @ rotation, bits) @ rotation.T


def by_channel(vectors, bits):
    """One channel of 32 tokens is a run (KIVI, arXiv 2402.02750): a token's vector can't be taken out, moved or overwritten alone."""
    return least_and_step(vectors.mT, bits).mT


def relative(scale_of):
    """Each channel less its mean and divided by what `scale_of` makes of its standard deviation, both taken from the prompt's tokens."""
    def coded(vectors, bits):
        prompt = vectors[:, :, :PROMPT]
        mean = prompt.mean(2, keepdim=True)
        scale = scale_of(prompt.std(2, correction=0, keepdim=True))
        scale = scale.maximum(scale.mean(-1, keepdim=True) / 100)
        return least_and_step((vectors - mean) / scale, bits) * scale + mean
    return coded


@dataclasses.dataclass
class Scheme:
    """How keys and values are coded, but for the first and the latest entries of a query (None: all that came after the prompt)."""
    name: str
    bits: int
    keys: Callable | None = None
    values: Callable | None = None
    first: int = 0
    latest: int | None = None


chosen = relative(torch.sqrt)
SCHEMES = [
    Scheme("keys, 4 bits: as they are, symmetric", 4, keys=symmetric),
    Scheme("keys, 4 bits: as they are, least and step", 4, keys=least_and_step),
    Scheme("keys, 4 bits: Hadamard rotation first", 4, keys=rotated),
    Scheme("keys, 4 bits: less the mean of the channel", 4, keys=relative(torch.ones_like)),
    Scheme("keys, 4 bits: less the mean, by the deviation", 4, keys=relative(torch.clone)),
    Scheme("**keys, 4 bits: less the mean, by the root of the deviation**", 4, keys=chosen),
    Scheme("the same, the first entry in floats", 4, keys=chosen, first=1),
    Scheme("keys, 4 bits: by channel in groups of 32 tokens (KIVI)", 4, keys=by_channel),
    Scheme("**values, 4 bits: as they are, least and step**", 4, values=least_and_step),
    Scheme("keys, 8 bits: as they are, symmetric", 8, keys=symmetric),
    Scheme("**keys, 8 bits: less the mean, by the root of the deviation**", 8, keys=chosen),
    Scheme("both, 4 bits, as chosen: no entry in floats", 4, chosen, least_and_step, latest=0),
    Scheme("both, 4 bits, as chosen: the first in floats", 4, chosen, least_and_step, first=1, latest=0),
    Scheme("**both, 4 bits, as chosen: the first and the latest 8 in floats**", 4, chosen, least_and_step, first=1, latest=8),
    Scheme("both, 4 bits, as chosen: the first and the latest 32 in floats", 4, chosen, least_and_step, first=1, latest=32),
    Scheme("**both, 8 bits, as chosen: no entry in floats**", 8, chosen, least_and_step, latest=0),
]


class Attention:
    """Attention of all layers, over exact entries while `scheme` is None."""
    scheme = None

    def __call__(self, module, queries, keys, values, mask, scaling=None, sliding_window=None, **_):
        group, count = queries.shape[1] // keys.shape[1], keys.shape[2]
        entry = torch.arange(count)
        query = entry[-queries.shape[2]:, None]
        seen = (entry <= query) & (query - entry < (sliding_window or count))
        per_query_head = lambda vectors: vectors.repeat_interleave(group, 1)
        scheme = self.scheme
        if scheme is None:
            exact = map(per_query_head, (keys, values))
            output = torch.nn.functional.scaled_dot_product_attention(queries, *exact, attn_mask=seen, scale=scaling)
        else:
            floats = entry >= PROMPT if scheme.latest is None else query - entry < scheme.latest
            floats = floats | (entry < scheme.first)
            coded_keys = scheme.keys(keys, scheme.bits) if scheme.keys else keys
            coded_values = scheme.values(values, scheme.bits) if scheme.values else values
            logits = torch.where(floats, queries @ per_query_head(keys).mT, queries @ per_query_head(coded_keys).mT)
            weights = (logits * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
            output = (weights * floats) @ per_query_head(values) + (weights * ~floats) @ per_query_head(coded_values)
        return output.transpose(1, 2).contiguous(), None


def windows(tokenizer, paths, count):
    """Tokens `[count, PROMPT + SCORED + 1]` from places spread evenly over the texts, each after the model's begin token if it has one."""
    files = [file for path in paths for file in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
    begin = tokenizer("")["input_ids"]
    size = PROMPT + SCORED + 1 - len(begin)
    found = []
    for file in files:
        tokens = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
        found += [begin + tokens[start:start + size] for start in range(0, len(tokens) - size + 1, size)]
    if len(found) < count:
        raise SystemExit(f"{len(found)} windows of {size} tokens in {len(files)} texts, {count} are asked for")
    return torch.tensor([found[number * len(found) // count] for number in range(count)])


def mean(values):
    """In thousandths, with the standard error."""
    return f"{1000 * values.mean():.3f} ({1000 * values.std() / values.numel() ** 0.5:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path, help="the model's GGUF file")
    parser.add_argument("--texts", type=pathlib.Path, nargs="+", required=True, help="files, or folders of .txt files")
    parser.add_argument("--name", required=True, help="the model's name in the results")
    parser.add_argument("--windows", type=int, default=4)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    transformers.AttentionInterface.register("coded", attention := Attention())
    source = {"pretrained_model_name_or_path": str(args.file.parent), "gguf_file": args.file.name}
    ids = windows(transformers.AutoTokenizer.from_pretrained(**source), args.texts, args.windows)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, attn_implementation="coded").eval()
    cache = transformers.DynamicCache()
    model(ids[:, :PROMPT], cache=cache, use_cache=True, logits_to_keep=1)

    def run(scheme):
        """Logarithms of probabilities `[windows, SCORED, vocabulary]`, and the NLL of the text."""
        attention.scheme = scheme
        found = model(ids[:, PROMPT:-1], cache=cache, use_cache=True).logits.log_softmax(-1)
        cache.crop(-SCORED)
        return found, -found.gather(-1, ids[:, PROMPT + 1:, None])[..., 0]

    full, full_nll = run(None)
    lines = [f"# {args.name}: the choice of codes", "",
             f"Made by `choice.py`; PyTorch {torch.__version__}, transformers {transformers.__version__}, weights of `{args.file.name}` in "
             f"f32; {args.windows} windows of {PROMPT} tokens and {SCORED} after them, NLL {full_nll.mean():.3f} nat under exact entries. "
             "KL and change of NLL are per token, against exact entries, with standard errors as if tokens were independent. Bits count "
             "steps and zeros, not entries in floats and statistics of channels. Keys or values alone: the prompt's entries are coded; "
             "both: those of the tokens after it, too.",
             "", "| scheme | bits per number | mean KL, 10⁻³ nat | change of NLL, 10⁻³ nat |", "|---|--:|--:|--:|"]
    for scheme in SCHEMES:
        found, nll = run(scheme)
        kl = (full.exp() * (full - found)).sum(-1)
        bits = scheme.bits + (16 if scheme.keys is symmetric else 32) / RUN
        lines.append(f"| {scheme.name} | {bits:g} | {mean(kl)} | {mean(nll - full_nll)} |")
        print(lines[-1], flush=True)
    pathlib.Path(__file__).with_name(f"choice-{args.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
