#!/usr/bin/env python3
"""What entries in codes of 8 and 4 bits cost, and what they buy: the same entries in fewer bits, and more entries for the same
bytes.

FullKV and several policies are measured with entries in f16, q8 and q4 on windows of text (perplexity of a continuation), on
decoded tokens (divergence from FullKV) and on needles. Budgets are in bytes of keys and values, everything counted, so that at
each size the coarse formats keep more entries. The text is the test text of ../smollm2/texts.py. Finished steps are skipped when
it runs again with the same --work. Writes results-MODEL.md beside this file.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "smollm2"))
from intervals import interval
from steps import run_once

HERE = pathlib.Path(__file__).parent
PLANS = HERE.parent.parent / "plans"
FORMATS = ["f16", "q8", "q4"]
RATIOS = [0.25, 0.125, 0.0625, 0.03125]
TASKS = {
    "text": (["--task", "ppl", "--continuation", 256], "nll", True, "text: loss, nat"),
    "decode": (["--task", "fidelity", "--generated", "--continuation", 64], "kl", True, "64 decoded tokens: KL, nat"),
    "needle": (["--task", "needle", "--depth", "0.05,0.2,0.35,0.5,0.65,0.8,0.95", "--likelihood-only"], "nll", False, "needles: loss, nat"),
}


def shape(args):
    """Layers and the bytes of an f16 entry of one layer."""
    def full(tokens):
        command = [args.binary, "plan", "memory", "-m", args.file, "--dtype", "f16", "-p", str(tokens), "-n", "0", "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["full"]
    one, two = full(1000), full(2000)
    layers = len(one["kept"])
    # A layer has a free slot for each 32 entries.
    return layers, round((two["steady_bytes"] - one["steady_bytes"]) / layers / 1000 * 32 / 33)


def plan(folder, name, layers, budget, codes, rules):
    kv = [] if codes == "f16" else [{"layers": f"0-{layers - 1}", "codes": codes}]
    path = folder / f"{name}.yaml"
    both = {"prefill": rules, "decode": rules} if rules else {}
    path.write_text(json.dumps({"schema": 1, "name": name, "layers": layers, "budget": budget, **both, "kv": kv}, indent=1) + "\n")
    return path


def calibrated(args, ratio):
    """The rules of the plan that comes with PolyKV for this ratio, if there is one: of its prefill, which was calibrated."""
    path = PLANS / f"{args.name}-{100 * ratio:g}.yaml"
    if not path.exists():
        return None
    shown = subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(shown)["prefill"]


def measure(args, task, plans):
    options, score, text, _ = TASKS[task]
    out = args.work / f"{args.name}-{task}"
    more = ["--text", args.texts / "test.txt", "--limit", args.windows] if text else ["--limit", args.needles]
    command = [args.binary, "eval", "-m", args.file, "--dtype", "native", *options, *more, "--length", args.length, "--seed", 9100,
               *(part for one in plans for part in ("--plan", one)), "--out", out]
    run_once(command, out, [*plans, args.texts / "test.txt"])
    found = {}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        one = json.loads(line)
        for name in (score, "kept", "kv_bytes"):
            if name in one["scores"]:
                found.setdefault(one["plan"], {}).setdefault(name, []).append(one["scores"][name])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made")
    parser.add_argument("--file", required=True, help="the model's file")
    parser.add_argument("--name", required=True, help="the model's name in plans/ and in the results")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--policies", default="snapkv,tova,h2o")
    parser.add_argument("--length", type=int, default=1500)
    parser.add_argument("--windows", type=int, default=16, help="of text")
    parser.add_argument("--needles", type=int, default=3, help="per depth, of which there are 7")
    args = parser.parse_args()
    folder = args.work / f"{args.name}-plans"
    folder.mkdir(parents=True, exist_ok=True)
    layers, entry = shape(args)
    everywhere = f"0-{layers - 1}"
    plans = [plan(folder, f"full-{codes}", layers, {"ratio": 1.0}, codes, []) for codes in FORMATS[1:]]
    for ratio in RATIOS:
        budget = {"bytes": round(ratio * args.length * entry * layers)}
        rules = {policy: [{"layers": everywhere, "policy": policy}] for policy in args.policies.split(",")}
        rules["calibrated"] = calibrated(args, ratio)
        for name, own in rules.items():
            plans += [plan(folder, f"{name}-{ratio:g}-{codes}", layers, budget, codes, own) for codes in FORMATS if own]
    scores = {task: measure(args, task, plans) for task in TASKS}
    titles = [title for _, _, _, title in TASKS.values()]
    version = subprocess.run([args.binary, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    lines = [f"# {args.name}: entries in codes", "",
             f"{version}, CPU; {args.length} tokens, {args.windows} windows, {7 * args.needles} needles; weights as the file has them; "
             f"f16 entries of {entry} bytes in each of {layers} layers. Losses are against FullKV in f16; 95 % intervals by a bootstrap over samples.",
             "", "| bytes | plan | entries | entries per layer | " + " | ".join(titles) + " |", "|--:|---|---|--:|" + "--:|" * len(titles)]
    for path in plans:
        name = path.stem
        cells = []
        for task, (_, score, _, _) in TASKS.items():
            own, full = scores[task][name][score], scores[task]["full"][score]
            cells.append(interval([a - b for a, b in zip(own, full, strict=True)] if score == "nll" else own, 4))
        kept = statistics.fmean(scores["text"][name]["kept"])
        what, codes = name.rsplit("-", 1)
        policy, _, ratio = what.rpartition("-")
        share = f"{100 * float(ratio):g} %" if re.fullmatch(r"[0-9.]+", ratio) else "all entries"
        lines.append(f"| {share} | {policy or what} | {codes} | {kept:.0f} | " + " | ".join(cells) + " |")
    (HERE / f"results-{args.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
