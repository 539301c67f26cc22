"""What several seeds prove: means and ratios with their intervals, and a verdict in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, which one seed does not have."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """The ratio of two positive quantities, each over its seeds: Welch's interval of logarithms."""
    a, b = ([math.log(max(v, 1e-12)) for v in side] for side in (values, others))
    difference = statistics.fmean(a) - statistics.fmean(b)
    if len(a) < 2 or len(b) < 2:
        return Estimate(math.exp(difference))
    parts = [statistics.variance(side) / len(side) for side in (a, b)]
    total = sum(parts)
    if not total:
        return Estimate(math.exp(difference), math.exp(difference), math.exp(difference))
    freedom = total**2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True)
    )
    half = _quantile(freedom) * math.sqrt(total)
    return Estimate(*(math.exp(difference + d) for d in (0, -half, half)))


def _quantile(freedom: float) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


def verdict(to_twin: Estimate, energy: float) -> str:
    """What a distance's ratio to the twin's, and the energy's, say in words."""
    if to_twin.low is None or to_twin.high is None:
        better = "better" if to_twin.mean < 1 else "worse"
        said = f"{better} than its twin, on too few seeds to prove it"
    elif to_twin.high < 1:
        said = "better than its twin"
    elif to_twin.low > 1:
        said = "worse than its twin"
    else:
        said = "no difference from its twin was shown"
    return f"{said}; {energy:.2f} times its energy"
