#!/usr/bin/env python3
"""Calibrated plans, single policies, controls and shuffles beside each other on SmolLM2-135M-Instruct, prefill phase.

Calibrates on --calibration-text and on questions from a seed, then measures every plan on --test-text and on needles of other
wording, all plans over one prefill. Nothing of the test is read before the plans are fixed. The samples come in batches: each
holds all plans, so that a run that ends early (--minutes) still compares like with like. Finished steps are skipped when it
runs again with the same --work. Prints how many tokens it will run first. Afterwards `report.py` makes results.md.
"""

import argparse
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import time

LAYERS = 30
CALIBRATION_SEED = 11
TEST_SEED = 5000  # of the first batch; the others count on

H2O = "normalize: true, recent_fraction: 0"
ROUTED = ["h2o:{%s}" % H2O, "tova", "snapkv", "cake", "keydiff"]
BLEND_SHARES = {"blend-tova1-h2o1": (0.5, 0.5), "blend-tova3-h2o1": (3, 1)}
BLENDS = ["blend:{policies: [{policy: tova, share: %s}, {policy: h2o, share: %s, %s}]}" % (tova, share, H2O)
          for tova, share in BLEND_SHARES.values()]
SINGLES = ["streaming-llm", "snapkv", "pyramidkv", "cake", "tova", "h2o", "scissorhands", "d2o", "cam", "expected-attention",
           "lagkv", "criticalkv", "knorm", "keydiff", "random"]

# Folder of measurements, plan, what calibrate is told.
CALIBRATIONS = [
    ("text", "text", ["--objective", "text"]),
    ("text", "text-allocated", ["--objective", "text", "--allocator", "calibrated"]),
    ("text-ppl", "text-ppl", ["--objective", "text", "--signal", "ppl"]),
    ("text-ppl", "text-ppl-allocated", ["--objective", "text", "--signal", "ppl", "--allocator", "calibrated",
                                        "--budget-signal", "ppl"]),
    ("blend", "text-blend", ["--objective", "text"]),
    ("both", "both", ["--objective", "both"]),
    ("both", "both-allocated", ["--objective", "both", "--allocator", "calibrated"]),
    ("both", "both-refined", ["--objective", "both", "--refine-phase", "prefill", "--refine"]),
]
WITH_BLENDS = {"blend", "both"}
INVERTED = ["text", "both"]

# Per batch: samples and what eval is told. Depths times one needle each.
NEEDLE = ["--task", "needle", "--depth", "0.1,0.3,0.5,0.7,0.9", "--limit", "1"]
TASKS = {
    "text": (4, ["--task", "ppl", "--limit", "4", "--text"]),
    "needle": (5, NEEDLE),
    "needle-lead-in": (5, [*NEEDLE, "--answer-prefix"]),
    "needle-after": (5, [*NEEDLE, "--question-after"]),
    "fidelity": (1, ["--task", "fidelity", "--generated", "--continuation", "128", "--limit", "1", "--text"]),
}
# Tokens after the prompt per sample and plan, at most.
AFTER = {"needle": 48, "needle-lead-in": 24, "needle-after": 72, "fidelity": 128}


def run(command, out, inputs=()):
    """Starts a step unless `out` holds its result already. The result depends on the command and on the files in it."""
    digest = hashlib.sha256("\0".join(map(str, command)).encode())
    for path in inputs:
        digest.update(pathlib.Path(path).read_bytes())
    mark = out / "step"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return None
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log), mark, digest.hexdigest()


def finish(steps):
    for step in filter(None, steps):
        process, mark, digest = step
        if process.wait() != 0:
            sys.exit(f"failed: {' '.join(map(str, process.args))}\n{(mark.parent / 'log').read_text()}")
        mark.write_text(digest)


def plan_json(args, path):
    shown = json.loads(subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    del shown["hash"]
    return shown


def write_plan(folder, name, plan):
    """As JSON, which is YAML too; only the prefill evicts."""
    full = [{"layers": f"0-{LAYERS - 1}", "policy": "full"}]
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({**plan, "name": name, "decode": full}, indent=1) + "\n")
    return path


