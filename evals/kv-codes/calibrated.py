#!/usr/bin/env python3
"""Policies, entries and bits chosen together under one total of bytes, on SmolLM2-135M: what `polykv calibrate --kv-dtype` finds.

For every share of an f16 cache's bytes it calibrates with all policies and formats to choose from, and one blend of policies in all
layers with the same search of budgets in q4. It measures these plans, single policies in q4 and shuffles of the chosen plan's policies
(budgets and formats stay) on windows of text and on needles. The texts are those of ../smollm2/texts.py; nothing of the test is read
before the plans are on disk. Finished steps are skipped when it runs again with the same --work. Writes calibrated.json with the plans and every score, and calibrated.md, beside this file.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "smollm2"))
from intervals import interval
from steps import run_once

MODEL, LAYERS = "smollm2-135m", 30
MEMBERS = {"blend-pyramidkv3-h2o1": [("pyramidkv", 3), ("h2o", 1)], "blend-tova1-h2o1": [("tova", 1), ("h2o", 1)]}
POLICIES = {"h2o": ("h2o", {}), "h2o-normalized": ("h2o", {"normalize": True, "recent_fraction": 0}), "tova": ("tova", {}),
            "snapkv-8": ("snapkv", {"window": 8}), "keydiff": ("keydiff", {}),
            **{name: ("blend", {"policies": [{"policy": policy, "share": share} for policy, share in members]})
               for name, members in MEMBERS.items()}}
TUNED = "blend-pyramidkv3-h2o1"
# Each with the policies and the formats to choose from.
CHOICES = {"chosen": (list(POLICIES), "cache,q8,q4"), f"{TUNED}-tuned": ([TUNED], "q4")}
TASKS = {"text": ["--task", "ppl", "--continuation", 256],
         "needle": ["--task", "needle", "--depth", "0.05,0.2,0.35,0.5,0.65,0.8,0.95", "--likelihood-only"]}


def shown(args, path):
    plan = json.loads(subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    del plan["hash"]
    return plan


def write(args, name, plan):
    path = args.work / "plans" / f"{name}.yaml"
    path.write_text(json.dumps({**plan, "name": name}, indent=1) + "\n")
    return path


def calibrate(args, share, name):
    """The plan of one of the choices."""
    policies, formats = CHOICES[name]
    out = args.work / f"{name}-{share:g}"
    texts = sorted((args.texts / "calibration").glob("*.txt"))
    named = [policy if not params else f"{policy}:{json.dumps(params)}" for policy, params in map(POLICIES.get, policies)]
    began = time.time()
    command = [args.binary, "calibrate", "-m", MODEL, "--device", "cpu", "--dtype", "native", "--data", *texts, "--objective", "both",
               "--phase", "prefill", "--budget-byte-ratio", share, "--kv-dtype", formats, "--examples", args.examples, "--evidence",
               args.examples, "--length", args.calibration_length, "--seed", args.seed, "--policies", ",".join(named),
               "--allocator", "calibrated", "--budget-signal", "effect", "--refine", args.refine, "--resume", "--out", out]
    if run_once(command, out, texts):
        print(f"{name} at {share:g}: {time.time() - began:.0f} s", flush=True)
    return write(args, f"{name}-{share:g}", shown(args, out / "plan.yaml"))


def single(args, share, name):
    """One policy in all layers, in q4, while the prompt is compressed."""
    policy, params = POLICIES[name]
    layers = f"0-{LAYERS - 1}"
    rule = {"layers": layers, "policy": policy, **({"params": params} if params else {})}
    plan = {"schema": 1, "layers": LAYERS, "budget": {"byte_ratio": share}, "prefill": [rule],
            "decode": [{"layers": layers, "policy": "full"}], "kv": [{"layers": layers, "codes": "q4"}]}
    return write(args, f"{name}-{share:g}", plan)


def shuffled(args, share, source, seed):
    out = args.work / f"shuffle-{share:g}-{seed}.yaml"
    subprocess.run([args.binary, "plan", "shuffle", source, "--keep", "budgets", "--seed", str(seed), "--out", out], check=True)
    return write(args, f"shuffle-{seed}-{share:g}", shown(args, out))


def measure(args, share, task, plans):
    """Scores of every plan over the samples."""
    more = ["--text", args.texts / "test.txt", "--limit", args.windows] if task == "text" else ["--limit", args.needles]
    out = args.work / f"{task}-{share:g}"
    command = [args.binary, "eval", "-m", MODEL, "--device", "cpu", "--dtype", "native", *TASKS[task], *more, "--length", args.length,
               "--seed", 9200, *(part for plan in plans for part in ("--plan", plan)), "--out", out]
    run_once(command, out, [*plans, args.texts / "test.txt"])
    found = {}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        one = json.loads(line)
        for score in ("nll", "kept", "kv_bytes"):
            found.setdefault(one["plan"], {}).setdefault(score, []).append(round(one["scores"][score], 6))
    return found


def formats(plan):
    """How many layers keep their entries in which format."""
    counts = {"f16": LAYERS}
    for rule in plan.get("kv", []):
        first, _, last = str(rule["layers"]).partition("-")
        layers = int(last or first) - int(first) + 1
        counts[rule["codes"]] = counts.get(rule["codes"], 0) + layers
        counts["f16"] -= layers
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def section(share, plans, scores):
    loss = lambda task, name: [a - b for a, b in zip(scores[task][name]["nll"], scores[task]["full"]["nll"], strict=True)]
    own = f"chosen-{share:g}"
    shuffles = [name for name in plans if name.startswith("shuffle-")]
    rank = {task: 1 + sum(statistics.fmean(loss(task, name)) < statistics.fmean(loss(task, own)) for name in shuffles) for task in TASKS}
    lines = [f"## {100 * share:g} % of the bytes", "",
             f"Among itself and {len(shuffles)} shuffles of its policies the chosen plan is number {rank['text']} on text and "
             f"{rank['needle']} on needles.", "",
             "| plan | formats of layers | entries per layer | bytes | text: loss, nat | needles: loss, nat | text: less the chosen | needles: less the chosen |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]
    for name in sorted(plans, key=lambda name: statistics.fmean(loss("text", name))):
        cells = [interval(loss(task, name), 4) for task in TASKS]
        less = [interval([a - b for a, b in zip(loss(task, name), loss(task, own), strict=True)], 4) if name != own else "" for task in TASKS]
        bytes_of = statistics.fmean(scores["text"][name]["kv_bytes"]) / statistics.fmean(scores["text"]["full"]["kv_bytes"])
        kept = statistics.fmean(scores["text"][name]["kept"])
        label = f"**{name}**" if name == own else name
        lines.append(f"| {label} | {formats(plans[name])} | {kept:.0f} | {100 * bytes_of:.2f} % | {' | '.join(cells + less)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--shares", default="0.0625,0.03125", help="of the bytes of an f16 cache of the prompt")
    parser.add_argument("--examples", type=int, default=8, help="windows of text, and as many questions, to calibrate on")
    parser.add_argument("--calibration-length", type=int, default=1200)
    parser.add_argument("--refine", type=int, default=20, help="steps of the calibration with the whole plan in effect")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--length", type=int, default=1500)
    parser.add_argument("--windows", type=int, default=16, help="of text, to test on")
    parser.add_argument("--needles", type=int, default=3, help="per depth, of which there are 7")
    parser.add_argument("--shuffles", type=int, default=20)
    args = parser.parse_args()
    (args.work / "plans").mkdir(parents=True, exist_ok=True)
    parts, results = [], {"settings": {name: str(value) for name, value in vars(args).items() if name not in ("binary", "work", "texts")}}
    for share in map(float, args.shares.split(",")):
        paths = [calibrate(args, share, name) for name in CHOICES]
        paths += [single(args, share, name) for name in POLICIES]
        paths += [shuffled(args, share, paths[0], seed) for seed in range(args.shuffles)]
        scores = {task: measure(args, share, task, paths) for task in TASKS}
        plans = {path.stem: json.loads(path.read_text()) for path in paths}
        results[f"{share:g}"] = {"plans": plans, "scores": scores}
        parts.append(section(share, plans, scores))
    (HERE / "calibrated.json").write_text(json.dumps(results) + "\n")
    head = (f"# SmolLM2-135M: policies, entries and bits chosen together\n\nMade by `calibrated.py`; calibrated on {args.examples} windows and "
            f"{args.examples} questions of {args.calibration_length} tokens, seed {args.seed}; tested on {args.windows} windows and {7 * args.needles} "
            f"needles of {args.length} tokens. Losses are against FullKV in f16, with 95 % intervals of a bootstrap over samples. Shares of bytes are "
            "of what FullKV holds after the prompt, keys and values with everything beside codes.\n\n")
    (HERE / "calibrated.md").write_text(head + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
