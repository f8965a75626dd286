"""Summaries of run groups, and the difference of two groups with its interval and p (docs/comparisons.md).

Invariant: pure functions of arrays, without random draws. The same records always give the same table.

`difference` compares two sides, each with n runs tested on the same N images. The interval is the widest of three:

- **two-level**: the spread of each side's runs and the variance from the images, combined as in `chance`. The latter is
  that of the per-image differences, minus the part from the runs (the mean variance of an image across runs, divided
  by n), which is already in the spread of the runs' accuracies (Owen 2007, "The pigeonhole bootstrap");
- **Welch's test** of the accuracies, without the images;
- **images only**: the exact limits of two Poisson counts (Garwood 1936), images gained and images lost, combined by the
  root of the sum of squares.

If a side has several teachers, its units are the teachers: the runs of each teacher are averaged first. If several
teachers have students with the same seed, the spread of the seeds' means is added. The common part of teachers and
seeds then counts twice, which can only widen the interval. If both sides have the same starts and orders (`paired`) and
at least `PAIRED_FROM` seeds, the units are the differences of pairs.

A side with one unit has no spread, and no other spread is used for it. Its interval covers the images only, and the
verdict is always "not distinguished", because two seeds of the same job can differ as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ghostcli.comparison.chance import half_width, p_value, quantile

LEVEL = 0.95
#: The minimum number of pairs for a comparison in pairs. With fewer the lost degrees of freedom cost more.
PAIRED_FROM = 5
#: What an interval covers if a side has one run.
IMAGES_ONLY = "test images only"
#: The name of the test with runs and images, and without predictions for the compared accuracies.
TWO_LEVEL, RUNS_ONLY = "two-level", "runs alone"


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for one value) of `n` accuracies, in percent."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Sample:
    """One side: `accuracy` [n] in percent, one value per run; `correct` [n, N] bool, or None if not recorded.

    `teachers`: the name of each run's teacher. `seeds`: the seed of each run, which determines its start and order.
    """

    accuracy: np.ndarray
    correct: np.ndarray | None = None
    teachers: Sequence[str] | None = None
    seeds: Sequence[str | int] | None = None


@dataclass(frozen=True)
class Part:
    """One estimate of the uncertainty: variances (points squared) below and above the mean, degrees of freedom."""

    dfs: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]

    def reach(self) -> tuple[float, float]:
        """The distances of the interval's limits below and above the mean, in points."""
        return float(half_width(LEVEL, self.down, self.dfs)), float(half_width(LEVEL, self.up, self.dfs))

    def p(self, distance: float) -> float:
        """Two-sided p of a mean that is `distance` points above (negative: below) the compared value."""
        return float(p_value(distance, self.down if distance > 0 else self.up, self.dfs))


