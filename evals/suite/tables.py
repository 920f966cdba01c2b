"""The tables of run.py's results."""

import statistics

from intervals import interval

POSITIONS = {"inside": "the question stands in the compressed prompt", "lead-in": "the start of the answer stands there, too",
             "after": "the question comes after the compression"}


def base_of(results):
    """The plan that others are set beside: the one that shuffles are made of."""
    return results["settings"]["shuffle_of"]


def label(results, plan):
    return f"**{plan}**" if plan == base_of(results) else plan


def names(own):
    """Plans without shuffles, FullKV first."""
    return [plan for plan in own["scores"] if not plan.startswith("shuffle-")]


def text_losses(results, length):
    """For each plan the losses against FullKV in all windows, by kind of text."""
    found = {}
    for step, own in results["text"].items():
        kind, at = step.rsplit("-", 1)
        if int(at) == length:
            for plan, nll in own["scores"].items():
                found.setdefault(plan, {})[kind] = [a - b for a, b in zip(nll, own["scores"]["full"], strict=True)]
    # Only plans that ran on all kinds.
    return {plan: kinds for plan, kinds in found.items() if len(kinds) == len(found["full"])}


def together(kinds):
    return [loss for kind in kinds.values() for loss in kind]


def mean_interval(values):
    return interval(values) if len(set(values)) > 1 else f"{statistics.fmean(values):+.3f}"


def less(scores, plan, other):
    return [a - b for a, b in zip(scores[plan], scores[other], strict=True)]


def count(scores, plan, which=None):
    """How many are found, as shares of a list's items where the answer is a list."""
    found = sum(score for number, score in enumerate(scores[plan]) if which is None or number in which)
    return f"{found:.1f}".removesuffix(".0")


def share(scores, plan):
    return f"{100 * sum(scores[plan]) / max(sum(scores['full']), 1e-9):.0f} %"


def summary(results, length):
    """Everything at one length: a line per plan, by what it loses on text."""
    losses = text_losses(results, length)
    needles = {position: results["needles"][f"{position}-{length}"] for position in POSITIONS if f"{position}-{length}" in results["needles"]}
    if not losses and not needles:
        return []
    held = next(iter([*(own for step, own in results["text"].items() if step.endswith(f"-{length}")), *needles.values()]))["held"]
    plans = sorted(losses, key=lambda plan: statistics.fmean(together(losses[plan]))) if losses else list(held)
    samples = next((len(own["samples"]) for own in needles.values()), 0)
    windows = f"{len(together(losses['full']))} windows of text, " if losses else ""
    head = [f"text: loss, nat", *(f"{position}: found of {samples} (of FullKV's)" for position in needles)]
    lines = [f"## Prompts of {length:,} tokens", "", f"{windows}{samples} needles at each place of the question.", "",
             f"| plan | entries per layer | bytes | {' | '.join(head)} |", f"|---|--:|--:|{'--:|' * len(head)}"]
    for plan in plans:
        cells = [mean_interval(together(losses[plan])) if losses else ""]
        for own in needles.values():
            scores = own["scores"]
            cells.append(f"{count(scores, plan)} ({share(scores, plan)})" if plan in scores else "")
        entries, size = held[plan]
        lines.append(f"| {label(results, plan)} | {entries:.0f} | {100 * size / held['full'][1]:.2f} % | {' | '.join(cells)} |")
    return [*lines, ""]


def by_family(step, own, results):
    position, length = step.rsplit("-", 1)
    groups = {}
    for number, sample in enumerate(own["samples"]):
        for field in ("family", "filler"):
            groups.setdefault(sample[field], set()).add(number)
    heads = " | ".join(f"{group}, of {len(which)}" for group, which in groups.items())
    lines = [f"### {POSITIONS[position].capitalize()}: {int(length):,} tokens", "",
             f"| plan | {heads} | all, of {len(own['samples'])} | share found, less FullKV's |", f"|---|{'--:|' * len(groups)}--:|--:|"]
    for plan in sorted(names(own), key=lambda plan: -sum(own["scores"][plan])):
        cells = [count(own["scores"], plan, which) for which in groups.values()]
        difference = mean_interval(less(own["scores"], plan, "full")) if plan != "full" else ""
        lines.append(f"| {label(results, plan)} | {' | '.join(cells)} | {count(own['scores'], plan)} | {difference} |")
    return [*lines, ""]


