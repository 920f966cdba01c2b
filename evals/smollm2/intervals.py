"""Means with the interval of a bootstrap, as tables show them."""

import random
import statistics


def interval(values, digits=3):
    """Mean and 95 % interval of a bootstrap over samples."""
    rng = random.Random(1)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(2000))
    return f"{statistics.fmean(values):+.{digits}f} [{means[49]:+.{digits}f}, {means[1949]:+.{digits}f}]"
