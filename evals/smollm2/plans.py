"""What is measured: single policies, blends, what the calibrations find, and controls made of it."""

import json
import subprocess
import sys
import time

from steps import run_once

LAYERS = 30
CALIBRATION_SEED = 11

H2O = "normalize: true, recent_fraction: 0"
# Candidates of every route, and the blends that some may choose as well.
ROUTED = ["h2o", "h2o:{%s}" % H2O, "tova", "snapkv", "pyramidkv", "cake", "keydiff", "streaming-llm", "expected-attention"]
BLEND_MEMBERS = {
    "blend-tova1-h2o1": [("tova", 1), ("h2o", 1)],
    "blend-tova3-h2o1": [("tova", 3), ("h2o", 1)],
    "blend-pyramidkv1-h2o1": [("pyramidkv", 1), ("h2o", 1)],
    "blend-pyramidkv3-h2o1": [("pyramidkv", 3), ("h2o", 1)],
    "blend-keydiff-tova-h2o": [("keydiff", 1), ("tova", 1), ("h2o", 1)],
}
SINGLES = ["streaming-llm", "snapkv", "pyramidkv", "cake", "tova", "h2o", "scissorhands", "d2o", "cam", "expected-attention",
           "lagkv", "criticalkv", "knorm", "keydiff", "random"]
# Published methods that come with an allocator of their own.
ONLINE = {"pyramidkv": "pyramid", "cake": "cake"}

# Folder of measurements, plan, what calibrate is told.
CALIBRATIONS = {
    "prefill": [
        ("text", "text", ["--objective", "text"]),
        ("text", "text-allocated", ["--objective", "text", "--allocator", "calibrated"]),
        ("text-ppl", "text-ppl", ["--objective", "text", "--signal", "ppl"]),
        ("text-ppl", "text-ppl-allocated", ["--objective", "text", "--signal", "ppl", "--allocator", "calibrated",
                                            "--budget-signal", "ppl"]),
        ("both", "both", ["--objective", "both"]),
        ("both", "both-allocated", ["--objective", "both", "--allocator", "calibrated"]),
        ("both", "both-refined", ["--objective", "both", "--refine"]),
        ("both", "both-budgets", ["--objective", "both", "--allocator", "calibrated", "--budget-signal", "effect", "--refine"]),
        ("evidence", "evidence", ["--objective", "evidence"]),
        ("after", "after", ["--objective", "evidence", "--question-after"]),
        ("after", "after-allocated", ["--objective", "evidence", "--question-after", "--allocator", "calibrated"]),
        ("after", "after-refined", ["--objective", "evidence", "--question-after", "--refine"]),
        ("after", "after-budgets", ["--objective", "evidence", "--question-after", "--allocator", "calibrated", "--budget-signal",
                                    "effect", "--refine"]),
    ],
    "decode": [
        ("text", "text", ["--objective", "text"]),
        ("text", "text-allocated", ["--objective", "text", "--allocator", "calibrated"]),
        ("text", "text-budgets", ["--objective", "text", "--allocator", "calibrated", "--budget-signal", "effect", "--refine"]),
        ("both", "both", ["--objective", "both"]),
    ],
}
WITH_BLENDS = {"both", "evidence", "after"}
INVERTED = ["text", "both"]
# Single policies and blends that also run with the budgets of this plan: what the budgets do, and what the route adds.
BUDGETS_OF = "both-budgets"
WITH_BUDGETS = ["h2o", "h2o-normalized", "tova", "snapkv", "pyramidkv", "keydiff", "blend-pyramidkv1-h2o1", "blend-pyramidkv3-h2o1"]
# The plan that the target for questions after the compression is about.
AFTER_PLAN = "after-budgets"


