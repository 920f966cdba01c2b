"""Reading plan files (schema 1) as PolyKV reads them: docs/plans.md of the main repository describes the format."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import PlanError

KEEP = "full"
"""The word that stands in the place of a policy where a layer keeps everything."""

MAX_LAYERS = 1024
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 1 << 40
MAX_SHARE = 1e6
MAX_AT_LEAST = 1 << 20
BUDGETS = ("tokens", "total", "ratio", "bytes")


@dataclass(frozen=True)
class Rule:
    """What a range of layers does in one phase, as the file states it; `first` and `last` are both included.

    At most one of `tokens` (entries per KV head) and `share` (relative to the other layers') is given.
    """

    first: int
    last: int
    policy: str
    params: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    share: float | None = None

    @property
    def keeps(self) -> bool:
        """Whether these layers keep everything."""
        return self.policy == KEEP


@dataclass(frozen=True)
class PlanFile:
    """The content of a plan file. Names of policies and allocators, and parameters, have not been looked up yet.

    `budget` is the unit (tokens, total, ratio or bytes) with its number, which never comes to less than `at_least` entries per layer
    on average. `prefill` and `decode` have one rule for each layer,
    or none at all.
    """

    layers: int
    budget: tuple[str, float]
    name: str | None = None
    model: str | None = None
    at_least: int = 0
    allow_full_extra: bool = False
    online: str | None = None
    prefill: tuple[Rule, ...] = ()
    decode: tuple[Rule, ...] = ()

    @staticmethod
    def read(path: str | Path) -> "PlanFile":
        """Reads a file. Raises `OSError` for one that cannot be read, and `PlanError`, which names the file."""
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        try:
            if len(content) > MAX_FILE_BYTES:
                raise PlanError("size", f"above {MAX_FILE_BYTES} bytes", f"at most {MAX_FILE_BYTES} bytes")
            return PlanFile.parse(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise PlanError("content", f"no text ({error})", "UTF-8", str(path)) from error
        except PlanError as error:
            raise error.at(str(path)) from error

    @staticmethod
    def parse(text: str) -> "PlanFile":
        """Parses YAML. Raises `PlanError` for text that is no plan of schema 1; the error names the field."""
        try:
            content = yaml.load(text, _Loader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise PlanError("content", f"not a plan ({' '.join(str(error).split())})", "plan schema 1") from error
        known = ("schema", "name", "model", "layers", "budget", "at_least", "allow_full_extra", "online", "prefill", "decode")
        fields = _map(content, "content", known)
        if fields.get("schema") != 1:
            raise PlanError("schema", fields.get("schema", "missing"), 1)
        layers = whole(fields.get("layers", "missing"), "layers", 1, MAX_LAYERS)
        extra = fields.get("allow_full_extra", False)
        if not isinstance(extra, bool):
            raise PlanError("allow_full_extra", shown(extra), "true or false")
        plan = PlanFile(
            layers=layers,
            budget=_budget(fields.get("budget", "missing")),
            name=_text(fields, "name"),
            model=_text(fields, "model"),
            at_least=whole(fields.get("at_least", 0), "at_least", 0, MAX_AT_LEAST),
            allow_full_extra=extra,
            online=_text(fields, "online"),
            prefill=_rules(fields.get("prefill"), "prefill", layers),
            decode=_rules(fields.get("decode"), "decode", layers),
        )
        for phase, rules in (("prefill", plan.prefill), ("decode", plan.decode)):
            _check_sum(plan, phase, rules)
            if plan.online and any(rule.tokens or rule.share for rule in rules):
                raise PlanError("online", f"{plan.online} beside tokens or shares in the rules", "one or the other")
        return plan

    def by_layer(self) -> list[Rule]:
        """The prefill rule of each layer, from the first to the last; without any rule all keep everything."""
        rules = self.prefill or (Rule(0, self.layers - 1, KEEP),)
        each = {layer: rule for rule in rules for layer in range(rule.first, rule.last + 1)}
        return [each[layer] for layer in range(self.layers)]


def shown(value: object) -> str:
    """A value in an error: text in quotes, anything else as it is."""
    return f"'{value}'" if isinstance(value, str) else str(value)


def whole(value: object, name: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`. Raises `PlanError` under the given name for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise PlanError(name, shown(value), f"a whole number from {least} to {most}")


def number(value: object, name: str, allowed: str, fits: Any) -> float:
    """A finite number for which `fits` is true. Raises `PlanError` under the given name for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Not a number compares as false, and infinity fits no range here.
        if abs(value) <= 1e300 and fits(value):
            return float(value)
    raise PlanError(name, shown(value), allowed)


def share_of(value: object, name: str) -> float:
    """A share: above 0, at most a million."""
    return number(value, name, "above 0, at most 1e6", lambda share: 0 < share <= MAX_SHARE)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 as PolyKV's parser reads it: `yes` and `1:30` are text, `1e-4` is a number, and keys come once."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(problem="a key that is a list or a map")
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(problem=f"the key {key} comes twice")
        return {
            self.construct_object(key, deep=True): self.construct_object(value, deep=True)
            for key, value in node.value
        }


for _kind, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # Numbers with leading zeros are text: they would be octal elsewhere.
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.\d+|(0|[1-9]\d*)(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
]:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)