@dataclass(frozen=True)
class Difference:
    """A side minus its baseline, in points of accuracy. `low`, `high` and `p` are None if they are unknown.

    `test`: the test of `p`. `welch`: Welch's p (for pairs: Student's). `covers`: the sources of chance in the interval.
    `parts`: the estimates; the widest counts, and the first has all sources of chance. `units`: the number of runs,
    pairs or teachers on each side.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str | None = None
    welch: float | None = None
    covers: str | None = None
    parts: tuple[Part, ...] = ()
    units: tuple[int, int] = (0, 0)
    paired: bool = False

    @property
    def of_two_networks(self) -> bool:
        """Whether a side has one run, so its spread over runs is unknown."""
        return self.covers == IMAGES_ONLY or 1 in self.units

    def p_equivalent(self, margin: float) -> float | None:
        """p of "they differ by `margin` points or more": the larger of two one-sided tests (Schuirmann 1987)."""
        if not self.parts or self.of_two_networks:
            return None
        inside = (self.mean + margin, self.mean - margin)
        if not inside[0] > 0 > inside[1]:
            return 1.0
        return max(part.p(distance) for part in self.parts for distance in inside) / 2


def summarize(accuracy: Sequence[float] | np.ndarray) -> Summary:
    values = np.asarray(accuracy, dtype=np.float64)
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def interval_of(percent: float, images: int) -> tuple[float, float]:
    """The 95 % interval, in percent, of one network's accuracy over the choice of images: Wilson's (1927)."""
    right, z2 = round(percent * images / 100), float(quantile(LEVEL, math.inf)) ** 2
    share = right / images
    centre = share + z2 / (2 * images)
    reach = math.sqrt(z2 * (share * (1 - share) / images + z2 / (4 * images**2)))
    # At the ends the exact limit is 0 or 1, which rounding may miss.
    low = 0.0 if right == 0 else (centre - reach) / (1 + z2 / images)
    high = 1.0 if right == images else (centre + reach) / (1 + z2 / images)
    return 100 * low, 100 * high


def _t_part(*sides: np.ndarray) -> Part | None:
    """Welch's test of two sides (1947), or Student's of one side of pairs, as a part. None without spread."""
    if min(map(len, sides)) < 2 or max(map(np.ptp, sides)) < 1e-9:
        return None
    squares = [float(np.var(side, ddof=1)) / len(side) for side in sides]
    weights = [square**2 / (len(side) - 1) for square, side in zip(squares, sides, strict=True)]
    variance = sum(squares)
    return Part((variance**2 / sum(weights),), (variance,), (variance,))


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test for two runs' correctness [N] on the same images."""
    from scipy import special

    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def difference(a: Sample, b: Sample, paired: bool = False) -> Difference:
    """Side `a` minus baseline `b`. Both `correct` must be for the same images in the same order.

    `paired`: equal seeds on both sides mean the same start and order of images.
    """
    sides, by_teacher, paired = _units(a, b, paired)
    mean = float(sum(accuracy.mean() for accuracy, _ in sides))
    shared = [means for side in (a, b) if (means := _by_shared_seed(side)) is not None]
    counts = [len(values) for values in (*(accuracy for accuracy, _ in sides), *shared)]
    seen = all(correct is not None for _, correct in sides)
    floor = (_images_alone(sum(correct.mean(axis=0) for _, correct in sides)),) if seen else ()
    units = (len(sides[0][0]), len(sides[-1][0]))
    unknown = Difference(mean, units=units, paired=paired)

    if min(counts) < 2:
        if not seen:
            return unknown
        exact = mcnemar(a.correct[0], b.correct[0]) if max(len(a.accuracy), len(b.accuracy)) == 1 else None
        p, test = (floor[0].p(mean), IMAGES_ONLY) if exact is None else (exact, "McNemar, exact")
        low, high = _limits(mean, floor)
        return replace(unknown, low=low, high=high, p=p, test=test, covers=IMAGES_ONLY, parts=floor)

    cross = _t_part(*(accuracy for accuracy, _ in sides))
    if not seen and cross is None:
        return unknown
    parts = (_two_level(sides, shared), *((cross,) if cross else ()), *floor)
    low, high = _limits(mean, parts)
    return replace(
        unknown,
        low=low,
        high=high,
        p=max(part.p(mean) for part in parts),
        test=TWO_LEVEL if seen else RUNS_ONLY,
        welch=None if cross is None else cross.p(mean),
        covers=_covers(by_teacher, seen),
        parts=parts,
    )


def _covers(by_teacher: bool, seen: bool) -> str:
    if by_teacher:
        return "teachers, seeds and test images" if seen else "teachers and seeds"
    return "seeds and test images" if seen else "seeds only"


def _units(a: Sample, b: Sample, paired: bool) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], bool, bool]:
    """Accuracies and correctness by unit. Those of `b` are negative, so the sides add up. Pairs form one side.

    Also returns whether the units are teachers, and whether they are pairs.
    """
    seen = a.correct is not None and b.correct is not None
    several = [_several(side.teachers) for side in (a, b)]
    if paired and not any(several) and _pairs(a, b):
        ours, theirs = (np.argsort(np.asarray(side.seeds, dtype=object).astype(str)) for side in (a, b))
        correct = a.correct[ours].astype(np.float64) - b.correct[theirs] if seen else None
        return [(a.accuracy[ours] - b.accuracy[theirs], correct)], False, True
    sides = []
    for sign, side, by_teacher in zip((1, -1), (a, b), several, strict=True):
        values = (side.accuracy, side.correct if seen else None)
        if by_teacher:
            values = [None if v is None else _means(v, side.teachers) for v in values]
        sides.append(tuple(None if v is None else sign * np.asarray(v, dtype=np.float64) for v in values))
    return sides, any(several), False