def uniform(ratio, policy, params, **more):
    rule = {"layers": f"0-{LAYERS - 1}", "policy": policy, **({"params": params} if params else {})}
    return {"schema": 1, "layers": LAYERS, "budget": {"ratio": ratio}, "prefill": [rule], **more}


def baselines(folder, ratio, without):
    h2o = {"normalize": True, "recent_fraction": 0}
    plans = [write_plan(folder, name, uniform(ratio, name, None, **({"online": "pyramid"} if name == "pyramidkv" else {})))
             for name in SINGLES if name not in without]
    plans.append(write_plan(folder, "h2o-normalized", uniform(ratio, "h2o", h2o)))
    for name, (tova, share) in BLEND_SHARES.items():
        members = [{"policy": "tova", "share": tova}, {"policy": "h2o", "share": share, **h2o}]
        plans.append(write_plan(folder, name, uniform(ratio, "blend", {"policies": members})))
    return plans


def calibrate(args, work, ratio, folder):
    """One plan after the other; those with the same measurements share them."""
    plans = []
    for group, name, options in CALIBRATIONS:
        if name not in args.calibrations:
            continue
        policies = ROUTED + (BLENDS if group in WITH_BLENDS else [])
        if options[-1] == "--refine":
            options = [*options, str(args.refine)]
        measured, kept = work / "calibrations" / group, work / "calibrations" / f"plan-{name}"
        command = [args.binary, "calibrate", "-m", args.model, "--device", args.device, "--data", *args.calibration_text,
                   "--examples", args.examples, "--evidence", args.evidence, "--length", args.calibration_length,
                   "--continuation", args.calibration_continuation, "--seed", CALIBRATION_SEED, "--budget-ratio", ratio,
                   "--policies", ",".join(policies), *options, "--resume", "--out", measured]
        began = time.time()
        step = run(list(map(str, command)), kept, args.calibration_text)
        finish([step])
        if step:
            for file in ["plan.yaml", "profile.json"]:
                (kept / file).write_bytes((measured / file).read_bytes())
            print(f"{ratio}: calibrated {name} in {time.time() - began:.0f} s", flush=True)
        plans.append(write_plan(folder, name, plan_json(args, kept / "plan.yaml")))
        if name in INVERTED:
            inverse = kept / "inverse.yaml"
            subprocess.run([args.binary, "plan", "invert", kept / "plan.yaml", "--out", inverse], check=True)
            plans.append(write_plan(folder, f"{name}-inverse", plan_json(args, inverse)))
    for seed in range(1, args.shuffles + 1):
        shuffled = folder / "shuffled"
        subprocess.run([args.binary, "plan", "shuffle", folder / f"{args.primary}.yaml", "--seed", str(seed), "--out", shuffled],
                       check=True)
        plans.append(write_plan(folder, f"shuffle-{seed}", plan_json(args, shuffled)))
        shuffled.unlink()
    return plans


def text_part(args, batch):
    """Windows of different batches never overlap: each batch has its own part of the text."""
    text = pathlib.Path(args.test_text).read_text()
    size = len(text) // args.batches
    path = args.work / f"test-{args.batches}-{batch}.txt"
    path.write_text(text[batch * size:(batch + 1) * size])
    return path


def evaluate(args, work, plans, batch):
    steps = []
    for task in args.tasks:
        options = TASKS[task][1]
        inputs = list(plans)
        if options[-1] == "--text":
            inputs.append(text_part(args, batch))
            options = [*options, inputs[-1]]
        if task == "text":
            options += ["--continuation", args.continuation]
        out = work / f"{task}-{batch}"
        command = [args.binary, "eval", "-m", args.model, "--device", args.device, *options, "--length", args.length,
                   "--seed", TEST_SEED + batch, *(part for plan in plans for part in ("--plan", plan)), "--out", out]
        steps.append(run(list(map(str, command)), out, inputs))
        if not args.parallel:
            finish(steps[-1:])
    if args.parallel:
        finish(steps)


def collect(args, work, plans, batches):
    """The scores of all finished batches: task, plan, score, a list over samples."""
    scores = {task: {} for task in args.tasks}
    for task in args.tasks:
        for batch in batches:
            for line in (work / f"{task}-{batch}" / "predictions.jsonl").read_text().splitlines():
                one = json.loads(line)
                own = scores[task].setdefault(one["plan"], {})
                for name, score in one["scores"].items():
                    own.setdefault(name, []).append(round(score, 6))
    made = {path.stem: json.loads(path.read_text()) for path in plans if not path.stem.startswith("shuffle-")}
    return {"plans": made, "scores": scores}


