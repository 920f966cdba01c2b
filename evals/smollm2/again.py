#!/usr/bin/env python3
"""Runs the rows of single plans again and compares them with those in results/, sample by sample.

    python3 again.py BIN TEXT --plans cake --tasks text,needle

TEXT is the test text that texts.py makes. Plans, samples and seeds are those of the results, or of others in results/ (--of); the
budgets of a plan run beside each other over one prefill. Finished batches are skipped when it runs again with the same --work. Prints for
every score the largest difference over the samples and both means.
"""

import argparse
import json
import pathlib
import statistics

from run import TASKS, TEST_SEED
from steps import run_once

HERE = pathlib.Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--plans", default="cake")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--budgets", default="0.25,0.125,0.0625")
    parser.add_argument("--of", default="", help="other results with these plans: longer, shorter, decode")
    parser.add_argument("--work", type=pathlib.Path, default="work-again")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    budgets = args.budgets.split(",")
    results = {budget: json.loads((HERE / f"results/{budget}{args.of and '-' + args.of}.json").read_text()) for budget in budgets}
    settings = results[budgets[0]]["settings"]
    plans = []
    for budget in budgets:
        for name in args.plans.split(","):
            path = args.work / f"{name}-{budget}.json"
            path.write_text(json.dumps({**results[budget]["plans"][name], "name": path.stem}))
            plans.append((budget, name, path))
    text = args.text.read_text()
    size = len(text) // settings["batches"]
    batches = range(settings["first_batch"], settings["batches"])
    for task in args.tasks.split(","):
        found = {}
        for batch in batches:
            part = args.work / f"part-{batch}.txt"
            part.write_text(text[batch * size:(batch + 1) * size])
            options = [*TASKS[task][1]]
            if options[-1] == "--text":
                options.append(part)
            if task == "text":
                options += ["--continuation", settings["continuation"]]
            if settings["likelihood_only"] and task.startswith("needle"):
                options.append("--likelihood-only")
            out = args.work / f"{task}-{batch}"
            command = [args.binary, "eval", "-m", settings["model"], "--device", "cpu", "--dtype", "f32", *options, "--length",
                       settings["length"], "--seed", TEST_SEED + batch, *(part for *_, path in plans for part in ("--plan", path)),
                       "--out", out]
            run_once(command, out, [path for *_, path in plans])
            for line in (out / "predictions.jsonl").read_text().splitlines():
                one = json.loads(line)
                for score, value in one["scores"].items():
                    found.setdefault(one["plan"], {}).setdefault(score, []).append(value)
        for budget, name, path in plans:
            for score, before in results[budget]["scores"][task][name].items():
                # A run that ended early has the first batches.
                now = found[path.stem][score][:len(before)]
                assert len(now) == len(before), (task, budget, name, score)
                most = max(abs(a - b) for a, b in zip(before, now))
                print(f"{task} {budget} {name} {score}: {len(now)} samples, largest difference {most:.2g}, means "
                      f"{statistics.fmean(before):.6f} and {statistics.fmean(now):.6f}", flush=True)


if __name__ == "__main__":
    main()
