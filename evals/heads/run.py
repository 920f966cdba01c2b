#!/usr/bin/env python3
"""Budgets of KV heads on the frozen suite: a sixteenth of the bytes of an f16 cache, prefill only, entries in q4.

Calibrates the parts of the heads on texts that the suite does not read, runs single policies under them, a plan that is routed under
them, and controls, and sets them beside the plans of ../suite/results.json, which ran on the same samples. Finished steps are skipped
when it runs again with the same --work. Writes results.json and results.md beside this file; for another part or model with its name
(results-dev.…, results-qwen2.5-coder-0.5b.…), for another share of the bytes with that (results-0.03125.…).
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "suite"), str(HERE.parent / "smollm2")]
import run as suite
from steps import run_once
from tables import report

DEFAULT = suite.MODEL
CALIBRATE = ["calibrate", "--device", "cpu", "--dtype", "native", "--phase", "prefill", "--kv-dtype", "q4", "--seed", "31", "--heads",
             "--resume"]
ROUTED = ["kvzip", "snapkv:window=16", "h2o:{normalize: true, recent_fraction: 0}", "streaming-llm", "tova"]
# One policy in all layers, under the parts of the heads.
SINGLES = {"kvzip": ("kvzip", {}), "snapkv-16": ("snapkv", {"window": 16}), "h2o-normalized": ("h2o", {"normalize": True, "recent_fraction": 0}),
           "streaming-llm": ("streaming-llm", {})}
# The plans of ../suite that are shown beside these.
EARLIER = ["smollm2-135m-25-q4", "kv-codes-chosen", "smollm2-135m-after-25-q4", "snapkv-16"]


def calibrate(args, name, options):
    out = args.work / name
    texts = sorted((args.texts / "calibration").glob("*.txt"))
    run_once([args.binary, *CALIBRATE, "-m", args.model, "--data", *texts, "--budget-byte-ratio", args.share, *options, "--out", out], out, texts)
    return suite.shown(args, out / "plan.yaml")


def with_policy(plan, policy, params):
    rule = {"policy": policy, **({"params": params} if params else {})}
    return {**plan, "prefill": [{**{key: own[key] for key in ("layers", "share")}, **rule} for own in plan["prefill"]]}


def moved(args, source, name, keep, seed):
    out = args.work / "moved.yaml"
    subprocess.run([args.binary, "plan", "shuffle", source, "--keep", keep, "--seed", str(seed), "--out", out], check=True)
    plan = suite.shown(args, out)
    out.unlink()
    return suite.write(args, name, plan)


def make_plans(args):
    heads = calibrate(args, "heads", ["--objective", "text", "--examples", args.examples, "--length", "1500", "--policies", "kvzip"])
    suite.LAYERS = heads["layers"]
    paths = [suite.write(args, f"heads-{name}", with_policy(heads, *own)) for name, own in SINGLES.items()]
    layers = {key: own for key, own in heads.items() if key != "heads"}
    paths.append(suite.write(args, "layers-adakv-kvzip", with_policy(layers, "adakv", {"base": {"policy": "kvzip"}})))
    controls = [suite.write(args, "layers-kvzip", with_policy(layers, "kvzip", {})),
                suite.write(args, "even-kvzip", suite.in_codes(args, {"schema": 1, "layers": suite.LAYERS, "decode": heads["decode"], "prefill": [
                    {"layers": f"0-{suite.LAYERS - 1}", "policy": "kvzip"}]}))]
    source = args.work / "plans" / f"heads-{args.base}.yaml"
    controls += [moved(args, source, f"moved-heads-{seed}", "route", seed) for seed in range(1, args.moved + 1)]
    groups = {"": paths, **({"controls": controls} if args.controls else {})}
    if args.routed:
        groups["routed"] = make_routed(args)
        source = groups["routed"][0]
        groups["single"] = [source.with_name("routed-single.yaml")]
        groups["shuffles"] = [moved(args, source, f"routed-moved-{seed}", "budgets", seed)
                              for seed in range(args.moved + 1, args.moved + args.shuffles + 1)]
    return {name: paths for name, paths in groups.items() if paths}


def make_routed(args):
    """A plan that is routed under parts of its own, and the same with its policies in other layers; budgets stay."""
    routed = calibrate(args, "routed", ["--objective", "both", "--question-after", "--examples", "10", "--evidence", "12", "--length", "900", "--policies",
                                        ",".join(ROUTED), "--allocator", "calibrated", "--budget-signal", "effect", "--refine", "8"])
    source = suite.write(args, "heads-routed", routed)
    # Its budgets and parts with one policy in all layers.
    suite.write(args, "routed-single", with_policy(routed, *SINGLES[args.base]))
    return [source, *(moved(args, source, f"routed-moved-{seed}", "budgets", seed) for seed in range(1, args.moved + 1))]


def tables(results):
    text = report(results).replace("# Plans on the frozen suite", "# Budgets of KV heads on the frozen suite", 1)
    return text.replace("The plan in bold is the one whose policies are shuffled.", "The plan in bold was fixed before this part was read.", 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--suite", type=pathlib.Path, required=True, help="folder that ../suite/make.py made")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made, to calibrate on")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    parser.add_argument("--model", default=DEFAULT, help="a name that polykv knows, or the path of a GGUF file")
    parser.add_argument("--part", choices=["dev", "test"], default="test")
    parser.add_argument("--positions", type=lambda text: text.split(","), default=["after", "inside", "lead-in"])
    parser.add_argument("--windows", type=int, default=8, help="of each kind of text")
    parser.add_argument("--share", type=float, default=0.0625, help="of the bytes of an f16 cache of the prompt")
    parser.add_argument("--base", choices=SINGLES, default="kvzip", help="the policy whose heads' budgets are moved to other layers as a control")
    parser.add_argument("--examples", default="16", help="windows of text that the parts of the heads are found on")
    parser.add_argument("--no-controls", dest="controls", action="store_false", help="leave out what has other budgets in the heads")
    parser.add_argument("--moved", type=int, default=3)
    parser.add_argument("--shuffles", type=int, default=0, help="more of the route's policies in other layers, on text and with the first place of "
                        "the question")
    parser.add_argument("--routed", action="store_true", help="calibrate a route under the heads' budgets, too, and run it beside the others")
    args = parser.parse_args()
    args.lengths, args.shuffle_of = [1500], f"heads-{args.base}"
    suite.MODEL = args.model
    # A file's name without its folders and its kind.
    named = pathlib.Path(args.model).name.removesuffix(".gguf")
    (args.work / "plans").mkdir(parents=True, exist_ok=True)
    groups = make_plans(args)
    left_out = ("binary", "work", "texts", "suite")
    results = {"settings": {**{name: own for name, own in vars(args).items() if name not in left_out}, "model": named},
               "plans": {path.stem: json.loads(path.read_text()) for paths in groups.values() for path in paths}, "needles": {}, "text": {}}
    share = [f"{args.share:g}"] if args.share != parser.get_default("share") else []
    earlier = json.loads((HERE.parent / "suite" / "results.json").read_text()) if (args.part, args.model, share) == ("test", DEFAULT, []) else {"needles": {}, "text": {}}
    names = ["results", *share, *([args.part] if args.part != "test" else []), *([named] if args.model != DEFAULT else [])]
    stem = "-".join(names)
    steps = [("needles", position, suite.answers) for position in args.positions]
    steps[1:1] = [("text", kind, suite.losses) for kind in suite.KINDS]
    for group, name, step in steps:
        # Controls run on text and with the first place of the question.
        own = {key: paths for key, paths in groups.items()
               if key not in ("controls", "shuffles") or group == "text" or name == args.positions[0]}
        found = step(args, name, 1500, own)
        known = earlier[group].get(f"{name}-1500", {"scores": {}, "held": {}})
        if known["scores"]:
            # The samples are the same: so is what FullKV makes of them, but for the sums of other instructions.
            assert len(known["scores"]["full"]) == len(found["scores"]["full"]), name
        for plan in EARLIER:
            if plan in known["scores"]:
                found["scores"][plan], found["held"][plan] = known["scores"][plan], known["held"][plan]
        results[group][f"{name}-1500"] = found
        (HERE / f"{stem}.json").write_text(json.dumps(results) + "\n")
        (HERE / f"{stem}.md").write_text(tables(results))


if __name__ == "__main__":
    main()
