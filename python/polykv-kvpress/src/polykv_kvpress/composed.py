"""Policies made of policies, and the table of all of them by name."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .apportion import largest_remainder
from .errors import PlanError
from .params import parameter, read_params, real
from .plan import KEEP, share_of, shown
from .policies import (
    Cake,
    ExpectedAttention,
    H2o,
    KeyDiff,
    KNorm,
    LagKv,
    Policy,
    PyramidKv,
    Random,
    Scissorhands,
    SnapKv,
    StreamingLlm,
    Tova,
)
from .view import Layer, Protect, in_stages, stage

MERGING = {
    "d2o": "which merges evicted entries into those that stay, so that keys and values change",
    "cam": "which merges evicted values into those that stay, so that values change",
}
"""Policies of PolyKV that this package does not run, with the reason."""

MOST_MEMBERS = 16
BLOCK = 256


@dataclass(frozen=True)
class Member:
    """A policy that another one is made of, with its share of the budget."""

    policy: Policy
    share: float


def _member(value: Any, name: str) -> Member:
    """Reads `tova`, `tova:0.5` or `{policy: tova, share: 0.5, ...}`."""
    params: dict[str, Any] = {}
    share: Any = 1.0
    if isinstance(value, str):
        value, colon, text = value.partition(":")
        if colon:
            try:
                share = float(text)
            except ValueError:
                share = text
    elif isinstance(value, dict):
        params = {key: item for key, item in value.items() if key not in ("policy", "share")}
        share, value = value.get("share", 1.0), value.get("policy")
    if not isinstance(value, str):
        raise PlanError(name, shown(value), "a policy's name, or a map of policy, share and parameters")
    policy = build(value.strip(), params, name)
    if policy is None:
        raise PlanError(name, shown(KEEP), "policies that evict")
    return Member(policy, share_of(share, f"share of {value.strip()} in {name}"))


def _members(value: Any, name: str) -> tuple[Member, ...]:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list) or not 2 <= len(listed) <= MOST_MEMBERS:
        raise PlanError(name, shown(value), f"2 to {MOST_MEMBERS} policies as a list, or text as in tova:0.5,h2o:0.5")
    return tuple(_member(item, f"policy {index} of {name}") for index, item in enumerate(listed))


@dataclass(frozen=True)
class CriticalKv(Policy):
    """A base policy's choice for `first` of the budget, then its scores times the values' norms after the projection."""

    name = "criticalkv"
    base: Member = parameter(Member(SnapKv(), 1.0), _member)
    first: float = real(0.5, 0.0, 1.0)
    epsilon: float = real(1e-4, 0.0, 1e6)

    def protect(self, budget: int) -> Protect:
        return self.base.policy.protect(budget)

    def score(self, layer: Layer, budget: int) -> Tensor:
        scores = self.base.policy.score(layer, budget)
        first = max(int(budget * self.first), 1)
        taken = stage(layer, scores, self.protect(budget), None, first)
        return in_stages([taken], (scores + self.epsilon) * self._norms(layer))

    def _norms(self, layer: Layer) -> Tensor:
        """The L1 norm of each value after its query heads' part of the output projection, mean over the group, `[b, H, n]`."""
        batch, heads, seen, size = layer.values.shape
        weight = getattr(layer.module.o_proj, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta:
            found = "quantised or not in memory"
            raise PlanError(f"output projection of layer {layer.index}", found, "a weight in memory, for criticalkv", "model")
        weight = weight.to(layer.values.device).float().view(-1, heads, weight.shape[1] // (heads * size), size)
        norms = torch.empty(batch, heads, seen, device=layer.values.device)
        for first in range(0, seen, BLOCK):
            values = layer.values[:, :, first : first + BLOCK]
            # o: hidden, h: KV head, g: query head of the group, d: head dimension
            norms[:, :, first : first + BLOCK] = sum(
                torch.einsum("bhnd,ohd->bhno", values, weight[:, :, g]).abs().sum(dim=-1) for g in range(weight.shape[2])
            ) / weight.shape[2]
        return norms


@dataclass(frozen=True)
class Blend(Policy):
    """Several policies, each with its share of the budget; they choose one after the other from what is left."""

    name = "blend"
    policies: tuple[Member, ...] = parameter((Member(H2o(), 0.5), Member(Tova(), 0.5)), _members)

    def _parts(self, budget: int) -> list[tuple[Policy, int]]:
        parts = largest_remainder(budget, [member.share for member in self.policies])
        return [(member.policy, part) for member, part in zip(self.policies, parts, strict=True)]

    def protect(self, budget: int) -> Protect:
        each = [policy.protect(part) for policy, part in self._parts(budget)]
        return Protect(max(protect.sinks for protect in each), max(protect.recent for protect in each))

    def score(self, layer: Layer, budget: int) -> Tensor:
        *earlier, (last, rest) = self._parts(budget)
        stages: list[Tensor] = []
        for policy, part in earlier:
            taken = torch.stack(stages).any(dim=0) if stages else None
            stages.append(stage(layer, policy.score(layer, part), policy.protect(part), taken, part))
        return in_stages(stages, last.score(layer, rest))


POLICIES: dict[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        StreamingLlm,
        SnapKv,
        PyramidKv,
        Cake,
        Tova,
        H2o,
        Scissorhands,
        ExpectedAttention,
        LagKv,
        CriticalKv,
        KNorm,
        KeyDiff,
        Blend,
        Random,
    )
}
"""Every policy that this package runs, by its name in plans."""


def build(name: str, params: dict[str, Any], where: str) -> Policy | None:
    """The policy of this name with these parameters, `None` for `full`.

    `where` says where the plan names it, such as `prefill policy of layer 3`. Raises `PlanError` for names and parameters
    that this package does not have.
    """
    if name == KEEP:
        return None
    if name not in POLICIES:
        reason = MERGING.get(name)
        found = f"'{name}', {reason}" if reason else f"'{name}'"
        raise PlanError(where, found, ", ".join([KEEP, *POLICIES]))
    return read_params(POLICIES[name], params, f"policy {name} ({where})")
