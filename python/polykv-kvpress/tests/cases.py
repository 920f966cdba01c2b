"""The plans, models and prompts of the tests, and the folders in which the tiny models lie.

Every case is a plan of a tiny model with a prompt of seeded tokens 3 to 96: these are single characters in the models'
tokenizers, so that a prompt can be given as text too.
"""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from polykv_kvpress import PlanPress
from transformers import AutoModelForCausalLM, PreTrainedModel

FIXTURES = Path(os.environ.get("POLYKV_FIXTURES", Path(__file__).parents[3] / "tests" / "fixtures"))

FIRST_TOKEN, LAST_TOKEN = 3, 96
FIRST_CHARACTER = "!"

WIDE = ("tiny-llama31", "tiny-qwen3")
OTHERS = "tiny-gemma2 tiny-gemma3 tiny-phi3 tiny-qwen2 tiny-qwen3-moe tiny-smollm3".split()
TOKENS = {"tiny-llama31": 150, "tiny-llama-tied": 140} | dict.fromkeys(["tiny-qwen3", *OTHERS], 100)

# Name, models, budget, further fields, and for each range of layers its rule.
PLANS: list[tuple[str, tuple[str, ...], str, str, list[str]]] = [
    ("a policy per layer by shares", WIDE, "{ratio: 0.3}", "", [
        "0, policy: h2o, share: 1", "1, policy: snapkv, share: 2, params: {window: 8}", "2, policy: tova, share: 1.5"]),
    ("scores from keys and queries", WIDE, "{tokens: 37}", "", [
        "0, policy: knorm, share: 0.5", "1, policy: keydiff, share: 2.5", "2, policy: expected-attention"]),
    ("other parameters", WIDE, "{ratio: 0.41}", "", [
        "0, policy: expected-attention, params: {future: 7, sinks: 2, epsilon: 0}",
        "1, policy: tova, params: {protect_last: 3}",
        "2, policy: snapkv, params: {window: 5, kernel: 5, pool: avg}"]),
    ("tokens per rule", WIDE, "{total: 94}", "", [
        "0, policy: streaming-llm, tokens: 20", "1, policy: random, tokens: 33, params: {seed: 9}",
        "2, policy: cake, tokens: 41, params: {window: 8}"]),
    ("an average of tokens per rule", WIDE, "{tokens: 30}", "", [
        "0-1, policy: cake, tokens: 34, params: {window: 4, kernel: 3, gamma: 5}", "2, policy: pyramidkv, tokens: 22"]),
    ("pyramid", WIDE, "{ratio: 0.25}", "online: pyramid", ["0-2, policy: pyramidkv"]),
    ("pyramid of others", WIDE, "{tokens: 61}", "online: pyramid", [
        "0, policy: snapkv, params: {window: 12, kernel: 1}", "1-2, policy: streaming-llm, params: {sinks: 0}"]),
    ("criticalkv", WIDE, "{total: 100}", "", [
        "0, policy: criticalkv, params: {base: {policy: snapkv, window: 8}}",
        "1, policy: criticalkv, params: {base: h2o, first: 0.3}",
        "2, policy: criticalkv, params: {base: expected-attention, epsilon: 1e-3}"]),
    ("blends", WIDE, "{ratio: 0.35}", "", [
        "0, policy: blend, params: {policies: [{policy: keydiff, share: 1}, {policy: tova, share: 1}, "
        "{policy: h2o, share: 1}]}",
        "1, policy: blend, params: {policies: 'pyramidkv:3,h2o:1'}",
        "2, policy: blend, params: {policies: [streaming-llm, {policy: criticalkv, share: 2, base: tova}]}"]),
    ("counts and ranks", WIDE, "{tokens: 40}", "", [
        "0, policy: h2o, params: {normalize: true, recent_fraction: 0}", "1, policy: scissorhands, params: {history: 60}",
        "2, policy: lagkv, params: {lag: 8}"]),
    ("defaults", WIDE, "{ratio: 0.5}", "", [
        "0, policy: cake", "1, policy: lagkv", "2, policy: scissorhands"]),
    ("a full layer in the budget", WIDE, "{ratio: 0.6}", "", [
        "0, policy: snapkv, share: 3", "1, policy: full", "2, policy: blend"]),
    ("a full layer on top", WIDE, "{tokens: 33}", "allow_full_extra: true", [
        "0, policy: full", "1, policy: criticalkv, share: 1.7, params: {base: tova}", "2, policy: random"]),
    ("bytes", WIDE, "{bytes: 50000}", "", ["0-1, policy: h2o, share: 0.3", "2, policy: streaming-llm, share: 0.7"]),
    ("more than the prompt", WIDE, "{tokens: 90}", "", ["0, policy: tova, share: 20", "1-2, policy: knorm, share: 3"]),
    ("nothing is evicted", WIDE, "{ratio: 1}", "", ["0-2, policy: snapkv"]),
    ("three query heads per KV head", ("tiny-llama-tied",), "{ratio: 0.22}", "", [
        "0, policy: snapkv, share: 1.2, params: {window: 16}", "1, policy: h2o"]),
    ("three heads, by norms", ("tiny-llama-tied",), "{total: 71}", "", [
        "0, policy: criticalkv, params: {base: {policy: cake, window: 6}}", "1, policy: expected-attention, share: 0.9"]),
    ("three heads, a blend", ("tiny-llama-tied",), "{ratio: 0.3}", "online: pyramid", [
        "0, policy: blend, params: {policies: 'tova:3,scissorhands:4'}", "1, policy: tova"]),
    ("soft-caps", ("tiny-gemma2",), "{ratio: 0.6}", "", [
        "0, policy: full", "1, policy: snapkv, params: {window: 8}", "2, policy: full"]),
    ("soft-caps in all attention", ("tiny-gemma2",), "{tokens: 21}", "", [
        "0, policy: full", "1, policy: h2o", "2, policy: full"]),
    ("the global layer", ("tiny-gemma3",), "{ratio: 0.7}", "", [
        "0-4, policy: full", "5, policy: h2o", "6, policy: full"]),
    ("the global layer, expected", ("tiny-gemma3",), "{ratio: 0.24}", "allow_full_extra: true", [
        "0-4, policy: full", "5, policy: expected-attention, params: {future: 40}", "6, policy: full"]),
    ("rotated in part", ("tiny-phi3",), "{ratio: 0.25}", "", [
        "0, policy: expected-attention", 
        "1, policy: blend, params: {policies: [{policy: cake, window: 6}, h2o]}"]),
    ("rotated in part, windows", ("tiny-phi3",), "{tokens: 45}", "", ["0, policy: snapkv", "1, policy: criticalkv"]),
    ("a layer without a window", ("tiny-qwen2",), "{tokens: 26}", "", [
        "0, policy: tova", "1-2, policy: full"]),
    ("experts", ("tiny-qwen3-moe",), "{ratio: 0.3}", "", [
        "0, policy: h2o", "1, policy: snapkv, params: {window: 8}", "2, policy: expected-attention"]),
    ("a layer without rotation", ("tiny-smollm3",), "{ratio: 0.3}", "", [
        "0, policy: h2o", "1, policy: keydiff", "2, policy: tova", "3, policy: snapkv, params: {window: 8}",
        "4, policy: cake, params: {window: 8}"]),
]  # fmt: skip