def _map(value: object, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(name, shown(value), f"a map with {', '.join(known)}")
    for key in value:
        if key not in known:
            raise PlanError(f"a field of {name}", shown(key), ", ".join(known))
    return value


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise PlanError(name, shown(value), "text")


def _budget(value: object) -> tuple[str, float]:
    if not isinstance(value, dict) or len(value) != 1:
        raise PlanError("budget", shown(value), f"a map with one of {', '.join(BUDGETS)}")
    ((unit, amount),) = _map(value, "budget", BUDGETS).items()
    name = f"budget.{unit}"
    if unit == "ratio":
        return unit, number(amount, name, "above 0 and at most 1", lambda ratio: 0 < ratio <= 1)
    return unit, whole(amount, name, 1, (1 << 64) - 1 if unit == "bytes" else MAX_ENTRIES)


def _range(value: object, name: str, layers: int) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(value)) if isinstance(value, (int, str)) else None
    if found is None or isinstance(value, bool):
        raise PlanError(name, shown(value), "N or FIRST-LAST, as in 7 or 0-14")
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < layers:
        raise PlanError(name, value, f"layers 0 to {layers - 1}, the first before the last")
    return first, last


def _rules(value: object, phase: str, layers: int) -> tuple[Rule, ...]:
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        raise PlanError(phase, shown(value), "a list of rules")
    owner: dict[int, int] = {}
    rules = []
    for index, item in enumerate(value):
        rule = _rule(item, f"{phase}[{index}]", layers)
        for layer in range(rule.first, rule.last + 1):
            if layer in owner:
                found = f"{item['layers']}, which repeats layer {layer} of {phase}[{owner[layer]}]"
                raise PlanError(f"{phase}[{index}].layers", found, "each layer once")
            owner[layer] = index
        rules.append(rule)
    missing = [layer for layer in range(layers) if layer not in owner]
    if missing:
        raise PlanError(phase, f"without a rule for layer {missing[0]}", f"one rule for each of the {layers} layers, or none")
    return tuple(rules)


def _rule(item: object, name: str, layers: int) -> Rule:
    fields = _map(item, name, ("layers", "policy", "params", "tokens", "share"))
    first, last = _range(fields.get("layers", "missing"), f"{name}.layers", layers)
    policy, params = fields.get("policy", "missing"), fields.get("params") or {}
    if not isinstance(policy, str):
        raise PlanError(f"{name}.policy", shown(policy), "a policy's name")
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise PlanError(f"{name}.params", shown(params), "a map of parameters")
    tokens, share = fields.get("tokens"), fields.get("share")
    if tokens is not None and share is not None:
        raise PlanError(f"{name}.tokens", "given beside share", "tokens or share")
    if tokens is not None:
        tokens = whole(tokens, f"{name}.tokens", 1, MAX_ENTRIES)
    if share is not None:
        share = share_of(share, f"{name}.share")
    given = [("tokens", tokens, "no budget"), ("share", share, "no share"), ("params", params, "no parameters")]
    for part, present, allowed in given:
        if policy == KEEP and present:
            raise PlanError(f"{name}.{part}", f"given for policy {KEEP}", allowed)
    return Rule(first, last, policy, params, tokens, share)


def _check_sum(plan: PlanFile, phase: str, rules: tuple[Rule, ...]) -> None:
    """Entries that rules state sum to the budget, or to at most the budget where some layers keep everything."""
    evicting = [rule for rule in rules if not rule.keeps]
    fixed = [rule for rule in evicting if rule.tokens is not None]
    if not fixed:
        return
    if len(fixed) < len(evicting):
        raise PlanError(phase, "tokens in some rules and shares in others", "tokens in all rules or in none")
    unit, amount = plan.budget
    if unit not in ("tokens", "total"):
        raise PlanError(phase, "tokens in the rules beside a budget in another unit", "budget.tokens or budget.total")
    total = int(amount) * (plan.layers if unit == "tokens" else 1)
    stated = sum((rule.tokens or 0) * (rule.last - rule.first + 1) for rule in fixed)
    mixed = len(evicting) < len(rules)
    if stated != total and not (mixed and stated <= total):
        spelled = f"{plan.layers} layers times {amount}" if unit == "tokens" else "budget.total"
        raise PlanError(f"sum of {phase} tokens", stated, f"{'at most ' if mixed else ''}{total}, {spelled}")
