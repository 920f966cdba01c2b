#!/usr/bin/env python3
"""Tables, targets and figures from what run.py measured: results/RATIO.json and results/RATIO-LABEL.json to results.md and
results/RATIO.svg.

Differences are paired over samples, with 95 % intervals of a seeded bootstrap (10,000 resamples of the mean). What it draws are
whole batches: the needles of one batch are one number at seven depths of one text, and its windows are neighbours.
"""

import argparse
import json
import pathlib
import random
import statistics

import plans
import run

RESAMPLES = 10_000
BOOTSTRAP_SEED = 7
# How much text NLL the plan may lose against the best single policy, in nats.
ALLOWED = {0.25: 0.005, 0.125: 0.01}
SINGLES = [*plans.SINGLES, "h2o-normalized", *(f"{name}-uniform" for name in plans.ONLINE)]
# What the primary plan is set beside, after the best single policies.
BESIDE = ["both", "both-allocated", "evidence", "text", "text-allocated", "text-ppl", "text-ppl-allocated", "after-budgets",
          "both-budgets-tracked",
          *(f"{name}-at-budgets" for name in plans.WITH_BUDGETS), *plans.BLEND_MEMBERS]
_resamples = {}


def interval(values):
    """Mean and 95 % interval. All differences of as many samples share their resamples."""
    count = len(values)
    if count not in _resamples:
        rng = random.Random(BOOTSTRAP_SEED)
        _resamples[count] = [rng.choices(range(count), k=count) for _ in range(RESAMPLES)]
    means = sorted(sum(values[i] for i in picks) / count for picks in _resamples[count])
    return statistics.fmean(values), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def by_batch(task, values):
    """The mean of each batch; all have as many samples."""
    size = run.TASKS[task][0]
    return [statistics.fmean(values[first:first + size]) for first in range(0, len(values), size)]


def score_of(task):
    return "kl" if task == "fidelity" else "nll"


def shown(difference, digits=3):
    mean, low, high = difference
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


class Results:
    def __init__(self, path):
        data = json.loads(path.read_text())
        self.settings, self.plans, self.scores, self.shuffled = (data[key] for key in ["settings", "plans", "scores", "shuffles"])
        self.finished, self.stem = data["finished"], path.stem
        self.primary, self.ratio, self.phase = (self.settings[key] for key in ["primary", "ratio", "phase"])
        label = self.stem.partition("-")[2]
        self.label = label if label != self.phase else ""
        self.shuffles = [name for name in self.shuffled.get("text", {}) if name != "full"]
        names = [name for name in next(iter(self.scores.values()), {}) if name != "full"]
        rules = lambda name: {key: value for key, value in self.plans[name].items() if key != "name"}
        first = lambda name: next(other for other in names if rules(other) == rules(name))
        # Searches that end where they began make a plan twice.
        self.same = {name: first(name) for name in names if first(name) != name and name != self.primary}
        self.rows = [name for name in names if name not in self.same]

    def values(self, task, plan, score=None):
        return self.scores[task][plan][score or score_of(task)]

    def mean(self, task, plan, score=None):
        return statistics.fmean(self.values(task, plan, score))

    def difference(self, task, plan, other="full", score=None):
        pairs = zip(self.values(task, plan, score), self.values(task, other, score), strict=True)
        return interval(by_batch(task, [own - base for own, base in pairs]))

    def shuffled_mean(self, task, name):
        """Of a shuffle or a plan, on the samples that the shuffles have run."""
        shuffled = self.shuffled[task]
        count = len(shuffled[self.shuffles[0]]["nll"])
        return statistics.fmean(shuffled[name]["nll"] if name in shuffled else self.values(task, name)[:count])

    def best_single(self, task):
        return min((name for name in SINGLES if name in self.rows), key=lambda name: self.mean(task, name))

    def order(self, name):
        return self.mean(next(iter(self.scores)), name)

    def uniform(self):
        return len(self.plans[self.primary][self.phase]) == 1

    def generated(self):
        return not self.settings["likelihood_only"]

    def pairs(self):
        """Whether there is text and needles to weigh against each other."""
        return self.phase == "prefill" and {"text", "needle"} <= set(self.scores)

    def needles(self):
        return [task for task in self.scores if task.startswith("needle")]


