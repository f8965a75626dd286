"""What a design can find: the smallest difference it shows with 80 % probability, and the seeds that an effect takes.

Invariant: pure functions of spreads and sizes, for the test that verdicts are given by.

The noncentral t approximates the chance: the estimate is normal about the effect, and the variances behind the test's
half-width vary like one variance with Satterthwaite's degrees of freedom. `benchmarks/verdicts.py` simulates it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ghostcli.compare.chance import half_width
from ghostcli.compare.stats import LEVEL, PAIRED_FROM, Difference

POWER = 0.8
#: No plan asks for more seeds a side than this.
MOST = 1000


@dataclass(frozen=True)
class Spread:
    """What was recorded of two sides: standard deviations over runs in points, and the images' standard error.

    `pairs`: the correlation of runs with the same start and order, or None where there are no such pairs.
    """

    ours: float
    baseline: float
    images: float = 0.0
    pairs: float | None = None

    def design(self, ours: int, baseline: int) -> tuple[list[float], list[float]]:
        """Variances and degrees of freedom of the difference with so many runs on each side."""
        if self.pairs is not None and ours == baseline >= PAIRED_FROM:
            both = self.ours**2 + self.baseline**2 - 2 * self.pairs * self.ours * self.baseline
            return [both / ours, self.images**2], [ours - 1.0, math.inf]
        seeds = [self.ours**2 / ours, self.baseline**2 / baseline]
        return [*seeds, self.images**2], [ours - 1.0, baseline - 1.0, math.inf]


def found(effect: float, variances: Sequence[float], dfs: Sequence[float], comparisons: int = 1) -> float:
    """Probability that a true difference of `effect` points is called better or worse.

    `comparisons`: how many there are in the answer; the first of them to be found meets a level of 5 % / comparisons.
    """
    from scipy import stats

    total = sum(variances)
    if total == 0:
        return 1.0 if effect else 0.0
    needed = float(half_width(1 - (1 - LEVEL) / comparisons, variances, dfs)) / math.sqrt(total)
    noise = sum(v**2 / df for v, df in zip(variances, dfs, strict=True))
    shift = abs(effect) / math.sqrt(total)
    if noise == 0:
        return float(stats.norm.sf(needed - shift))
    return float(stats.nct.sf(needed, total**2 / noise, shift))


def smallest(variances: Sequence[float], dfs: Sequence[float], power: float = POWER, comparisons: int = 1) -> float:
    """The smallest true difference, in points, that is called better or worse with probability `power`."""
    from scipy import optimize

    most = float(half_width(1 - (1 - LEVEL) / comparisons, variances, dfs))
    if most == 0:
        return 0.0
    while found(most, variances, dfs, comparisons) < power:
        most *= 2
    return float(optimize.brentq(lambda effect: found(effect, variances, dfs, comparisons) - power, 0.0, most))


def could_find(delta: Difference, power: float = POWER, comparisons: int = 1) -> float | None:
    """The smallest difference that the design behind `delta` finds, by its own spreads; None where it can find none."""
    if not delta.parts or delta.of_two_networks:
        return None
    # The widest reckoning decides; of the images alone its wider side.
    return max(
        smallest([max(pair) for pair in zip(part.down, part.up, strict=True)], part.dfs, power, comparisons)
        for part in delta.parts
    )


def plan_seeds(
    effect: float, spread: Spread, power: float = POWER, comparisons: int = 1, most: int = MOST
) -> int | None:
    """Runs a side that find `effect` points with probability `power`, 2 at least; None where `most` do not suffice.

    More seeds do not help against the images' standard error: an effect below about three of them is never found.
    """
    if not (effect > 0 and 0 < power < 1 and comparisons >= 1):
        raise ValueError("an effect above 0 points, a power between 0 and 1 and a comparison or more")

    def enough(n: int) -> bool:
        return found(effect, *spread.design(n, n), comparisons) >= power

    if not enough(most):
        return None
    low, high = 1, most  # power grows with n; halve until the smallest is found
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
