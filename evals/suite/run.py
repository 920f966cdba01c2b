#!/usr/bin/env python3
"""Plans on the frozen suite, at one share of an f16 cache's bytes, on SmolLM2-135M: calibrates, measures and writes the tables.

The plans: those that come with PolyKV, in q4 with the same bytes, those of ../kv-codes, single policies and a blend in q4, shuffles of
one plan's policies (budgets stay), and with --seeds plans that are calibrated here in q4. The calibration reads nothing of the suite, and
nothing is chosen on the part `test`. Finished steps are skipped when it runs again with the same
--work. Writes results.json with the plans and every score, and results.md, beside this file; for another part than test with its
name (results-dev.…).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "smollm2"))
from steps import run_once
from tables import report

MODEL, LAYERS = "smollm2-135m", 30
CALIBRATED = ["h2o", "h2o:{normalize: true, recent_fraction: 0}", "tova", "snapkv", "pyramidkv", "cake", "keydiff", "streaming-llm",
              "expected-attention", "blend:{policies: 'tova:1,h2o:1'}", "blend:{policies: 'tova:3,h2o:1'}",
              "blend:{policies: 'pyramidkv:1,h2o:1'}", "blend:{policies: 'pyramidkv:3,h2o:1'}", "blend:{policies: 'keydiff:1,tova:1,h2o:1'}"]
BLEND = {"policies": [{"policy": "pyramidkv", "share": 3}, {"policy": "h2o", "share": 1}]}
SINGLES = {"h2o": ("h2o", {}), "h2o-normalized": ("h2o", {"normalize": True, "recent_fraction": 0}), "snapkv-8": ("snapkv", {"window": 8}),
           "snapkv-16": ("snapkv", {"window": 16}), "pyramidkv": ("pyramidkv", {}), "tova": ("tova", {}), "keydiff": ("keydiff", {}),
           "expected-attention": ("expected-attention", {}), "blend-pyramidkv3-h2o1": ("blend", BLEND)}
SHIPPED = ["smollm2-135m-25", "smollm2-135m-12.5", "smollm2-135m-6.25", "smollm2-135m-after-25"]
EARLIER = {"kv-codes-chosen": "chosen-0.0625", "kv-codes-tuned-blend": "blend-pyramidkv3-h2o1-tuned-0.0625"}
# Where the question stands: inside of what is compressed, with the start of the answer after it, or after the compression.
FIELDS = "prompt=context,answers=answers,question=question,task=family"
POSITIONS = {"inside": ["--map", FIELDS], "lead-in": ["--map", f"{FIELDS},prefix=lead_in"], "after": ["--map", FIELDS, "--question-after"]}
KINDS = ["papers", "news", "code", "dialogue"]


def shown(args, path):
    plan = json.loads(subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    del plan["hash"]
    return plan


def write(args, name, plan):
    path = args.work / "plans" / f"{name}.yaml"
    path.write_text(json.dumps({**plan, "name": name}, indent=1) + "\n")
    return path


def in_codes(args, plan):
    """A plan with all its entries in q4 and the share of bytes that everything here has."""
    return {**plan, "budget": {"byte_ratio": args.share}, "kv": [{"layers": f"0-{LAYERS - 1}", "codes": "q4"}]}


def calibrate(args, seed):
    out = args.work / f"calibrated-{args.share:g}-{seed}"
    texts = sorted((args.texts / "calibration").glob("*.txt"))
    began = time.time()
    command = [args.binary, "calibrate", "-m", MODEL, "--device", "cpu", "--dtype", "native", "--data", *texts, "--objective", "both",
               "--phase", "prefill", "--budget-byte-ratio", args.share, "--kv-dtype", "q4", "--examples", args.examples, "--evidence",
               args.evidence, "--length", args.calibration_length, "--seed", seed, "--policies", ",".join(CALIBRATED), "--allocator",
               "calibrated", "--budget-signal", "effect", "--refine", args.refine, "--resume", "--out", out]
    if run_once(command, out, texts):
        print(f"calibration with seed {seed}: {time.time() - began:.0f} s", flush=True)
    return write(args, f"suite-{seed}", shown(args, out / "plan.yaml"))


def single(args, name):
    policy, params = SINGLES[name]
    rule = {"layers": f"0-{LAYERS - 1}", "policy": policy, **({"params": params} if params else {})}
    online = {"online": "pyramid"} if name == "pyramidkv" else {}
    return {"schema": 1, "layers": LAYERS, **online, "prefill": [rule], "decode": [{"layers": f"0-{LAYERS - 1}", "policy": "full"}]}


def shuffled(args, source, seed):
    out = args.work / "shuffled.yaml"
    subprocess.run([args.binary, "plan", "shuffle", source, "--keep", "budgets", "--seed", str(seed), "--out", out], check=True)
    plan = shown(args, out)
    out.unlink()
    return write(args, f"shuffle-{seed}", plan)


def make_plans(args):
    """The plans' files, in groups that share the prefill of a prompt: those at hand, shuffles, those that are calibrated here."""
    shipped = {name: shown(args, HERE.parents[1] / "plans" / f"{name}.yaml") for name in SHIPPED}
    paths = [write(args, f"{name}-q4", in_codes(args, plan)) for name, plan in shipped.items()]
    paths.append(write(args, "smollm2-135m-6.25-f16", {**shipped["smollm2-135m-6.25"], "budget": {"byte_ratio": args.share}}))
    earlier = json.loads((HERE.parent / "kv-codes" / "calibrated.json").read_text())["0.0625"]["plans"]
    paths += [write(args, name, in_codes(args, earlier[source])) for name, source in EARLIER.items()]
    paths += [write(args, name, in_codes(args, single(args, name))) for name in SINGLES]
    groups = {"": paths, "calibrated": [calibrate(args, seed) for seed in args.seeds]}
    source = args.work / "plans" / f"{args.shuffle_of}.yaml"
    groups["shuffles"] = [shuffled(args, source, seed) for seed in range(1, args.shuffles + 1)]
    return {name: paths for name, paths in groups.items() if paths}


