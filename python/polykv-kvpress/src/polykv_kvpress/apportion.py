"""Splitting whole numbers in proportion to weights, exactly as PolyKV does (polykv-core/src/apportion.rs)."""

import math
from collections.abc import Iterable, Sequence


def total_of(numbers: Iterable[float]) -> float:
    """The sum, added one after the other: since Python 3.12 `sum` compensates, and would round differently from PolyKV."""
    total = 0.0
    for number in numbers:
        total += number
    return total


def rounded(x: float) -> int:
    """The nearest whole number to `x`, at least 0; halves go up, where Python's `round` takes the even one."""
    floor = math.floor(x)
    return floor + (x - floor >= 0.5)


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `weights` that sum to `total` exactly.

    Each share is rounded down; what is left goes to the largest remainders, one each, and of equal remainders to the lower
    index first. The weights are finite and above 0.
    """
    whole = total_of(weights)
    exact = [float(total) * weight / whole for weight in weights]
    counts = [math.floor(x) for x in exact]
    order = sorted(range(len(exact)), key=lambda i: (-(exact[i] - counts[i]), i))
    missing = total - sum(counts)
    while missing > 0:
        for i in order[:missing]:
            counts[i] += 1
        missing -= min(missing, len(order))
    # Rounding can push the floors past the total for huge weights: the excess is taken back from the smallest remainders.
    for i in reversed(order):
        back = min(max(-missing, 0), counts[i])
        counts[i] -= back
        missing += back
    return counts
