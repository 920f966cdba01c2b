#!/usr/bin/env python3
"""Does routing add to searched budgets? Routes that `polykv calibrate` finds for SmolLM2-135M-Instruct beside single policies that
got the same search for their budgets, and beside the routes themselves with their policies in other layers.

For each seed a calibration over all candidates, and of some kinds of policy one alone, in the variant that the former scored best:
`…-alone`. Alone, a policy leaves the score without a scale; `…-tuned` has the budgets that its measured effects recommend on the
scale of the calibration over all, as far of the way as the search went there. `…-equal` and `…-at-route` have equal budgets and those
of the route. `mixed` is the best route of several policies that the search tried, at the budgets of the route, where this has a
single policy. All plans are in results.json before the test runs. Finished steps are skipped when it runs again with the same --work.
The texts are those of ../smollm2/texts.py. Writes results.json and results.md beside this file.
"""

import argparse
import collections
import hashlib
import json
import math
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "smollm2"))
from intervals import interval
from steps import run_once

HERE = pathlib.Path(__file__).parent
MODEL, LAYERS, RATIO = "smollm2-135m", 30, 0.125
TEST_SEED = 9000
# The candidates of the route, by kind; of each kind one variant runs in all layers.
KINDS = {
    "h2o": {"h2o": ("h2o", {}), "h2o-normalized": ("h2o", {"normalize": True, "recent_fraction": 0}),
            "h2o-normalized-recent": ("h2o", {"normalize": True, "recent_fraction": 0.25})},
    "snapkv": {"pyramidkv": ("pyramidkv", {}), **{f"snapkv-{window}": ("snapkv", {"window": window}) for window in (4, 8, 16)}},
    "blend": {"blend": ("blend", {"policies": "pyramidkv:3,h2o:1"})},
    "keydiff": {"keydiff": ("keydiff", {})},
    "tova": {"tova": ("tova", {})},
}
CANDIDATES = {name: one for variants in KINDS.values() for name, one in variants.items()}
EARLIER = ["h2o-normalized", "snapkv-16", "blend", "keydiff"]  # with the budgets of an earlier plan
PARTS = [1 / 3, 2 / 3, 1]  # of the way to the budgets that the effects recommend, as in the product's search


def texts(args):
    return sorted((args.texts / "calibration").glob("*.txt"))


def calibrate(args, seed, name, candidates, refine):
    """The prefill's rules and the profile of a calibration over some candidates."""
    out = args.work / f"seed-{seed}" / f"calibration-{name}"
    policies = ",".join(policy + (f":{json.dumps(params)}" if params else "") for policy, params in candidates)
    command = [args.binary, "calibrate", "-m", MODEL, "--device", "cpu", "--dtype", "f32", "--data", *texts(args), "--objective", "both",
               "--phase", "prefill", "--budget-ratio", RATIO, "--policies", policies, "--allocator", "calibrated", "--budget-signal",
               "effect", "--refine", refine, "--seed", seed, "--examples", args.examples, "--evidence", args.evidence, "--length",
               args.length, "--continuation", args.continuation, "--resume", "--out", out]
    run_once(command, out, texts(args))
    return by_layer(shown(args, out / "plan.yaml")), json.loads((out / "profile.json").read_text())["prefill"]


