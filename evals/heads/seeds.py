#!/usr/bin/env python3
"""The calibrations of run.py with other seeds: how much of a result is the luck of one draw of windows and questions.

The plans of the first seed are those of results.json; the others are calibrated here by the same commands, and all run on the suite's
part `test` together. Nothing is chosen by what comes out. Finished steps are skipped when it runs again with the same --work.
Writes results-seeds.json and results-seeds.md beside this file.
"""

import argparse
import json
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "suite"), str(HERE.parent / "smollm2")]
import run as suite
from intervals import interval
from steps import run_once
from tables import less, report, text_losses, together

FIRST = 31
# What run.py calibrates, and the plans of results.json that came of it with the first seed.
TEXT = ["--objective", "text", "--examples", "16", "--length", "1500", "--policies", "kvzip"]
ROUTE = ["--objective", "both", "--question-after", "--examples", "10", "--evidence", "12", "--length", "900", "--policies",
         "kvzip,snapkv:window=16,h2o:{normalize: true, recent_fraction: 0},streaming-llm,tova", "--allocator", "calibrated", "--budget-signal",
         "effect", "--refine", "8"]
# Student's t at 97.5 %, by the number of seeds.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def calibrated(args, name, seed, options):
    out = args.work / f"{name}-{seed}"
    texts = sorted((args.texts / "calibration").glob("*.txt"))
    run_once([args.binary, "calibrate", "--device", "cpu", "--dtype", "native", "--phase", "prefill", "--kv-dtype", "q4", "--seed", seed, "--heads",
              "--resume", "-m", suite.MODEL, "--data", *texts, "--budget-byte-ratio", "0.0625", *options, "--out", out], out, texts)
    return suite.shown(args, out / "plan.yaml")


def with_kvzip(plan):
    return {**plan, "prefill": [{"layers": own["layers"], "share": own["share"], "policy": "kvzip"} for own in plan["prefill"]]}


def make_plans(args, known):
    groups = {"": [suite.write(args, f"heads-{FIRST}", known["heads-kvzip"])]}
    groups[""] += [suite.write(args, f"heads-{seed}", with_kvzip(calibrated(args, "heads", seed, TEXT))) for seed in args.seeds]
    if args.routed:
        groups["routed"] = [suite.write(args, f"routed-{FIRST}", known["heads-routed"]), suite.write(args, f"single-{FIRST}", known["routed-single"])]
        for seed in args.routed:
            plan = calibrated(args, "routed", seed, ROUTE)
            groups["routed"] += [suite.write(args, f"routed-{seed}", plan), suite.write(args, f"single-{seed}", with_kvzip(plan))]
    return groups


def over_seeds(values):
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = STUDENT[len(values)] * spread / len(values) ** 0.5
    return f"{mean:.4g} [{mean - half:.4g}, {mean + half:.4g}]"


def across(results):
    """A line for each family of plans: every seed, and their mean with the interval that the seeds give."""
    losses = text_losses(results, 1500)
    places = {step: own["scores"] for step, own in results["needles"].items()}
    lines = ["## Across seeds", "", "Each cell has the seeds in order; the mean's 95 % interval is Student's, over seeds alone.", "",
             f"| plans | text: loss, nat | mean | {' | '.join(f'{step}: found | mean' for step in places)} |", f"|---|---|--:|{'---|--:|' * len(places)}"]
    families = {}
    for plan in next(iter(places.values())):
        if plan != "full":
            families.setdefault(plan.rsplit("-", 1)[0], []).append(plan)
    for family, plans in families.items():
        cells = []
        if all(plan in losses for plan in plans):
            text = [statistics.fmean(together(losses[plan])) for plan in plans]
            cells += [", ".join(f"{value:+.4f}" for value in text), over_seeds(text)]
        else:
            cells += ["", ""]
        for scores in places.values():
            found = [sum(scores[plan]) for plan in plans] if all(plan in scores for plan in plans) else []
            cells += [", ".join(f"{value:.3g}" for value in found), over_seeds(found)] if found else ["", ""]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    if "routed" in families and families["routed"][0] in losses:
        lines += ["", "The route less kvzip in all layers, budgets and parts the same, with an interval over samples:", "",
                  f"| seed | text, nat | {' | '.join(places)} |", f"|---|--:|{'--:|' * len(places)}"]
        for plan in families["routed"]:
            other = plan.replace("routed", "single")
            gap = [a - b for a, b in zip(together(losses[plan]), together(losses[other]), strict=True)]
            gaps = [less(scores, plan, other) for scores in places.values()]
            lines.append(f"| {plan.rsplit('-', 1)[1]} | {' | '.join(interval(own) if len(set(own)) > 1 else '0' for own in [gap, *gaps])} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--suite", type=pathlib.Path, required=True, help="folder that ../suite/make.py made")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made, to calibrate on")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    numbers = lambda text: [int(part) for part in text.split(",") if part]
    parser.add_argument("--seeds", type=numbers, default=[32, 33, 34, 35], help="of parts of heads from text, beside the first")
    parser.add_argument("--routed", type=numbers, default=[32, 33], help="of routes, beside the first")
    args = parser.parse_args()
    args.part, args.windows, args.lengths, args.shuffle_of = "test", 8, [1500], f"heads-{FIRST}"
    (args.work / "plans").mkdir(parents=True, exist_ok=True)
    known = json.loads((HERE / "results.json").read_text())
    groups = make_plans(args, known["plans"])
    settings = {"seeds": [FIRST, *args.seeds], "routed": [FIRST, *args.routed], "part": "test", "share": 0.0625, "lengths": [1500], "shuffle_of": args.shuffle_of}
    results = {"settings": settings, "plans": {path.stem: json.loads(path.read_text()) for paths in groups.values() for path in paths},
               "needles": {}, "text": {}}
    steps = [("needles", "after", suite.answers), *(("text", kind, suite.losses) for kind in suite.KINDS), ("needles", "inside", suite.answers)]
    for group, name, step in steps:
        results[group][f"{name}-1500"] = step(args, name, 1500, groups)
        (HERE / "results-seeds.json").write_text(json.dumps(results) + "\n")
        text = report(results).replace("# Plans on the frozen suite", "# Budgets of KV heads with five seeds", 1)
        text = text.replace("`run.py`", "`seeds.py`", 1).replace("The plan in bold is the one whose policies are shuffled.", "The plan in bold is the one of the first seed.", 1)
        head, rest = text.split("## Prompts of", 1)
        (HERE / "results-seeds.md").write_text("\n".join([head.rstrip(), "", *across(results), "", "## Prompts of" + rest]))


if __name__ == "__main__":
    main()