def tokens(args):
    tokens_after = {**AFTER, "text": args.continuation - 1}
    plans = len(SINGLES) - len(args.without) + 1 + len(BLENDS) + len(args.calibrations) + len(INVERTED) + args.shuffles + 1
    prompts = sum(TASKS[task][0] for task in args.tasks) * args.length
    after = sum(TASKS[task][0] * tokens_after[task] for task in args.tasks) * plans
    groups = {group for group, name, _ in CALIBRATIONS if name in args.calibrations}
    examples = sum(args.examples + (args.evidence if group == "both" else 0) for group in groups)
    moves = args.refine + len(ROUTED) + len(BLENDS) + 1 if "both-refined" in args.calibrations else 0
    again = args.examples * args.calibration_continuation + args.evidence * 32
    found = examples * (args.calibration_length + args.calibration_continuation) + moves * again
    return len(args.budgets) * (args.batches * (prompts + after) + found), plans


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [float(part) for part in text.split(",")]
    names = lambda text: text.split(",")
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--calibration-text", nargs="+", required=True)
    parser.add_argument("--test-text", required=True)
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results")
    parser.add_argument("--budgets", type=numbers, default=[0.25, 0.125, 0.0625], help="shares of the prompt")
    parser.add_argument("--length", type=int, default=1500, help="tokens of the prompts")
    parser.add_argument("--continuation", type=int, default=256, help="tokens of a window after its prompt")
    parser.add_argument("--without", type=names, default=[], help="single policies to leave out, for time")
    parser.add_argument("--batches", type=int, default=20, help="of 4 windows, 5 needles per protocol, 1 text for fidelity")
    parser.add_argument("--shuffles", type=int, default=100)
    parser.add_argument("--tasks", type=names, default=list(TASKS))
    parser.add_argument("--calibrations", type=names, default=[name for _, name, _ in CALIBRATIONS])
    parser.add_argument("--primary", default="both-refined",
                        help="the plan that the targets are about and that shuffles are made of; name it before the test")
    parser.add_argument("--examples", type=int, default=16, help="windows of text to calibrate on")
    parser.add_argument("--evidence", type=int, default=24, help="questions to calibrate on")
    parser.add_argument("--calibration-length", type=int, default=1500)
    parser.add_argument("--calibration-continuation", type=int, default=128)
    parser.add_argument("--refine", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no batch that would end later than this")
    parser.add_argument("--parallel", action="store_true", help="the tasks of a batch beside each other")
    args = parser.parse_args()
    if args.primary not in args.calibrations:
        parser.error(f"--primary {args.primary} is none of --calibrations")
    began = time.time()
    total, count = tokens(args)
    print(f"about {total:,} tokens: {len(args.budgets)} budgets, {count} plans, {args.batches} batches", flush=True)
    hashed = lambda path: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    for ratio in args.budgets:
        work = args.work / f"{ratio:g}"
        folder = work / "plans"
        folder.mkdir(parents=True, exist_ok=True)
        plans = baselines(folder, ratio, args.without) + calibrate(args, work, ratio, folder)
        done, longest = [], 0.0
        for batch in range(args.batches):
            start = time.time()
            if start + longest > began + 60 * args.minutes:
                break
            evaluate(args, work, plans, batch)
            done.append(batch)
            longest = max(longest, time.time() - start)
            print(f"{ratio}: batch {batch + 1} of {args.batches} in {time.time() - start:.0f} s", flush=True)
            found = collect(args, work, plans, done)
            settings = {name: getattr(args, name) for name in ["model", "length", "continuation", "without", "batches", "shuffles", "tasks", "examples",
                        "evidence", "calibration_length", "calibration_continuation", "refine"]}
            settings.update(ratio=ratio, primary=args.primary, finished=len(done), test_sha256=hashed(args.test_text),
                            calibration_sha256=[hashed(path) for path in args.calibration_text])
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{ratio:g}.json").write_text(json.dumps({"settings": settings, **found}) + "\n")


if __name__ == "__main__":
    main()