def shown(args, path):
    return json.loads(subprocess.run([args.binary, "plan", "show", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)


def by_layer(plan):
    """The rule of the prefill for each layer."""
    layers = {}
    for rule in plan["prefill"]:
        first, _, last = str(rule["layers"]).partition("-")
        layers |= {layer: {**rule, "layers": layer} for layer in range(int(first), int(last or first) + 1)}
    return [layers[layer] for layer in sorted(layers)]


def rules(names, shares=(1,) * LAYERS):
    """A candidate and a share of the budget for each layer."""
    picks = [(layer, *CANDIDATES[name], share) for layer, (name, share) in enumerate(zip(names, shares, strict=True))]
    return [{"layers": layer, "policy": policy, "share": share, **({"params": params} if params else {})}
            for layer, policy, params, share in picks]


def scale_of(singles):
    """For each kind of data the best single policy's loss and the distance to the median one, as `calibrate` has them."""
    losses = {kind: [one[kind] for one in singles] for kind in singles[0]}
    return {kind: (min(own), max(statistics.median(own) - min(own), 1e-3)) for kind, own in losses.items()}


def score(losses, scale):
    regrets = [(losses[kind] - best) / spread for kind, (best, spread) in scale.items()]
    return (max(regrets) + statistics.fmean(regrets)) / 2


def recommended(found, scale, part):
    """Budgets by the effects of a calibration's screening on another scale, by the rule of the product's search."""
    start, budgets = found["tried"][0]["losses"], found["tried"][0]["budgets"]
    more = [{kind: start[kind] + found["effects"][kind][layer] for kind in start} for layer in range(LAYERS)]
    roots = [max(score(start, scale) - score(losses, scale), 0) ** 0.5 for losses in more]
    floors = [budget // 4 for budget in budgets]
    wanted = [(1 - part) * budget + part * sum(budgets) * root / sum(roots) for budget, root in zip(budgets, roots)]
    above = [max(weight - floor, 0) for weight, floor in zip(wanted, floors)]
    return [round(floor + (sum(budgets) - sum(floors)) * weight / sum(above)) for floor, weight in zip(floors, above)]


def mixed(found):
    """The best route of several policies that a search tried, if it took none."""
    best = (math.inf, [])
    for move in found["moves"]:
        source = found["routes"][move["route"]] if "route" in move else [move["candidate"]] * LAYERS
        layers = [range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1) for part in move["layers"].split(",")]
        tried = [source[layer] if any(layer in own for own in layers) else pick for layer, pick in enumerate(found["picks"])]
        if len(set(tried)) > 1:
            best = min(best, (move["score"], tried))
    return [list(CANDIDATES)[pick] for pick in best[1]]


def write(folder, name, layers):
    path = folder / f"{name}.yaml"
    plan = {"schema": 1, "name": name, "layers": LAYERS, "budget": {"ratio": RATIO}, "prefill": layers,
            "decode": [{"layers": f"0-{LAYERS - 1}", "policy": "full"}]}
    path.write_text(json.dumps(plan, indent=1) + "\n")
    return path


def evaluate(args, work, plans, task, batch):
    """The NLL of a batch's samples under every plan: four windows of its part of the text, or a needle at seven depths."""
    text = args.work / f"test-{batch}.txt"
    whole = (args.texts / "test.txt").read_text()
    text.write_text(whole[batch * len(whole) // args.batches:(batch + 1) * len(whole) // args.batches])
    options = {"text": ["--task", "ppl", "--continuation", 128, "--limit", 4, "--text", text],
               "needle": ["--task", "needle", "--depth", "0.05,0.2,0.35,0.5,0.65,0.8,0.95", "--limit", 1, "--likelihood-only"]}[task]
    out = work / f"test-{task}-{batch}"
    command = [args.binary, "eval", "-m", MODEL, "--device", "cpu", "--dtype", "f32", *options, "--length", args.test_length,
               "--seed", TEST_SEED + batch, *(part for plan in plans for part in ("--plan", plan)), "--out", out]
    run_once(command, out, [*plans, text])
    scores = {}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        one = json.loads(line)
        scores.setdefault(one["plan"], []).append(round(one["scores"]["nll"], 6))
        # Every plan keeps as much as every other one.
        assert one["plan"] == "full" or abs(one["scores"]["kept"] - RATIO * one["prompt_tokens"]) <= 1, one
    return scores


def shuffles(args, route, seed):
    """The route's policies in other layers."""
    paths, out = {}, route.with_name("shuffled")
    for shuffle in range(1, args.shuffles + 1):
        subprocess.run([args.binary, "plan", "shuffle", route, "--keep", "budgets", "--seed", str(shuffle), "--out", out], check=True)
        paths[f"shuffle-{shuffle}"] = write(route.parent, f"shuffle-{shuffle}-{seed}", by_layer(shown(args, out)))
        out.unlink()
    return paths


def earlier_plan(args):
    """An earlier route beside itself without its budgets, its budgets without it, and its shuffles."""
    folder = args.work / args.plan.stem / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    route = by_layer(shown(args, args.plan))
    layers = {"route": route, "route-equal": [{**rule, "share": 1} for rule in route]}
    layers |= {f"{name}-at-route": rules([name] * LAYERS, [rule["share"] for rule in route]) for name in EARLIER}
    paths = {name: write(folder, name, own) for name, own in layers.items()}
    paths |= shuffles(args, paths["route"], "earlier")
    return paths, {"plans": {name: shown(args, path) for name, path in paths.items()}}


def make_plans(args, seed):
    """Everything that is chosen on the calibration's data."""
    folder = args.work / f"seed-{seed}" / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    route, profile = calibrate(args, seed, "route", CANDIDATES.values(), args.refine)
    losses = dict(zip(CANDIDATES, (move["losses"] for move in profile["refined"]["moves"])))
    scale = scale_of(list(losses.values()))
    found = profile["budgets_refined"]
    part = [one["budgets"] for one in found["tried"]].index(found["budgets"]) / 3
    layers = {"route": route, "route-equal": [{**rule, "share": 1} for rule in route]}
    if len(set(profile["refined"]["picks"])) == 1:
        layers["mixed"] = rules(mixed(profile["refined"]), found["budgets"])
    variants = {kind: min(own, key=lambda name: score(losses[name], scale)) for kind, own in KINDS.items() if kind in args.kinds}
    for kind, name in variants.items():
        layers |= {f"{kind}-equal": rules([name] * LAYERS), f"{kind}-at-route": rules([name] * LAYERS, found["budgets"])}
        if kind in args.tuned:
            layers[f"{kind}-alone"], alone = calibrate(args, seed, name, [CANDIDATES[name]], 1)
            layers[f"{kind}-tuned"] = rules([name] * LAYERS, recommended(alone["budgets_refined"], scale, part))
    paths = {name: write(folder, f"{name}-{seed}", own) for name, own in layers.items()}
    paths |= shuffles(args, paths["route"], seed) if "mixed" not in paths else {}
    return paths, {"variants": variants, "budgets": f"{3 * part:.0f} of 3", "losses": losses,
                   "plans": {name: shown(args, path) for name, path in paths.items()}}


def less(own, task, base, names):
    """The NLL of a plan less the mean of others', per sample."""
    nll = own["scores"][task]
    return [one - statistics.fmean(other) for one, *other in zip(nll[base], *(nll[plan] for plan in names), strict=True)]


def table(own, base):
    """A route beside the other plans, and its rank among its shuffles."""
    shuffles = [plan for plan in own["plans"] if plan.startswith("shuffle")]
    others = {plan: [plan] for plan in own["plans"] if plan not in (base, *shuffles)}
    others |= {"mean of its shuffles": shuffles} if shuffles else {}
    lines = [f"| {base} less | text | needles |", "|---|--:|--:|"]
    for name, names in others.items():
        lines.append(f"| {name} | {' | '.join(interval(less(own, task, base, names)) for task in own['scores'])} |")
    if shuffles:
        behind = [{plan: -statistics.fmean(less(own, task, base, [plan])) for plan in shuffles} for task in own["scores"]]
        spreads = [statistics.stdev(one.values()) for one in behind]
        ranks = [1 + sum(loss <= 0 for loss in one.values()) for one in behind]
        both = 1 + sum(sum(one[plan] / spread for one, spread in zip(behind, spreads)) <= 0 for plan in shuffles)
        lines.append(f"| rank among itself and {len(shuffles)} shuffles; by the mean of both z-scores: {both} | {ranks[0]} | {ranks[1]} |")
    return [*lines, ""]


def over(seeds):
    """The route less other plans, over seeds: the mean with its interval over samples, and each seed's mean."""
    first = next(iter(seeds.values()))["plans"]
    shared = [plan for plan in first if plan != "route" and all(plan in own["plans"] for own in seeds.values())]
    lines = ["| route less | text: mean over seeds | each | needles: mean over seeds | each |", "|---|--:|--:|--:|--:|"]
    for plan in shared:
        cells = []
        for task in ("text", "needle"):
            each = [less(own, task, "route", [plan]) for own in seeds.values()]
            cells.append(interval([statistics.fmean(sample) for sample in zip(*each)]))
            cells.append(", ".join(f"{statistics.fmean(one):+.3f}" for one in each))
        lines.append(f"| {plan} | {' | '.join(cells)} |")
    return [*lines, ""]


def label(rule):
    """A candidate's name, or else the policy's."""
    own = (rule["policy"], rule.get("params", {}))
    return next((name for name, candidate in CANDIDATES.items() if candidate == own), rule["policy"])


def report(args, seeds, earlier):
    lines = ["# Routes and budgets: results", "", f"Made by `run.py`: {100 * RATIO:g} % of prompts of {args.test_length} tokens kept. "
             "NLL in nat, with 95 % intervals of a bootstrap over samples; in differences, below zero the first plan is better. What the "
             "plans are stands in `run.py`.", ""]
    lines += ["## Over seeds", "", *over(seeds)]
    for title, own in {**{f"Seed {seed}": own for seed, own in seeds.items()}, **earlier}.items():
        samples = [len(nll["full"]) for nll in own["scores"].values()]
        lines += [f"## {title}", "", f"{samples[0]} windows of text, {samples[1]} needles."]
        bases = [plan for plan in ("route", "mixed") if plan in own["plans"]]
        for base in bases:
            picks = collections.Counter(map(label, by_layer(own["plans"][base])))
            lines.append(f"Layers of {base}: {', '.join(f'{name} {count}' for name, count in picks.most_common())}.")
        if "variants" in own:
            lines.append(f"Variants: {', '.join(own['variants'].values())}. Budgets: {own['budgets']} of the way.")
        lines.append("")
        for base in bases:
            lines += table(own, base)
        lines += ["| plan | text: loss against FullKV | needles |", "|---|--:|--:|"]
        for plan in own["plans"]:
            losses = [interval([a - b for a, b in zip(nll[plan], nll["full"], strict=True)]) for nll in own["scores"].values()]
            lines.append(f"| {plan} | {' | '.join(losses)} |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="path of the polykv binary, a release build")
    parser.add_argument("--texts", type=pathlib.Path, required=True, help="folder that ../smollm2/texts.py made")
    parser.add_argument("--work", type=pathlib.Path, default="work", help="folder for steps, which a later run goes on from")
    names = lambda text: text.split(",")
    parser.add_argument("--seeds", type=names, default=["1", "2"])
    parser.add_argument("--kinds", type=names, default=["blend", "snapkv", "h2o"], help="of policy to set beside the route")
    parser.add_argument("--tuned", type=names, default=["blend", "snapkv"], help="which of them to calibrate alone")
    parser.add_argument("--plan", type=pathlib.Path, help="a route of an earlier calibration, to test beside its controls")
    parser.add_argument("--examples", type=int, default=6, help="windows of text to calibrate on")
    parser.add_argument("--evidence", type=int, default=8, help="questions to calibrate on")
    parser.add_argument("--length", type=int, default=640, help="tokens of the prompts to calibrate on")
    parser.add_argument("--continuation", type=int, default=64, help="tokens after a window that the calibration scores")
    parser.add_argument("--refine", type=int, default=76, help="steps of the route's search beside those that it begins with")
    parser.add_argument("--shuffles", type=int, default=20, help="of the policies of a route of several")
    parser.add_argument("--batches", type=int, default=4, help="of four windows and seven needles, to test on")
    parser.add_argument("--plan-batches", type=int, help="for --plan, the first so many of them only")
    parser.add_argument("--test-length", type=int, default=1500)
    args = parser.parse_args()
    made = {seed: make_plans(args, seed) for seed in args.seeds}
    earlier = {args.plan.stem: earlier_plan(args)} if args.plan else {}
    settings = {name: value for name, value in vars(args).items() if name not in ("binary", "texts", "work", "plan", "plan_batches")}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [args.texts / "test.txt", *texts(args)]}
    results = {"settings": {"model": MODEL, "ratio": RATIO, **settings, "sha256": hashes}}
    about = lambda group: {name: one for name, (_, one) in group.items()}
    results |= {"seeds": about(made), "earlier": about(earlier)}
    save = lambda: (HERE / "results.json").write_text(json.dumps(results) + "\n")
    # The plans are on disk before anything of the test runs under them.
    save()
    same = lambda path: json.dumps(by_layer(shown(args, path)), sort_keys=True)
    of_plan = args.batches if args.plan_batches is None else args.plan_batches
    groups = [(args.work, made, args.batches), *((args.work / name, {name: one}, of_plan) for name, one in earlier.items())]
    for work, group, batches in groups:
        # Plans that say the same run once, all over the same prompts.
        once = {same(path): path for paths, _ in reversed(group.values()) for path in reversed(paths.values())}
        for batch in range(batches):
            for task in ("text", "needle"):
                nll = evaluate(args, work, list(once.values()), task, batch)
                for paths, one in group.values():
                    own = one.setdefault("scores", {}).setdefault(task, {})
                    for name, scores in [("full", nll["full"]), *((name, nll[once[same(path)].stem]) for name, path in paths.items())]:
                        own.setdefault(name, []).extend(scores)
            save()
    (HERE / "results.md").write_text(report(args, results["seeds"], results["earlier"]))


if __name__ == "__main__":
    main()
