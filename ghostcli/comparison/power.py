"""The power of a design: the smallest difference that it detects with 80 % probability, and the seeds for an effect.

Invariant: pure functions of spreads and sizes, for the test of the verdicts.

The power is approximated by a noncentral t: the estimate is normal around the effect, and the variances of the test
vary like one variance with Satterthwaite's degrees of freedom. `benchmarks/verdicts.py` simulates it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ghostcli.comparison.chance import half_width
from ghostcli.comparison.stats import LEVEL, PAIRED_FROM, Difference

POWER = 0.8
#: The maximum number of seeds per side in a plan.
MOST = 1000


@dataclass(frozen=True)
class Spread:
    """The recorded spread of two sides: standard deviations over runs, and the standard error from images, in points.

    `pairs`: the correlation of runs with the same start and order; None if there are no such pairs.
    """

    ours: float
    baseline: float
    images: float = 0.0
    pairs: float | None = None

    def design(self, ours: int, baseline: int) -> tuple[list[float], list[float]]:
        """Variances and degrees of freedom of the difference, for these numbers of runs per side."""
        if self.pairs is not None and ours == baseline >= PAIRED_FROM:
            both = self.ours**2 + self.baseline**2 - 2 * self.pairs * self.ours * self.baseline
            return [both / ours, self.images**2], [ours - 1.0, math.inf]
        seeds = [self.ours**2 / ours, self.baseline**2 / baseline]
        return [*seeds, self.images**2], [ours - 1.0, baseline - 1.0, math.inf]


def found(effect: float, variances: Sequence[float], dfs: Sequence[float], comparisons: int = 1) -> float:
    """Probability that a true difference of `effect` points is called better or worse.

    `comparisons`: their number in the answer. The first verdict needs p below 5 % / comparisons.
    """
    from scipy import special

    if not any(variances):
        return 1.0 if effect else 0.0
    error, needed, df = _test(variances, dfs, comparisons)
    shift = abs(effect) / error
    return float(special.ndtr(shift - needed) if math.isinf(df) else 1 - special.nctdtr(df, shift, needed))


def smallest(variances: Sequence[float], dfs: Sequence[float], comparisons: int = 1) -> float:
    """The smallest true difference, in points, that is called better or worse with probability `POWER`."""
    from scipy import special

    if not any(variances):
        return 0.0
    error, needed, df = _test(variances, dfs, comparisons)
    shift = needed + special.ndtri(POWER) if math.isinf(df) else special.nctdtrinc(df, 1 - POWER, needed)
    return error * float(shift)


def _test(variances: Sequence[float], dfs: Sequence[float], comparisons: int) -> tuple[float, float, float]:
    """The standard error, how many of them a difference needs for a verdict, and Satterthwaite's degrees of freedom."""
    total = sum(variances)
    error, noise = math.sqrt(total), sum(v**2 / df for v, df in zip(variances, dfs, strict=True))
    needed = float(half_width(1 - (1 - LEVEL) / comparisons, variances, dfs)) / error
    return error, needed, total**2 / noise if noise else math.inf


def could_find(delta: Difference, comparisons: int = 1) -> float | None:
    """The smallest difference that `delta`'s design detects, with its own spreads; None if it cannot detect any."""
    if not delta.parts or delta.of_two_networks:
        return None
    # The widest part decides. For the images alone it is the wider side.
    return max(
        smallest([max(pair) for pair in zip(part.down, part.up, strict=True)], part.dfs, comparisons)
        for part in delta.parts
    )


def plan_seeds(effect: float, spread: Spread, comparisons: int = 1) -> int | None:
    """Runs per side, at least 2, that detect `effect` > 0 points with probability `POWER`; None if `MOST` are too few.

    More seeds do not reduce the standard error from images. An effect below about three times this error is never
    detected.
    """

    def enough(n: int) -> bool:
        return found(effect, *spread.design(n, n), comparisons) >= POWER

    return bisect_left(range(MOST), True, lo=2, key=enough) if enough(MOST) else None
