#!/usr/bin/env python3
"""Calibrated plans, single policies, controls and shuffles beside each other on SmolLM2-135M-Instruct, one phase at a time.

Calibrates on --calibration-text and on questions from a seed, then measures every plan on --test-text and on needles of other
wording, all plans over one prefill. Nothing of the test is read before the plans are fixed. The samples come in batches: each
holds all plans, so that a run that ends early (--minutes) still compares like with like. Finished steps are skipped when it
runs again with the same --work; without that folder it goes on from the batches and the plans in --out, and --calibrations may
name more than before: plans run alone on the batches that others have run without them. With --plans-of it calibrates nothing
and takes the plans of earlier results, for prompts of another length for instance. Prints how many tokens it will run first.
Afterwards `report.py` makes results.md.
"""

import argparse
import concurrent.futures
import hashlib
import json
import math
import pathlib
import sys
import time

from plans import (BLEND_MEMBERS, BUDGETS_OF, CALIBRATIONS, INVERTED, ROUTED, SINGLES, WITH_BUDGETS, earlier, new_plans, shuffles,
                   write_plan)
from steps import run_once

TEST_SEED = 9000  # of the first batch; the others count on

# Per batch: samples and what eval is told. Depths times one needle each.
NEEDLE = ["--task", "needle", "--depth", "0.05,0.2,0.35,0.5,0.65,0.8,0.95", "--limit", "1"]
TASKS = {
    "text": (4, ["--task", "ppl", "--limit", "4", "--text"]),
    "needle": (7, NEEDLE),
    "needle-lead-in": (7, [*NEEDLE, "--answer-prefix"]),
    "needle-after": (7, [*NEEDLE, "--question-after"]),
    "fidelity": (1, ["--task", "fidelity", "--generated", "--continuation", "128", "--limit", "1", "--text"]),
}
# Tokens after the prompt per sample and plan, at most.
AFTER = {"needle": 48, "needle-lead-in": 24, "needle-after": 72, "fidelity": 128}
# What shuffles are ranked by.
RANKED = ["text", "needle"]


def text_part(args, batch):
    """Windows of different batches never overlap: each batch has its own part of the text."""
    text = pathlib.Path(args.test_text).read_text()
    size = len(text) // args.batches
    path = args.work / f"test-{args.batches}-{batch}.txt"
    path.write_text(text[batch * size:(batch + 1) * size])
    return path


def evaluate(args, work, plans, batch, task, name, more=()):
    """One call of eval: a task's samples of a batch under some plans."""
    options = TASKS[task][1]
    inputs = list(plans)
    if options[-1] == "--text":
        inputs.append(text_part(args, batch))
        options = [*options, inputs[-1]]
    if task == "text":
        options = [*options, "--continuation", args.continuation]
    out = work / f"{name}-{batch}"
    command = [args.binary, "eval", "-m", args.model, "--device", args.device, "--dtype", "f32", *options, *more, "--length", args.length,
               "--seed", TEST_SEED + batch, *(part for plan in plans for part in ("--plan", plan)), "--out", out]
    run_once(command, out, inputs)
    return out


def collect(scores, task, out, without=()):
    """Adds a finished call's scores: task, plan, score, a list over samples."""
    for line in (out / "predictions.jsonl").read_text().splitlines():
        one = json.loads(line)
        if one["plan"] in without:
            continue
        own = scores.setdefault(task, {}).setdefault(one["plan"], {})
        for name, score in one["scores"].items():
            # Bytes follow from the entries kept.
            if name != "kv_bytes":
                own.setdefault(name, []).append(round(score, 6))


def run_batch(args, work, plans, batch, task, name=None):
    more = ["--likelihood-only"] if args.likelihood_only and task.startswith("needle") else []
    return evaluate(args, work, plans, batch, task, name or task, more)


def run_shuffles(args, work, plans, batch, task):
    more = ["--likelihood-only"] if task == "needle" else []
    return evaluate(args, work, plans, batch, task, f"{task}-shuffles", more)