def measure(args, name, groups, data, score, options):
    """For each plan its score for every sample, and the mean entries per layer and bytes after the prompt."""
    scores, held = {}, {}
    for group, plans in groups.items():
        out = args.work / args.part / (f"{name}-{group}" if group else name)
        command = [args.binary, "eval", "-m", MODEL, "--device", "cpu", "--dtype", "native", *options,
                   *(part for plan in plans for part in ("--plan", plan)), "--out", out]
        began = time.time()
        if run_once(command, out, [*plans, data]):
            print(f"{out.name}: {time.time() - began:.0f} s", flush=True)
        found = {}
        for line in (out / "predictions.jsonl").read_text().splitlines():
            one = json.loads(line)
            if one.get("truncated"):
                sys.exit(f"{data}: a prompt does not fit into the model's context")
            found.setdefault(one["plan"], []).append([round(one["scores"][field], 6) for field in (score, "kept", "kv_bytes")])
        for plan, rows in found.items():
            own, *sizes = map(list, zip(*rows))
            # FullKV runs in every group, of which the first counts: how many rows run together changes the last bits of sums.
            assert len(scores.setdefault(plan, own)) == len(own), (name, group, plan)
            held[plan] = [round(sum(column) / len(column), 1) for column in sizes]
    return {"scores": scores, "held": held}


def answers(args, position, length, groups):
    data = args.suite / args.part / f"needles-{length}.jsonl"
    about = [json.loads(line) for line in data.read_text().splitlines()]
    options = ["--task", "prompts", "--data", data, *POSITIONS[position], "--metric", "substring-all", "--max-new-tokens", "32"]
    own = measure(args, f"{position}-{length}", groups, data, "substring-all", options)
    return {"samples": [{field: one[field] for field in ("family", "filler", "place")} for one in about], **own}


def losses(args, kind, length, groups):
    data = args.suite / args.part / f"text-{kind}.txt"
    windows = args.windows if length == args.lengths[0] else args.windows_elsewhere
    options = ["--task", "ppl", "--text", data, "--length", length, "--continuation", 128, "--limit", windows, "--seed", 2401]
    return measure(args, f"{kind}-{length}", groups, data, "nll", options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--suite", type=pathlib.Path, required=True, help="folder that make.py made")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made, to calibrate on")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    names = lambda text: text.split(",")
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--part", choices=["dev", "test"], default="test")
    parser.add_argument("--lengths", type=numbers, default=[1500], help="the first one with shuffles")
    parser.add_argument("--positions", type=names, default=list(POSITIONS))
    parser.add_argument("--windows", type=int, default=8, help="of each kind of text")
    parser.add_argument("--windows-elsewhere", type=int, default=4, help="at the other lengths")
    parser.add_argument("--share", type=float, default=0.0625, help="of the bytes of an f16 cache of the prompt")
    parser.add_argument("--shuffles", type=int, default=10)
    parser.add_argument("--shuffle-of", default="smollm2-135m-25-q4", help="the plan whose policies they shuffle")
    parser.add_argument("--seeds", type=numbers, default=[], help="of calibrations; none without it")
    parser.add_argument("--examples", type=int, default=20, help="windows of text to calibrate on")
    parser.add_argument("--evidence", type=int, default=44, help="questions to calibrate on")
    parser.add_argument("--calibration-length", type=int, default=900)
    parser.add_argument("--refine", type=int, default=6, help="steps of the route's search")
    args = parser.parse_args()
    (args.work / "plans").mkdir(parents=True, exist_ok=True)
    groups = make_plans(args)
    left_out = ("binary", "work", "texts", "suite")
    results = {"settings": {name: own for name, own in vars(args).items() if name not in left_out},
               "plans": {path.stem: json.loads(path.read_text()) for paths in groups.values() for path in paths}, "needles": {}, "text": {}}
    stem = "results" if args.part == "test" else f"results-{args.part}"
    for length in args.lengths:
        # Shuffles run where plans are made for: at the first length, with the question inside.
        others = {name: paths for name, paths in groups.items() if name != "shuffles"}
        own = groups if length == args.lengths[0] else others
        steps = [("needles", position, answers, own if position == "inside" else others) for position in args.positions]
        steps[1:1] = [("text", kind, losses, own) for kind in KINDS]
        for group, name, step, plans in steps:
            results[group][f"{name}-{length}"] = step(args, name, length, plans)
            (HERE / f"{stem}.json").write_text(json.dumps(results) + "\n")
            (HERE / f"{stem}.md").write_text(report(results))


if __name__ == "__main__":
    main()