def by_kind(results, length):
    losses = text_losses(results, length)
    if not losses:
        return []
    kinds = list(losses["full"])
    full = [results["text"][f"{kind}-{length}"]["scores"]["full"] for kind in kinds]
    lines = [f"### Loss on text: {length:,} tokens", "",
             f"| plan | {' | '.join(kinds)} | all |", f"|---|{'--:|' * len(kinds)}--:|",
             f"| NLL of FullKV | {' | '.join(f'{statistics.fmean(nll):.3f}' for nll in full)} | {statistics.fmean(sum(full, [])):.3f} |"]
    for plan in sorted(losses, key=lambda plan: statistics.fmean(together(losses[plan]))):
        if plan != "full" and not plan.startswith("shuffle-"):
            cells = [mean_interval(values) for values in (*losses[plan].values(), together(losses[plan]))]
            lines.append(f"| {label(results, plan)} | {' | '.join(cells)} |")
    return [*lines, ""]


def beside(results, length):
    """Every plan less the base, sample by sample."""
    base, losses = base_of(results), text_losses(results, length)
    needles = {position: own["scores"] for position in POSITIONS if (own := results["needles"].get(f"{position}-{length}"))}
    if base not in losses:
        return []
    lines = [f"### Less {base}: {length:,} tokens", "", f"| plan | text, nat | {' | '.join(f'{one}: share found' for one in needles)} | mean of these |",
             f"|---|--:|{'--:|' * len(needles)}--:|"]
    for plan in losses:
        if plan in (base, "full"):
            continue
        cells = [mean_interval([a - b for a, b in zip(together(losses[plan]), together(losses[base]), strict=True)])]
        gaps = {position: less(scores, plan, base) for position, scores in needles.items() if plan in scores}
        cells += [mean_interval(gaps[position]) if position in gaps else "" for position in needles]
        # A sample stands at every place of the question, so that its mean is what is drawn anew.
        whole = [statistics.fmean(sample) for sample in zip(*gaps.values(), strict=True)] if len(gaps) == len(needles) > 1 else []
        cells.append(mean_interval(whole) if whole else "")
        lines.append(f"| {plan} | {' | '.join(cells)} |")
    return [*lines, ""]


def shuffles(results, length):
    """The rank of the base among its shuffles, and their mean less it, on needles and where they ran there on text."""
    base, losses = base_of(results), text_losses(results, length)
    scores = results["needles"].get(f"inside-{length}", {"scores": {}})["scores"]
    others = [plan for plan in scores if plan.startswith("shuffle-")]
    if not others:
        return []
    mean = [statistics.fmean(one) for one in zip(*(scores[plan] for plan in others), strict=True)]
    gap = [a - b for a, b in zip(mean, scores[base], strict=True)]
    rank = 1 + sum(sum(scores[plan]) > sum(scores[base]) for plan in others)
    found = ", ".join(count(scores, plan) for plan in sorted(others, key=lambda plan: -sum(scores[plan])))
    lines = [f"### Shuffles of {base}'s policies: {length:,} tokens", "",
             f"{len(others)} shuffles, budgets left in place. Needles with the question inside: {base} finds {count(scores, base)}, the shuffles {found}; it "
             f"is number {rank} (ties share the better rank), and their mean less it is {mean_interval(gap)} of the share found."]
    if all(plan in losses for plan in others):
        text = {plan: statistics.fmean(together(losses[plan])) for plan in [base, *others]}
        mean = [statistics.fmean(one) for one in zip(*(together(losses[plan]) for plan in others), strict=True)]
        gap = [a - b for a, b in zip(mean, together(losses[base]), strict=True)]
        rank = 1 + sum(text[plan] < text[base] for plan in others)
        lines[-1] += f" On text it is number {rank}, and their mean less it is {mean_interval(gap)} nat."
    return [*lines, ""]


def report(results):
    own = results["settings"]
    lines = ["# Plans on the frozen suite: results", "",
             f"Made by `run.py`: part {own['part']}, {100 * own['share']:g} % of the bytes of an f16 cache, prefill only. Losses are NLL less FullKV's, "
             "with 95 % intervals of a bootstrap over samples. Of a list the share of its items counts as found. The plan in bold is the "
             "one whose policies are shuffled. Bytes are of what FullKV holds after the prompt.", ""]
    for length in own["lengths"]:
        lines += summary(results, length) + shuffles(results, length)
        for step, needles in results["needles"].items():
            if step.endswith(f"-{length}"):
                lines += by_family(step, needles, results)
        lines += by_kind(results, length) + beside(results, length)
    return "\n".join(lines).rstrip() + "\n"
