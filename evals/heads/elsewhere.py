#!/usr/bin/env python3
"""The plans of results.json where they were not made for: with the start of the answer in the prompt, and at other lengths.

Nothing is calibrated: the plans are those that results.json holds. Finished steps are skipped when it runs again with the same --work.
Writes results-elsewhere.json and results-elsewhere.md beside this file.
"""

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "suite"), str(HERE.parent / "smollm2")]
import run as suite
from tables import report

PLANS = ["heads-routed", "routed-single", "heads-kvzip", "layers-adakv-kvzip", "heads-snapkv-16"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--suite", type=pathlib.Path, required=True, help="folder that ../suite/make.py made")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--plans", type=lambda text: text.split(","), default=PLANS, help="names of plans in results.json")
    parser.add_argument("--at", type=lambda text: text.split(","), default=["lead-in:1500", "after:4000"],
                        help="places of the question and lengths of the prompt")
    args = parser.parse_args()
    args.part, args.shuffle_of = "test", "heads-routed"
    (args.work / "plans").mkdir(parents=True, exist_ok=True)
    known = json.loads((HERE / "results.json").read_text())
    plans = {name: known["plans"][name] for name in args.plans}
    groups = {"": [suite.write(args, name, plan) for name, plan in plans.items()]}
    places = [place.split(":") for place in args.at]
    lengths = list(dict.fromkeys(int(length) for _, length in places))
    settings = {**known["settings"], "at": args.at, "lengths": lengths, "shuffle_of": args.shuffle_of}
    results = {"settings": settings, "plans": plans, "needles": {}, "text": {}}
    for position, length in places:
        results["needles"][f"{position}-{length}"] = suite.answers(args, position, int(length), groups)
        (HERE / "results-elsewhere.json").write_text(json.dumps(results) + "\n")
        text = report(results).replace("# Plans on the frozen suite", "# Budgets of KV heads elsewhere", 1)
        text = text.replace("`run.py`", "`elsewhere.py`", 1).replace("The plan in bold is the one whose policies are shuffled.", "The plan in bold was fixed before this part was read.", 1)
        (HERE / "results-elsewhere.md").write_text(text)


if __name__ == "__main__":
    main()