# The first prompt in which no choice is a near tie, where that is not prompt 0; `fixture.py` says when one is.
ATTEMPTS = {"tiny-qwen3: scores from keys and queries": 1}

LAYERS = {"tiny-llama-tied": 2, "tiny-phi3": 2, "tiny-gemma3": 7, "tiny-smollm3": 5}


@dataclass(frozen=True)
class Case:
    """A plan (YAML) for a tiny model, and the tokens of a prompt."""

    name: str
    model: str
    plan: str
    prompt: list[int]

    def __str__(self) -> str:
        return f"{self.model}: {self.name}"


def cases() -> list[Case]:
    """Every case, in a fixed order; each has a prompt of its own."""
    return [
        Case(name, model, plan_text(LAYERS.get(model, 3), budget, fields, rules), prompt(model, f"{model}: {name}"))
        for name, models, budget, fields, rules in PLANS
        for model in models
    ]


def plan_text(layers: int, budget: str, fields: str, rules: list[str]) -> str:
    """A plan file with these prefill rules."""
    lines = ["schema: 1", f"layers: {layers}", f"budget: {budget}", *filter(None, [fields]), "prefill:"]
    return "\n".join([*lines, *(f"  - {{layers: {rule}}}" for rule in rules), ""])


def prompt(model: str, seed: str) -> list[int]:
    """Tokens that the seed decides, the same in every version of Python."""
    generator = random.Random(f"{seed} {ATTEMPTS.get(seed, 0)}")
    return [FIRST_TOKEN + int(generator.random() * (LAST_TOKEN - FIRST_TOKEN + 1)) for _ in range(TOKENS[model])]


def text_of(tokens: list[int]) -> str:
    """The text whose tokens these are, see `write_model`."""
    return "".join(chr(ord(FIRST_CHARACTER) + token - FIRST_TOKEN) for token in tokens)


def load(model: str, attention: str = "eager") -> PreTrainedModel:
    """A tiny model in float32 on the CPU."""
    folder = FIXTURES / model
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


@torch.no_grad()
def run(press: PlanPress, model: PreTrainedModel, tokens: list[int]) -> list[list[list[int]] | None]:
    """Runs a prompt and returns the kept positions, `[layer][head][entry]` with `None` for layers that keep everything."""
    with press(model):
        model(torch.tensor([tokens]), use_cache=True)
    return [None if kept is None else kept[0].tolist() for kept in press.kept()]


def write_model(model: str, folder: Path) -> Path:
    """A folder with the model's files and a tokenizer of single characters."""
    target = folder / model
    target.mkdir()
    for file in (FIXTURES / model).iterdir():
        if not file.name.startswith("tokenizer"):
            (target / file.name).symlink_to(file)
    size = json.loads((target / "config.json").read_text())["vocab_size"]
    tokenizer = json.loads((FIXTURES / "tiny-llama31" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"] |= {"merges": [], "vocab": {text: token for text, token in vocabulary.items() if token < size}}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    (target / "tokenizer_config.json").write_text((FIXTURES / "tiny-llama31" / "tokenizer_config.json").read_text())
    return target