def tokens(args):
    """How many tokens are run, and how many plans there are beside the shuffles."""
    after = {**AFTER, "text": args.continuation - 1}
    calibrations = [] if args.plans_of else [(group, name) for group, name, _ in CALIBRATIONS[args.phase] if name in args.calibrations]
    if args.plans_of:
        plans = len(args.plans or earlier(args, args.budgets[0])["plans"])
    else:
        plans = len(SINGLES) - len(args.without) + 8 + len(calibrations) + len(INVERTED)
        plans += len(WITH_BUDGETS) if BUDGETS_OF in args.calibrations else 0
    samples = sum(TASKS[task][0] * (args.length + plans * after[task]) for task in args.tasks)
    samples *= args.batches - args.first_batch
    again = sum(TASKS[task][0] * (args.length + args.shuffles * after[task]) for task in RANKED if task in args.tasks)
    examples = sum(args.examples + (0 if group.startswith("text") else args.evidence) for group in {group for group, _ in calibrations})
    found = examples * (args.calibration_length + args.calibration_continuation)
    # Beside single policies, a search begins with up to seven routes; that of budgets has 64 combinations and three steps.
    starts = len(ROUTED) + len(BLEND_MEMBERS) + 7
    moves = sum(args.refine + starts + 67 * name.endswith("-budgets") for _, name in calibrations
                if name.endswith(("-refined", "-budgets")))
    found += moves * (args.examples * args.calibration_continuation + args.evidence * 32)
    return len(args.budgets) * (samples + again * args.shuffle_batches + found), plans


def settings(args, ratio):
    hashed = lambda path: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    names = ["phase", "primary", "model", "length", "continuation", "without", "batches", "shuffles", "likelihood_only",
             "first_batch", "examples", "evidence", "calibration_length", "calibration_continuation", "refine"]
    own = {"ratio": ratio, **{name: getattr(args, name) for name in names}, "test_sha256": hashed(args.test_text),
           "calibration_sha256": [hashed(path) for path in args.calibration_text]}
    if args.plans_of:
        calibrated = ["examples", "evidence", "calibration_length", "calibration_continuation", "refine", "calibration_sha256"]
        own |= {name: earlier(args, ratio)["settings"][name] for name in calibrated}
    return own


def start(args, ratio, path):
    """What earlier runs left in --out, or nothing yet."""
    wanted = settings(args, ratio)
    if not path.exists():
        return {"settings": wanted, "finished": {}, "shuffled": {}, "plans": {}, "scores": {}, "shuffles": {}}
    results = json.loads(path.read_text())
    apart = [name for name in wanted if results["settings"].get(name) != wanted[name]]
    if apart:
        sys.exit(f"{path} is of a run with other settings ({', '.join(apart)}): move it away")
    return results


def catch_up(args, work, plans, results, save, began):
    """Runs plans on the batches that others have run without them."""
    for task, done in results["finished"].items():
        scores = results["scores"][task]
        known = lambda plan: len(next(iter(scores.get(plan.stem, {"": []}).values())))
        for batch in range(done):
            missing = [plan for plan in plans if known(plan) <= batch * TASKS[task][0]]
            if not missing or time.time() > began + 60 * args.minutes:
                continue
            # A folder of eval's takes no other plans.
            own = hashlib.sha256(" ".join(plan.stem for plan in missing).encode()).hexdigest()[:8]
            out = run_batch(args, work, missing, args.first_batch + batch, task, f"{task}-{own}")
            collect(results["scores"], task, out, without=["full"])
            save()
            print(f"{task}, {len(missing)} new plans on batch {batch + 1} of {done}", flush=True)