def _several(names: Sequence[str | int] | None) -> bool:
    return names is not None and len(set(names)) > 1


def _means(values: np.ndarray, names: Sequence[str | int]) -> np.ndarray:
    """The means of `values` [n, ...] over the runs with the same name, one row per name."""
    labels = np.asarray(names, dtype=object).astype(str)
    return np.stack([values[labels == name].mean(axis=0) for name in sorted(set(labels))])


def _pairs(a: Sample, b: Sample) -> bool:
    """Whether to compare the runs in pairs. The rule does not depend on any result."""
    if a.seeds is None or b.seeds is None or len(set(a.seeds)) < len(a.seeds):
        return False
    return len(a.seeds) >= PAIRED_FROM and sorted(map(str, a.seeds)) == sorted(map(str, b.seeds))


def _by_shared_seed(side: Sample) -> np.ndarray | None:
    """Mean accuracy of each seed, if several teachers share seeds; None if no seed is shared."""
    if side.seeds is None or not _several(side.teachers) or len(set(side.seeds)) == len(side.seeds):
        return None
    return _means(side.accuracy, side.seeds)


def _two_level(sides: Sequence[tuple[np.ndarray, np.ndarray | None]], seeds: Sequence[np.ndarray]) -> Part:
    """The spread of each side's units, the spread of shared seeds, and the variance from the images."""
    spread = [*(accuracy for accuracy, _ in sides), *seeds]
    variances = [float(values.var(ddof=1)) / len(values) for values in spread]
    dfs = [float(len(values) - 1) for values in spread]
    if sides[0][1] is not None:
        variances.append(_item_variance([correct for _, correct in sides]))
        dfs.append(math.inf)
    return Part(tuple(dfs), tuple(variances), tuple(variances))


def _item_variance(sides: Sequence[np.ndarray]) -> float:
    """Variance of a mean difference from the choice of images, in points squared, without the part from the units."""
    images = sides[0].shape[1]
    if images < 2:
        return 0.0
    total = float(sum(correct.mean(axis=0) for correct in sides).var(ddof=1))
    return 1e4 * max(0.0, total - sum(_luck(correct) / len(correct) for correct in sides)) / images


def _luck(correct: np.ndarray) -> float:
    """Variance of a unit's correctness [n, N] around the image's mean, minus the variance between units."""
    return max(0.0, float(correct.var(axis=0, ddof=1).mean() - correct.mean(axis=1).var(ddof=1)))


def _limits(mean: float, parts: Sequence[Part]) -> tuple[float, float]:
    reaches = [part.reach() for part in parts]
    return mean - max(down for down, _ in reaches), mean + max(up for _, up in reaches)


def _images_alone(per_image: np.ndarray) -> Part:
    """The uncertainty from the images only, of per-image differences [N] in [-1, 1], as a part.

    The limits at 95 % are exact; at other levels they are scaled like a normal's. With several runs an image has a
    fractional weight. The weight of a side's counts is the root mean square of its images' weights, with one image of
    weight 1 added for images that are not in the sample.
    """
    gained_low, gained_high = _count_reach(per_image[per_image > 0])
    lost_low, lost_high = _count_reach(-per_image[per_image < 0])
    down, up = math.hypot(gained_low, lost_high), math.hypot(gained_high, lost_low)
    points, z = 100 / len(per_image), float(quantile(LEVEL, math.inf))
    down, up = ((min(100.0, points * reach) / z) ** 2 for reach in (down, up))
    return Part((math.inf,), (down,), (up,))


def _count_reach(weights: np.ndarray) -> tuple[float, float]:
    """Distances of a count from the exact lower and upper limit of its Poisson mean, in images."""
    from scipy import special

    count, tail = len(weights), (1 - LEVEL) / 2
    weight = math.sqrt((float(np.sum(weights**2)) + 1) / (count + 1))
    lower = float(special.gammaincinv(count, tail)) if count else 0.0
    return weight * (count - lower), weight * (float(special.gammaincinv(count + 1, 1 - tail)) - count)
