#!/usr/bin/env python3
"""How far the layers of Gemma 3 270M can be cut: plans that `polykv calibrate` finds, single policies at the same total, and
cuts of the three global layers alone, whose five neighbours have a window of 512.

Calibrates on texts and made-up questions, then measures all plans on windows of another text and on needles of other wording.
Writes the plans before the test text is read. The texts are those of ../smollm2/texts.py. Finished steps are skipped when it
runs again with the same --work. Writes results.md beside this file.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "smollm2"))
from intervals import interval
from steps import run_once

HERE = pathlib.Path(__file__).parent
MODEL, LAYERS, GLOBAL, WINDOW = "gemma3-270m", 18, [5, 11, 17], 512
SINGLES = ["streaming-llm", "snapkv", "pyramidkv", "cake", "tova", "h2o", "keydiff", "expected-attention", "knorm", "random"]
CANDIDATES = "h2o,tova,snapkv,pyramidkv,cake,keydiff,streaming-llm,expected-attention"
LENGTH, CONTINUATION = 2000, 256
ENTRIES = [1024, 512, 256, 128, 64, 32]


def write(folder, name, rules, budget, **more):
    path = folder / f"{name}.yaml"
    plan = {"schema": 1, "name": name, "layers": LAYERS, "budget": budget, "prefill": rules, **more}
    path.write_text(json.dumps(plan, indent=1) + "\n")
    return path


def global_cut(folder, policy, entries):
    """The global layers keep `entries` each, the others what their windows hold."""
    rules = [{"layers": layer, "policy": policy, "tokens": entries} if layer in GLOBAL else {"layers": layer, "policy": "full"}
             for layer in range(LAYERS)]
    return write(folder, f"global-{policy}-{entries}", rules, {"total": entries * len(GLOBAL)}, allow_full_extra=True)


def calibrate(args, ratio):
    out = args.work / f"calibration-{ratio:g}"
    texts = sorted((args.texts / "calibration").glob("*.txt"))
    command = [args.binary, "calibrate", "-m", MODEL, "--dtype", "native", "--data", *texts, "--objective", "both", "--phase", "prefill",
               "--budget-ratio", ratio, "--policies", args.candidates, "--examples", args.examples, "--evidence", args.examples,
               "--length", LENGTH, "--seed", 11, "--allocator", "calibrated", "--budget-signal", "effect", "--refine", args.refine,
               "--out", out]
    run_once(command, out, texts)
    return named(args, out / "plan.yaml", args.work / "plans" / f"calibrated-{ratio:g}.yaml")


def shown(args, path):
    return json.loads(subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)


def named(args, source, path):
    """A plan under the name of its new file."""
    plan = shown(args, source)
    del plan["hash"]
    path.write_text(json.dumps({**plan, "name": path.stem}, indent=1) + "\n")
    return path


def shuffled(args, source, seed):
    path = source.with_name(f"{source.stem}-shuffled-{seed}.yaml")
    out = args.work / path.stem
    plan = args.work / path.name
    run_once([args.binary, "plan", "shuffle", source, "--seed", seed, "--out", plan], out, [source])
    return named(args, plan, path)


def evaluate(args, name, task, plans):
    """Scores of every plan over the samples."""
    options = {
        "text": ["--task", "ppl", "--continuation", CONTINUATION, "--limit", args.windows, "--text", args.texts / "test.txt"],
        "needle": ["--task", "needle", "--depth", "0.05,0.2,0.35,0.5,0.65,0.8,0.95", "--limit", args.needles, "--likelihood-only"],
    }[task]
    out = args.work / f"{name}-{task}"
    command = [args.binary, "eval", "-m", MODEL, "--dtype", "native", *options, "--length", LENGTH, "--seed", 9000,
               *(part for plan in plans for part in ("--plan", plan)), "--out", out]
    run_once(command, out, [*plans, args.texts / "test.txt"])
    scores = {}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        one = json.loads(line)
        for score in ("nll", "kept"):
            scores.setdefault(one["plan"], {}).setdefault(score, []).append(one["scores"][score])
    return scores


def table(text, needle, plans):
    lines = ["| plan | entries per layer | text: loss against FullKV, nat | needles: loss, nat |", "|---|--:|--:|--:|"]
    loss = lambda scores, plan: [a - b for a, b in zip(scores[plan]["nll"], scores["full"]["nll"], strict=True)]
    for plan in sorted(plans, key=lambda plan: statistics.fmean(loss(text, plan))):
        kept = statistics.fmean(text[plan]["kept"])
        lines.append(f"| {plan} | {kept:.1f} | {interval(loss(text, plan))} | {interval(loss(needle, plan))} |")
    return "\n".join(lines)


def route(args, path):
    """What the plan gives each layer."""
    lines = ["| layer | kind | policy | share |", "|--:|---|---|--:|"]
    for rule in shown(args, path)["prefill"]:
        first, _, last = str(rule["layers"]).partition("-")
        for layer in range(int(first), int(last or first) + 1):
            members = rule.get("params", {}).get("policies")
            name = " + ".join(one["policy"] for one in members) if members else rule["policy"]
            lines.append(f"| {layer} | {'global' if layer in GLOBAL else 'local'} | {name} | {rule.get('share', 1):g} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--ratios", default="0.5,0.25,0.125", help="shares of what the layers hold without eviction; none measures the cuts of the "
                        "global layers only")
    parser.add_argument("--candidates", default=CANDIDATES, help=f"policies to choose from (default: {CANDIDATES})")
    parser.add_argument("--examples", type=int, default=12, help="windows of text, and as many questions, to calibrate on")
    parser.add_argument("--refine", type=int, default=30, help="steps of the calibration with the whole plan in effect")
    parser.add_argument("--windows", type=int, default=24, help="of text, to test on")
    parser.add_argument("--needles", type=int, default=4, help="per depth, of which there are 7")
    parser.add_argument("--shuffles", type=int, default=3, help="of the calibrated plan's layers, as a control")
    args = parser.parse_args()
    folder = args.work / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    ratios = [float(ratio) for ratio in args.ratios.split(",") if ratio]
    calibrated = {ratio: calibrate(args, ratio) for ratio in ratios}
    parts = []
    for ratio in ratios:
        singles = [write(folder, f"{policy}-{ratio:g}", [{"layers": f"0-{LAYERS - 1}", "policy": policy}], {"ratio": ratio})
                   for policy in SINGLES]
        shuffles = [shuffled(args, calibrated[ratio], seed) for seed in range(args.shuffles)]
        plans = [calibrated[ratio], *singles, *shuffles]
        text, needle = (evaluate(args, f"{ratio:g}", task, plans) for task in ("text", "needle"))
        names = [path.stem for path in plans]
        parts.append(f"## {100 * ratio:g} %\n\n{table(text, needle, names)}\n\nThe calibrated plan:\n\n{route(args, calibrated[ratio])}\n")
    cuts = [global_cut(folder, policy, entries) for policy in ("tova", "snapkv", "streaming-llm") for entries in ENTRIES]
    text, needle = (evaluate(args, "global", task, cuts) for task in ("text", "needle"))
    parts.append(f"## The global layers alone\n\nThe local layers keep their windows.\n\n{table(text, needle, [path.stem for path in cuts])}\n")
    full = {task: statistics.fmean(scores["full"]["nll"]) for task, scores in (("text", text), ("needle", needle))}
    kept = statistics.fmean(text["full"]["kept"])
    head = (f"# Gemma 3 270M: results\n\nMade by `run.py`; prompts of {LENGTH} tokens, {args.windows} windows of text, {7 * args.needles} "
            f"needles. FullKV: NLL {full['text']:.3f} on text, {full['needle']:.3f} on needles, {kept:.1f} entries per layer on average "
            f"(15 layers with a window of {WINDOW}, 3 without). Means with 95 % intervals of a bootstrap over samples.\n\n")
    (HERE / "results.md").write_text(head + "\n".join(parts))


if __name__ == "__main__":
    main()