def table(own, rows):
    """The best on the first task first."""
    first = ["text ΔNLL"] if "text" in own.scores else []
    header = ["plan", *first]
    for task in own.needles():
        header += [f"{task}: found"] * own.generated() + [f"{task}: ΔNLL"]
    best = own.best_single("fidelity") if own.phase == "decode" else None
    if "fidelity" in own.scores:
        header += ["KL", *([f"less that of {best}"] if best else []), "its median", "same top token"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name in sorted(rows, key=own.order):
        cells = [f"**{name}**" if name == own.primary else name]
        if first:
            cells.append(shown(own.difference("text", name), 4))
        for task in own.needles():
            if own.generated():
                found = [100 * part for part in interval(by_batch(task, own.values(task, name, "exact")))]
                cells.append(f"{found[0]:.0f} % [{found[1]:.0f}, {found[2]:.0f}]")
            cells.append(shown(own.difference(task, name), 2))
        if "fidelity" in own.scores:
            kl, same = (interval(own.values("fidelity", name, score)) for score in ["kl", "agreement"])
            same = [100 * part for part in same]
            median = statistics.median(own.values("fidelity", name))
            cells.append(f"{kl[0]:.4f} [{kl[1]:.4f}, {kl[2]:.4f}]")
            if best:
                cells.append(shown(own.difference("fidelity", name, best), 4) if name != best else "")
            cells += [f"{median:.4f}", f"{same[0]:.1f} % [{same[1]:.1f}, {same[2]:.1f}]"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tables(own):
    """What the calibrations found beside the best single policy of each task; then every plan but the shuffles."""
    full = ", ".join(f"{task} NLL {own.mean(task, 'full'):.3f}" for task in own.scores if task != "fidelity")
    same = ", ".join(f"{name} is {other}" for name, other in own.same.items())
    lines = [f"FullKV: {full}.", ""] * bool(full) + [f"The same plan: {same}.", ""] * bool(same)
    best = {own.best_single(task) for task in own.scores}
    others = {*SINGLES, *plans.BLEND_MEMBERS, *(f"{name}-at-budgets" for name in plans.WITH_BUDGETS)} - best
    chosen = [name for name in own.rows if name not in others]
    return [*lines, *table(own, chosen), "", f"<details><summary>All {len(own.rows)} plans</summary>", "", *table(own, own.rows), "",
            "</details>"]


def part(met, what):
    return f"- {'met' if met else 'NOT met'}: {what}"


def targets(own):
    """Each part of the target with its numbers, whether it is met or not."""
    plan, text, needle = own.primary, own.best_single("text"), own.best_single("needle")
    lines = [f"Best single policies, chosen on the test itself, which favours them: {text} on text, {needle} on needles.", ""]
    lost = own.difference("text", plan, text)
    if own.ratio in ALLOWED:
        allowed = ALLOWED[own.ratio]
        lines.append(part(lost[0] <= allowed, f"text NLL against {text} at most +{allowed}: {shown(lost, 4)}"))
    against = own.difference("needle", plan, needle)
    lines.append(part(against[0] <= 0, f"needle NLL no worse than that of {needle}: {shown(against)}"))
    gained = own.difference("needle", plan, text)
    lines.append(part(gained[2] < 0, f"significantly better on needles than {text}: {shown(gained)}"))
    gained = own.difference("text", plan, needle)
    lines.append(part(gained[2] < 0, f"significantly better on text than {needle}: {shown(gained, 4)}"))
    if own.shuffles and own.uniform():
        lines.append(part(False, "rank among shuffles: the plan is the same in all layers, so that every shuffle equals it"))
    elif len(own.shuffles) > 1:
        rank, count, worse = ranked(own)
        what = (f"by the mean of both z-scores, ties against it, rank {rank} among {count} shuffles and itself; {worse} of them are "
                "worse beyond the 95 % interval of the paired difference")
        if count < 20:
            lines.append(f"- not decided, for the best 5 % take at least 20 shuffles: {what}")
        else:
            lines.append(part(20 * rank <= count, f"among the best 5 % of its shuffles: {what}"))
    return lines


def beside(runs, label):
    """The primary plan less others at each budget."""
    header = ["less"]
    for own in runs:
        header += [f"{100 * own.ratio:g} %: {task}" for task in run.RANKED]

    def row(label, other_of, named):
        cells = [label]
        for own in runs:
            other = other_of(own)
            for task, digits in [("text", 4), ("needle", 2)]:
                name = f"{other}: " if named else ""
                cells.append(name + shown(own.difference(task, own.primary, other), digits) if other in own.rows else "")
        return "| " + " | ".join(cells) + " |"

    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for task in run.RANKED:
        lines.append(row(f"the best single policy on {task}", lambda own: own.best_single(task), True))
    lines += [row(name, lambda _: name, False) for name in BESIDE if any(name in own.rows for own in runs)]
    names = " or ".join(sorted({own.primary for own in runs}))
    where = f", {label}: {runs[0].settings['length']} tokens" if label else ""
    return [f"## {names} less other plans{where}", "", "NLL with 95 % intervals: below zero, it is better.", "", *lines, ""]


def target_after(own):
    """The target for questions that are not there yet when the prompt is compressed."""
    best = own.best_single("needle-after")
    gained = own.difference("needle-after", plans.AFTER_PLAN, best)
    return part(gained[0] <= -0.3 and gained[2] < 0, f"{plans.AFTER_PLAN}, question after compression, at least 0.3 nat below {best}, "
                f"the best single policy on this test: {shown(gained)}")


def ranked(own):
    """The primary's rank among its shuffles on the batches that these have run, how many there are, and how many of them are
    worse beyond the 95 % interval of the paired difference in that score."""
    spread = {task: statistics.stdev(own.shuffled_mean(task, shuffle) for shuffle in own.shuffles) or 1 for task in run.RANKED}

    def behind(shuffle):
        """The mean of both z-scores less that of the primary."""
        parts = []
        for task in run.RANKED:
            pairs = zip(own.shuffled[task][shuffle]["nll"], own.values(task, own.primary))
            parts.append(by_batch(task, [(other - base) / spread[task] / len(run.RANKED) for other, base in pairs]))
        return interval([sum(batch) for batch in zip(*parts)])

    all_behind = [behind(shuffle) for shuffle in own.shuffles]
    return 1 + sum(mean <= 0 for mean, *_ in all_behind), len(all_behind), sum(low > 0 for _, low, _ in all_behind)


def route(own, name):
    """The layers of a plan."""
    parts = []
    for rule in own.plans[name][own.phase]:
        params = dict(rule.get("params", {}))
        inside = [f"{one['policy']} {one.get('share', 1):g}" for one in params.pop("policies", [])]
        inside += [f"{key} {value}" for key, value in params.items()]
        share = f", share {rule['share']:g}" if "share" in rule else ""
        parts.append(f"{rule['layers']} {rule['policy']}{' (' + ', '.join(inside) + ')' if inside else ''}{share}")
    return f"Layers of {name}: " + "; ".join(parts) + "."


def front(points):
    """The points that no other one beats on both axes, from left to right."""
    kept, best = [], float("inf")
    for x, y, name in sorted(points):
        if y < best:
            kept.append((x, y, name))
            best = y
    return kept


def svg(own):
    """Text ΔNLL against needle ΔNLL, lower left is better. What is beyond the frame sits on its edge."""
    width, height, left, top, right, bottom = 860, 620, 70, 30, 40, 60
    delta = lambda task, name: own.mean(task, name) - own.mean(task, "full")
    points = [(delta("text", name), delta("needle", name), name) for name in own.rows]
    # Shuffles ran on some of the samples: their place is that of the primary plan, moved by the difference to it on those.
    cloud = lambda task, name: delta(task, own.primary) + own.shuffled_mean(task, name) - own.shuffled_mean(task, own.primary)
    clouds = [(cloud("text", name), cloud("needle", name)) for name in own.shuffles]
    near = [point for point in points if point[2] in own.plans and point[2] not in SINGLES] + clouds
    xs, ys = (sorted(point[axis] for point in points) for axis in (0, 1))
    most = lambda values, other: 1.1 * max(values[int(0.75 * len(values))], max(other))
    x_low, x_high = min(0.0, xs[0]), most(xs, [one[0] for one in near])
    y_low, y_high = min(0.0, ys[0]), most(ys, [one[1] for one in near])
    clip = lambda value, low, high: min(max(value, low), high)
    px = lambda x: left + (clip(x, x_low, x_high) - x_low) / (x_high - x_low) * (width - left - right)
    py = lambda y: height - bottom - (clip(y, y_low, y_high) - y_low) / (y_high - y_low) * (height - top - bottom)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<rect x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}" fill="none" stroke="#999"/>']
    for step in range(6):
        x, y = x_low + step * (x_high - x_low) / 5, y_low + step * (y_high - y_low) / 5
        parts.append(f'<text x="{px(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:.3f}</text>')
        parts.append(f'<text x="{left - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.2f}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 16}" text-anchor="middle">text ΔNLL to FullKV, '
                 f'{100 * own.ratio:g} % kept (on the frame: beyond it)</text>')
    parts.append(f'<text x="18" y="{(top + height) / 2}" text-anchor="middle" '
                 f'transform="rotate(-90 18 {(top + height) / 2})">needle ΔNLL to FullKV</text>')
    line = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y, _ in front(points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#bbb" stroke-dasharray="4 3"/>')
    parts += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2" fill="#e0b060"/>' for x, y in clouds]
    taken, labels, dots = [], [], []
    for x, y, name in sorted(points, key=lambda point: (point[1], point[0])):
        colour = "#888" if name in SINGLES else "#2a8" if name in plans.BLEND_MEMBERS else "#d33" if name == own.primary else "#36c"
        end = px(x) > width - right - 150
        # A letter takes about 6. Labels that would lie on another one or on a point move up.
        at, length = py(y) + 4, 6 * len(name)
        first = px(x) - 10 - length if end else px(x) + 6
        meets = lambda low, high: low < first + length + 4 and high > first
        on_label = lambda: any(abs(at - other) < 12 and meets(low, high) for other, low, high in taken)
        on_point = lambda: any(abs(at - 4 - py(b)) < 9 and meets(px(a) - 4, px(a) + 4) for a, b, other in points if other != name)
        while on_label() or on_point():
            at -= 4
        taken.append((at, first, first + length))
        if py(y) + 4 - at > 12:
            parts.append(f'<line x1="{px(x):.1f}" y1="{py(y):.1f}" x2="{px(x) + (-7 if end else 7):.1f}" y2="{at - 4:.1f}" '
                         f'stroke="{colour}" stroke-width="0.5"/>')
        dots.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4" fill="{colour}"/>')
        labels.append(f'<text x="{px(x) + (-8 if end else 8):.1f}" y="{at:.1f}" fill="{colour}" '
                      f'text-anchor="{"end" if end else "start"}">{name}</text>')
    group = '<g font-size="11" stroke="white" stroke-width="3" stroke-linejoin="round" paint-order="stroke">'
    return "\n".join([*parts, group, *labels, "</g>", *dots, "</svg>"]) + "\n"


def section(own):
    given = own.settings
    samples = lambda task: len(own.values(task, "full"))
    batches = given["batches"] - given["first_batch"]
    counts = ", ".join(f"{task} {samples(task)} ({own.finished[task]} of {batches} batches)" for task in own.scores)
    refined = any(name.endswith(("-refined", "-budgets")) for name in own.plans)
    moves = f", {given['refine']} moves" if refined else ""
    lines = [f"## {100 * own.ratio:g} % of {given['length']} tokens, {own.phase} phase{own.label and ', ' + own.label}", "",
             f"Samples: {counts}. "
             f"Calibrated on {given['examples']} windows and {given['evidence']} questions of {given['calibration_length']} tokens"
             f"{moves}.", "", *tables(own), ""]
    if own.pairs():
        if own.shuffles:
            counted = {task: len(own.shuffled[task][own.shuffles[0]]["nll"]) for task in own.shuffled}
            of = ", ".join(f"{task} {count}" for task, count in counted.items())
            where = "" if all(count == samples(task) for task, count in counted.items()) else (
                ", where their difference to the plan on these samples puts them")
            lines += [f"{len(own.shuffles)} shuffles of {own.primary}, on samples: {of}. The figure has them, small{where}.", ""]
        lines += [f"![Pareto front](results/{own.stem}.svg)", "", "### Targets", "", *targets(own)]
        if "needle-after" in own.scores:
            lines.append(target_after(own))
        lines.append("")
    if own.label:
        return lines
    lines += ["### Plans", ""]
    for name in [own.primary, plans.AFTER_PLAN if own.phase == "prefill" else "text-budgets"]:
        if name in own.rows:
            lines += [route(own, name), ""]
    return lines


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=here / "results")
    parser.add_argument("--out", type=pathlib.Path, default=here / "results.md")
    args = parser.parse_args()
    lines = ["# SmolLM2-135M-Instruct: what was measured", "",
             "Made by report.py; [README.md](README.md) says what the plans are, how this was measured and what it shows.", ""]
    runs = [own for own in (Results(path) for path in args.results.glob("*.json")) if own.finished]
    runs.sort(key=lambda own: (own.label, -own.ratio, own.stem))
    for label in sorted({own.label for own in runs}):
        pairs = [own for own in runs if own.label == label and own.pairs()]
        if pairs:
            lines += beside(pairs, label)
    for own in runs:
        lines += section(own)
        if own.pairs():
            (args.results / f"{own.stem}.svg").write_text(svg(own))
    args.out.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