def plan_json(args, path):
    shown = json.loads(subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    del shown["hash"]
    return shown


def write_plan(folder, name, plan):
    """As JSON, which is YAML too."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({**plan, "name": name}, indent=1) + "\n")
    return path


def uniform(args, ratio, policy, params=None, online=None):
    """One policy in all layers of the phase; the other phase keeps everything."""
    layers = f"0-{LAYERS - 1}"
    rule = {"layers": layers, "policy": policy, **({"params": params} if params else {})}
    phases = {phase: [rule if phase == args.phase else {"layers": layers, "policy": "full"}] for phase in ["prefill", "decode"]}
    return {"schema": 1, "layers": LAYERS, "budget": {"ratio": ratio}, **({"online": online} if online else {}), **phases}


def baselines(args, folder, ratio):
    add = lambda name, *plan: write_plan(folder, name, uniform(args, ratio, *plan))
    plans = [add(name, name, None, ONLINE.get(name)) for name in SINGLES if name not in args.without]
    plans.append(add("h2o-normalized", "h2o", {"normalize": True, "recent_fraction": 0}))
    if args.phase == "prefill":
        plans += [add(f"{name}-uniform", name) for name in ONLINE]
        for name, members in BLEND_MEMBERS.items():
            members = [{"policy": policy, "share": share} for policy, share in members]
            plans.append(add(name, "blend", {"policies": members}))
    return plans


def calibrate(args, work, ratio, folder, known):
    """One plan after the other; those with the same measurements share them. Not the known ones."""
    plans = []
    blends = ["blend:{policies: [%s]}" % ", ".join("{policy: %s, share: %s}" % member for member in members)
              for members in BLEND_MEMBERS.values()]
    for group, name, options in CALIBRATIONS[args.phase]:
        if name not in args.calibrations or name in known:
            continue
        policies = ROUTED + (blends if group in WITH_BLENDS and args.phase == "prefill" else [])
        if options[-1] == "--refine":
            options = [*options, str(args.refine)]
        measured, kept = work / "calibrations" / group, work / "calibrations" / f"plan-{name}"
        command = [args.binary, "calibrate", "-m", args.model, "--device", args.device, "--dtype", "f32", "--data", *args.calibration_text,
                   "--examples", args.examples, "--evidence", args.evidence, "--length", args.calibration_length,
                   "--continuation", args.calibration_continuation, "--seed", CALIBRATION_SEED, "--budget-ratio", ratio,
                   "--phase", args.phase, "--policies", ",".join(policies), *options, "--resume", "--out", measured]
        began = time.time()
        if run_once(command, kept, args.calibration_text):
            for file in ["plan.yaml", "profile.json"]:
                (kept / file).write_bytes((measured / file).read_bytes())
            print(f"{ratio}: calibrated {name} in {time.time() - began:.0f} s", flush=True)
        plans.append(write_plan(folder, name, plan_json(args, kept / "plan.yaml")))
        if name in INVERTED:
            inverse = kept / "inverse.yaml"
            subprocess.run([args.binary, "plan", "invert", kept / "plan.yaml", "--out", inverse], check=True)
            plans.append(write_plan(folder, f"{name}-inverse", plan_json(args, inverse)))
    return plans


def earlier(args, ratio):
    """The results that --plans-of names, at this budget."""
    return json.loads((args.plans_of / f"{ratio:g}.json").read_text())


def new_plans(args, work, ratio, folder, known):
    """Those that the results do not hold yet."""
    if args.plans_of:
        plans = earlier(args, ratio)["plans"]
        unknown = set(args.plans or ()) - set(plans)
        if unknown:
            sys.exit(f"--plans {', '.join(sorted(unknown))}: not in {args.plans_of} at {ratio:g}")
        names = [name for name in args.plans or plans if name not in known]
        return [write_plan(folder, name, plans[name]) for name in names]
    plans = [plan for plan in baselines(args, folder, ratio) if plan.stem not in known]
    plans += calibrate(args, work, ratio, folder, known)
    return plans + budget_controls(folder, args.phase, plans)


def budget_controls(folder, phase, plans):
    """One policy in all layers, with each layer's budget as in the calibrated plan."""
    read = lambda name: json.loads((folder / f"{name}.yaml").read_text())
    if folder / f"{BUDGETS_OF}.yaml" not in plans:
        return []
    controls = []
    for name in WITH_BUDGETS:
        plan = read(BUDGETS_OF)
        single = read(name)[phase][0]
        own = {"policy": single["policy"], **({"params": single["params"]} if "params" in single else {})}
        plan[phase] = [{"layers": rule["layers"], **({"share": rule["share"]} if "share" in rule else {}), **own} for rule in plan[phase]]
        controls.append(write_plan(folder, f"{name}-at-budgets", plan))
    return controls


def shuffles(args, folder):
    """The primary plan's rules in other layers."""
    plans = []
    for seed in range(1, args.shuffles + 1):
        shuffled = folder / "shuffled"
        subprocess.run([args.binary, "plan", "shuffle", folder / f"{args.primary}.yaml", "--seed", str(seed), "--out", shuffled],
                       check=True)
        plans.append(write_plan(folder, f"shuffle-{seed}", plan_json(args, shuffled)))
        shuffled.unlink()
    return plans
