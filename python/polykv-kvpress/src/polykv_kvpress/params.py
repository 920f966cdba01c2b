"""Parameters of policies: which there are, what they may be, and how they are read from a plan."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import PlanError
from .plan import number, shown, whole

MOST = 1 << 20
"""The most that a parameter which counts entries, queries or positions may be."""

Read = Callable[[Any, str], Any]
P = TypeVar("P")


def parameter(default: Any, read: Read) -> Any:
    """A field of a policy that a plan may state; `read` turns the value of a plan, with its name, into that of the field."""
    return dataclasses.field(default=default, metadata={"read": read})


def counting(default: int, least: int = 0, most: int = MOST) -> Any:
    """A whole number from `least` to `most`."""
    return parameter(default, lambda value, name: whole(value, name, least, most))


def odd(default: int) -> Any:
    """How many positions are pooled: odd, at most 1023."""

    def read(value: Any, name: str) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1024 and value % 2 == 1:
            return value
        raise PlanError(name, shown(value), "odd, at most 1023")

    return parameter(default, read)


def real(default: float, least: float, most: float) -> Any:
    """A number from `least` to `most`."""
    allowed = f"a number from {least} to {most}"
    return parameter(default, lambda value, name: number(value, name, allowed, lambda x: least <= x <= most))


def one_of(default: Any, *allowed: Any) -> Any:
    """One of these values."""

    def read(value: Any, name: str) -> Any:
        if any(type(value) is type(other) and value == other for other in allowed):
            return value
        raise PlanError(name, shown(value), " or ".join(str(other).lower() for other in allowed))

    return parameter(default, read)


def read_params(kind: type[P], params: dict[str, Any], where: str) -> P:
    """A policy with these parameters; those left out take their defaults.

    `where` says whose parameters they are, for the `PlanError` that an unknown or wrong one raises.
    """
    fields = {field.name: field.metadata["read"] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in params:
        if name not in fields:
            raise PlanError(f"a parameter of {where}", shown(name), ", ".join(fields) or "none")
    return kind(**{name: fields[name](value, f"{name} of {where}") for name, value in params.items()})