def measure(args, ratio, began):
    path = args.out / f"{ratio:g}{args.label and '-' + args.label}.json"
    results = start(args, ratio, path)
    work = args.work / path.stem
    folder = work / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    plans = [write_plan(folder, name, plan) for name, plan in results["plans"].items()]
    new = new_plans(args, work, ratio, folder, results["plans"])
    shuffled = shuffles(args, folder)
    args.out.mkdir(parents=True, exist_ok=True)

    def save():
        part = path.with_suffix(".part")
        part.write_text(json.dumps(results) + "\n")
        part.rename(path)

    plans += new
    results["plans"] |= {own.stem: json.loads(own.read_text()) for own in new}
    # The plans are on disk before anything of the test runs under them.
    save()
    catch_up(args, work, plans, results, save, began)

    longest = {}

    def batches(count, work_on, own, tasks, most):
        """Runs the tasks' batches that `count` does not know yet, --jobs at once; each is on disk before the next one counts."""
        known, scores = results[count], results["scores" if count == "finished" else "shuffles"]

        def one(done, task):
            at = time.time()
            if at + longest.get((count, task), 0.0) > began + 60 * args.minutes:
                return None
            out = work_on(args, work, own, args.first_batch + done, task)
            took = time.time() - at
            longest[count, task] = max(longest.get((count, task), 0.0), took)
            return out, took

        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            jobs = [(done, task, pool.submit(one, done, task)) for done in range(most) for task in tasks if done >= known.get(task, 0)]
            for done, task, job in jobs:
                # After one that was not started, later ones of its task would leave a gap.
                if job.result() is None or known.get(task, 0) < done:
                    continue
                out, took = job.result()
                collect(scores, task, out)
                known[task] = done + 1
                save()
                print(f"{ratio}: {task}, {count} {done + 1} of {most} in {took:.0f} s", flush=True)

    # The shuffles' samples are those of the first batches.
    count = args.batches - args.first_batch
    if shuffled:
        first = min(args.shuffle_batches, count)
        batches("finished", run_batch, plans, args.tasks, first)
        ranked = [task for task in RANKED if task in args.tasks]
        batches("shuffled", run_shuffles, shuffled, ranked, first)
    batches("finished", run_batch, plans, args.tasks, count)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [float(part) for part in text.split(",")]
    names = lambda text: text.split(",")
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--calibration-text", nargs="+", default=[])
    parser.add_argument("--plans-of", type=pathlib.Path, metavar="FOLDER", help="take plans from the results there, calibrate none")
    parser.add_argument("--plans", type=names, help="which of them [default: all]")
    parser.add_argument("--test-text", required=True)
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results")
    parser.add_argument("--budgets", type=numbers, default=[0.25, 0.125, 0.0625], help="shares of the prompt")
    parser.add_argument("--phase", choices=["prefill", "decode"], default="prefill", help="the phase that evicts")
    parser.add_argument("--label", help="keeps the results apart from others at the same budget [default: the phase, if it is decode]")
    parser.add_argument("--length", type=int, default=1500, help="tokens of the prompts")
    parser.add_argument("--continuation", type=int, default=256, help="tokens of a window after its prompt")
    parser.add_argument("--without", type=names, default=[], help="single policies to leave out, for time")
    parser.add_argument("--batches", type=int, default=16, help="of 4 windows, 7 needles per protocol, 1 text for fidelity")
    parser.add_argument("--first-batch", type=int, default=0, help="leave out earlier ones, which some other plan has been tested on")
    parser.add_argument("--shuffles", type=int, default=100)
    parser.add_argument("--shuffle-batches", type=int, default=16, help="in how many of the batches the shuffles run")
    parser.add_argument("--tasks", type=names, help="[default: all; fidelity for --phase decode]")
    parser.add_argument("--likelihood-only", action="store_true", help="generate no answers for needles: less than half the time")
    parser.add_argument("--calibrations", type=names, help="[default: all of the phase]")
    parser.add_argument("--primary", help="the plan that the targets are about and that shuffles are made of; name it before "
                        "the test [default: both-refined; text for --phase decode]")
    parser.add_argument("--examples", type=int, default=16, help="windows of text to calibrate on")
    parser.add_argument("--evidence", type=int, default=24, help="questions to calibrate on")
    parser.add_argument("--calibration-length", type=int, default=1500)
    parser.add_argument("--calibration-continuation", type=int, default=128)
    parser.add_argument("--refine", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1, help="batches at once, for machines with many cores or a GPU")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no batch that would end later than this")
    args = parser.parse_args()
    prefill = args.phase == "prefill"
    args.tasks = args.tasks or (list(TASKS) if prefill else ["fidelity"])
    args.calibrations = args.calibrations or [name for _, name, _ in CALIBRATIONS[args.phase]]
    args.primary = args.primary or ("both-refined" if prefill else "text")
    args.label = args.label or ("" if prefill else args.phase)
    args.shuffles = args.shuffles if prefill else 0
    if args.plans_of and not args.label:
        parser.error("--plans-of takes a --label, which keeps the results apart")
    if not (args.calibration_text or args.plans_of):
        parser.error("--calibration-text or --plans-of is missing")
    if args.primary not in args.calibrations:
        parser.error(f"--primary {args.primary} is none of --calibrations")
    total, count = tokens(args)
    print(f"about {total:,} tokens: {len(args.budgets)} budgets, {count} plans and {args.shuffles} shuffles, "
          f"{args.batches - args.first_batch} batches", flush=True)
    began = time.time()
    for ratio in args.budgets:
        measure(args, ratio, began)


if __name__ == "__main__":
    main()
