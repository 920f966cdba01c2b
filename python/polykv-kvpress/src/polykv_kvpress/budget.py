"""How many entries each layer keeps of a prompt, as polykv-core computes it (budget.rs, plan/resolve.rs, allocate/)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .apportion import largest_remainder, rounded, total_of
from .composed import build
from .errors import PlanError
from .plan import PlanFile
from .policies import Policy

ALLOCATORS = ("pyramid",)
"""The allocators that a plan may name under `online`; without one the shares of the plan decide."""

SEEING = ("cake", "dynamic")
"""Allocators of PolyKV that this package does not run: they have to see every layer before they cut the first."""

MAX_LEAST = 1 << 32


@dataclass(frozen=True)
class LayerRule:
    """The prefill rule of one layer; without a policy it keeps everything.

    `tokens` is a fixed number of entries per KV head, `least` the smallest budget that holds what the policy protects.
    """

    policy: Policy | None = None
    share: float = 1.0
    tokens: int | None = None
    least: int = 1


def layer_rules(plan: PlanFile) -> list[LayerRule]:
    """The prefill rule of each layer, with policies looked up.

    Raises `PlanError` for what this package does not run; the error names the layer.
    """
    if plan.online is not None and plan.online not in ALLOCATORS:
        reason = ", which has to see every layer before it cuts the first" if plan.online in SEEING else ""
        allowed = f"{', '.join(ALLOCATORS)}, or no allocator and shares"
        raise PlanError("allocator (online)", f"'{plan.online}'{reason}", allowed)
    rules = []
    for layer, rule in enumerate(plan.by_layer()):
        policy = build(rule.policy, rule.params, f"prefill policy of layer {layer}")
        if policy is None:
            rules.append(LayerRule())
            continue
        if rule.tokens is not None:
            _check_least(layer, policy, rule.tokens)
        share = 1.0 if rule.share is None else rule.share
        rules.append(LayerRule(policy, share, rule.tokens, least_budget(policy, layer)))
    return rules


def least_budget(policy: Policy, layer: int) -> int:
    """The smallest budget in entries per KV head, at least 1, that is not exceeded by what the policy protects under it."""
    budget = 1
    # Protection that is a part of the budget leads to the least one in steps that shrink; their number has a bound.
    for _ in range(10_000):
        least = max(policy.protect(budget).count, 1)
        if least <= budget:
            return budget
        if least > MAX_LEAST:
            break
        budget = least
    found = f"{policy.name}, which protects {policy.protect(budget).count} of {budget} entries"
    raise PlanError(f"prefill policy of layer {layer}", found, "one that protects less than its budget")


def resolve(
    plan: PlanFile, rules: Sequence[LayerRule], prompt: int, windows: Sequence[int | None], entry_bytes: int
) -> list[int | None]:
    """Entries per KV head that each layer keeps of a prompt of `prompt` tokens; `None` where a layer keeps everything.

    `windows` are the layers' sliding windows in tokens (`None`: it sees everything), `entry_bytes` is the memory of one entry
    in one layer: key and value of all KV heads and sequences. A budget may be larger than the prompt. Raises `PlanError` for
    layers that keep everything and do not fit in the budget, and for a budget below what a policy protects.
    """
    held = [prompt if window is None else min(prompt, max(window - 1, 1)) for window in windows]
    total = _total(plan, sum(held), entry_bytes)
    evicting = [rule for rule in rules if rule.policy is not None]
    if not evicting:
        return [None] * len(rules)
    full = len(rules) - len(evicting)
    if plan.allow_full_extra:
        parts = total_of(rule.share for rule in evicting)
        total = rounded(total * parts / (parts + full))
    else:
        kept = sum(entries for entries, rule in zip(held, rules, strict=True) if rule.policy is None)
        claimed = kept + sum(rule.tokens or 0 for rule in evicting)
        if claimed > total:
            field = f"prefill: entries of {full} full layers at {prompt} tokens and the others"
            raise PlanError(field, claimed, f"at most the total of {total} (or allow_full_extra)")
        total -= kept
    if plan.online == "pyramid":
        split = _pyramid(total, prompt, max(rule.least for rule in evicting), len(evicting))
    else:
        split = largest_remainder(total, [rule.share for rule in evicting])
    parts_left = iter(split)
    budgets: list[int | None] = []
    for layer, rule in enumerate(rules):
        if rule.policy is None:
            budgets.append(None)
            continue
        part = next(parts_left)
        budget = part if rule.tokens is None else rule.tokens
        _check_least(layer, rule.policy, budget)
        budgets.append(budget)
    return budgets


def _total(plan: PlanFile, held: int, entry_bytes: int) -> int:
    """The entries of all layers together; `held` is what they hold without eviction."""
    unit, amount = plan.budget
    least = plan.at_least * plan.layers
    if unit == "ratio":
        return max(rounded(amount * held), least)
    if unit == "bytes":
        return max(int(amount) // entry_bytes, least)
    return max(int(amount) * (plan.layers if unit == "tokens" else 1), least)


def _pyramid(total: int, prompt: int, window: int, layers: int) -> list[int]:
    """Falling linearly from the first layer to the last (PyramidKV, arXiv 2406.02069); beta is 20."""
    average = total / layers
    rest, room = average - window, float(prompt - window)
    if layers < 2 or rest <= 0 or rest >= room:
        return largest_remainder(total, [1.0] * layers)
    most = min(2 * rest - math.floor(rest / 20), room)
    # The mirror of the largest, so that the mean stays.
    step = 2 * (most - rest) / (layers - 1)
    return largest_remainder(total, [window + most - layer * step for layer in range(layers)])


def _check_least(layer: int, policy: Policy, budget: int) -> None:
    least = max(policy.protect(budget).count, 1)
    if budget < least:
        raise PlanError(f"prefill budget of layer {layer}", budget, f"at least {least}, what policy {policy.name} protects")
