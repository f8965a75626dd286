"""Summaries of run groups and the difference between two of them, with its interval and its p.

Invariant: pure functions of arrays, without any random draw: the same records always give the same table.

How an interval is made. `difference` compares two sides, each of n runs tested on the same N images. What was sampled
are the runs (their seeds) and the images, and, where a side has several teachers, the teachers. The interval is the
widest of three:

- **two-level**: three sources of chance, combined as in `chance`: the spread of the runs on each side, with n - 1
  degrees of freedom each, and the images. Of the images counts what remains of the variance of the per-image
  differences once the runs' own luck on each image (its mean squared spread across runs, divided by n) is taken out:
  that luck already stands in the spread of the runs' accuracies (Owen 2007, "The pigeonhole bootstrap");
- **Welch's test** of the accuracies, which knows nothing of the images;
- **the images alone**: three runs that happen to agree to the digit are no evidence beyond what their test set can
  give. Garwood's (1936) exact limits of two Poisson counts, of images gained and of images lost, are combined by
  squares. Where none of N images tells the sides apart, 1 - 0.025^(1/N), some 3.7/N, stays open.

The unit of a side with several teachers is the teacher: the runs of each are averaged first, so that its spread is that
of teachers with the seeds within them (three levels). Where a seed was used under several teachers, the teachers share
its luck, so the spread of the seeds' means is added; what teachers and seeds have in common then counts twice, which
can only widen the interval. With one teacher the unit is the run, and the statement holds for that teacher. Where both
sides have the same starts and orders (`paired`) and at least `PAIRED_FROM` seeds, the unit is the difference of a pair.

A side of one unit has no spread, and nobody else's is borrowed. Such an interval is of the images alone and of no use
for a verdict: two seeds of one and the same job part as far.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ghostcli.compare.chance import half_width, p_value, quantile

LEVEL = 0.95
#: A difference is taken pair by pair from so many pairs on: with fewer the lost degrees of freedom cost more.
PAIRED_FROM = 5
#: What an interval covers where a side has one run.
IMAGES_ONLY = "test images only"
#: The test's name where runs and images count, and where no predictions are of the accuracies compared.
TWO_LEVEL, RUNS_ONLY = "two-level", "runs alone"


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for one value) of `n` accuracies, in percent."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Sample:
    """One side: `accuracy` [n] in percent, a value a run; `correct` [n, N] bool, or None where not recorded.

    `teachers`: the name of each run's teacher. `seeds`: what each run's start and order of images follow from.
    """

    accuracy: np.ndarray
    correct: np.ndarray | None = None
    teachers: Sequence[str] | None = None
    seeds: Sequence[str | int] | None = None


@dataclass(frozen=True)
class Part:
    """One reckoning of chance: variances (points squared) and degrees of freedom, below the mean and above it."""

    dfs: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]

    def reach(self, level: float) -> tuple[float, float]:
        """How far below and above the mean the truth may lie, in points."""
        return float(half_width(level, self.down, self.dfs)), float(half_width(level, self.up, self.dfs))

    def p(self, distance: float) -> float:
        """Two-sided p of a mean that lies `distance` points above (below: negative) what is held against it."""
        return float(p_value(distance, self.down if distance > 0 else self.up, self.dfs))


@dataclass(frozen=True)
class Difference:
    """A side minus its baseline, in points of accuracy. `low`, `high` and `p` are None where nothing can be said.

    `test` names what `p` comes from; `welch` is Welch's p (of pairs: Student's); `covers` says what the interval is
    about. `parts` are the reckonings of which the widest counts; the first has every source of chance. `units` counts
    runs, pairs or teachers on each side.
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
    one_teacher: bool = False

    @property
    def of_two_networks(self) -> bool:
        """Whether a side has one run, so that nothing is known of the runs that were not made."""
        return self.covers == IMAGES_ONLY

    def p_equivalent(self, margin: float) -> float | None:
        """p of "they differ by `margin` points or more": the larger of two one-sided tests (Schuirmann 1987)."""
        if not self.parts or self.of_two_networks:
            return None
        inside = (self.mean + margin, self.mean - margin)
        if not inside[0] > 0 > inside[1]:
            return 1.0
        return max(part.p(distance) for part in self.parts for distance in inside) / 2

    def at_look(self, look: int) -> Difference:
        """The same at the `look`-th time that somebody looked and could have stopped: wider, with a larger p.

        The k-th look may spend 1/(k(k+1)) of the 5 %, and these shares add up to 1 over any number of looks.
        """
        if look < 1:
            raise ValueError("looks are counted from 1")
        if self.p is None:
            return self
        times = look * (look + 1)
        low, high = _limits(self.mean, self.parts, 1 - (1 - LEVEL) / times)
        return replace(self, low=low, high=high, p=min(1.0, self.p * times))


def summarize(accuracy: Sequence[float] | np.ndarray) -> Summary:
    values = np.asarray(accuracy, dtype=np.float64)
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float] | None:
    """Low, high and two-sided p of mean(a) - mean(b), unequal variances; None for a side of one or no spread."""
    found = _t_test(a, b, paired=False)
    return None if found is None else (*found.confidence_interval(LEVEL), float(found.pvalue))


def _t_test(a: np.ndarray, b: np.ndarray, paired: bool):
    """scipy's result of Welch's test, or of Student's on the pairs."""
    from scipy import stats

    values = [a - b] if paired else [a, b]
    if min(map(len, values)) < 2 or max(map(np.ptp, values)) < 1e-9:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a side whose runs agree to the digit
        return stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test for two runs' correctness [N] on the same images."""
    from scipy import stats

    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def difference(a: Sample, b: Sample, paired: bool = False) -> Difference:
    """Side `a` minus baseline `b`. Both `correct` must be over the same images in the same order.

    `paired`: equal seeds on both sides mean the same start and order of images.
    """
    sides, by_teacher, paired = _units(a, b, paired)
    one_teacher = any(side.teachers is not None and len(set(side.teachers)) == 1 for side in (a, b))
    mean = float(sum(accuracy.mean() for accuracy, _ in sides))
    shared = [means for side in (a, b) if (means := _by_shared_seed(side)) is not None]
    counts = [len(values) for values in (*(accuracy for accuracy, _ in sides), *shared)]
    units = (len(sides[0][0]), len(sides[-1][0]))
    seen = all(correct is not None for _, correct in sides)
    floor = [_images_alone(sum(correct.mean(axis=0) for _, correct in sides))] if seen else []

    if min(counts) < 2:
        if not seen:
            return Difference(mean, units=units, one_teacher=one_teacher)
        exact = mcnemar(a.correct[0], b.correct[0]) if max(len(a.accuracy), len(b.accuracy)) == 1 else None
        found, test = (floor[0].p(mean), IMAGES_ONLY) if exact is None else (exact, "McNemar, exact")
        low, high = _limits(mean, floor, LEVEL)
        return Difference(mean, low, high, found, test, None, IMAGES_ONLY, tuple(floor), units, paired, one_teacher)

    cross = _t_test(sides[0][0], np.zeros(units[0]) if paired else -sides[1][0], paired)
    if not seen and cross is None:
        return Difference(mean, units=units, one_teacher=one_teacher)
    parts = [
        _two_level(sides, shared),
        *([] if cross is None else [_as_part(cross)]),
        *floor,
    ]
    low, high = _limits(mean, parts, LEVEL)
    return Difference(
        mean,
        low,
        high,
        max(part.p(mean) for part in parts),
        TWO_LEVEL if seen else RUNS_ONLY,
        None if cross is None else float(cross.pvalue),
        _covers(by_teacher, seen),
        tuple(parts),
        units,
        paired,
        one_teacher,
    )


def _covers(by_teacher: bool, seen: bool) -> str:
    if by_teacher:
        return "teachers, seeds and test images" if seen else "teachers and seeds"
    return "seeds and test images" if seen else "seeds only"


def _units(a: Sample, b: Sample, paired: bool) -> tuple[list[tuple[np.ndarray, np.ndarray | None]], bool, bool]:
    """Accuracies and correctness by unit, those of `b` negative, so that sides add up; or one side of paired units.

    Also: whether teachers are units, and whether pairs are.
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
    """The means of `values` [n, ...] over the runs of one name, a row for each name."""
    labels = np.asarray(names, dtype=object).astype(str)
    return np.stack([values[labels == name].mean(axis=0) for name in sorted(set(labels))])


def _pairs(a: Sample, b: Sample) -> bool:
    """Whether the runs are compared pair by pair: a rule that looks at no result."""
    if a.seeds is None or b.seeds is None or len(set(a.seeds)) < len(a.seeds):
        return False
    return len(a.seeds) >= PAIRED_FROM and sorted(map(str, a.seeds)) == sorted(map(str, b.seeds))


def _by_shared_seed(side: Sample) -> np.ndarray | None:
    """Mean accuracy of each seed where several teachers share one; None where no seed is shared."""
    if side.seeds is None or not _several(side.teachers) or len(set(side.seeds)) == len(side.seeds):
        return None
    return _means(side.accuracy, side.seeds)


def _two_level(sides: Sequence[tuple[np.ndarray, np.ndarray | None]], seeds: Sequence[np.ndarray]) -> Part:
    """The spread of each side's units, that of seeds which units share, and what is left of the images' variance."""
    spread = [*(accuracy for accuracy, _ in sides), *seeds]
    variances = [float(values.var(ddof=1)) / len(values) for values in spread]
    dfs = [float(len(values) - 1) for values in spread]
    if sides[0][1] is not None:
        variances.append(_item_variance([correct for _, correct in sides]))
        dfs.append(math.inf)
    return Part(tuple(dfs), tuple(variances), tuple(variances))


def _item_variance(sides: Sequence[np.ndarray]) -> float:
    """Variance, in points squared, that the choice of images gives a mean difference, the units' luck taken out."""
    images = sides[0].shape[1]
    if images < 2:
        return 0.0
    total = float(sum(correct.mean(axis=0) for correct in sides).var(ddof=1))
    return 1e4 * max(0.0, total - sum(_luck(correct) / len(correct) for correct in sides)) / images


def _luck(correct: np.ndarray) -> float:
    """Variance of one unit's correctness [n, N] about the image's mean, less what whole units differ by."""
    return max(0.0, float(correct.var(axis=0, ddof=1).mean() - correct.mean(axis=1).var(ddof=1)))


def _as_part(test) -> Part:
    """The standard error and degrees of freedom of a t-test of scipy's."""
    low, high = test.confidence_interval(LEVEL)
    variance = (float(high - low) / 2 / float(quantile(LEVEL, test.df))) ** 2
    return Part((float(test.df),), (variance,), (variance,))


def _limits(mean: float, parts: Sequence[Part], level: float) -> tuple[float, float]:
    reaches = [part.reach(level) for part in parts]
    return mean - max(down for down, _ in reaches), mean + max(up for _, up in reaches)


def _images_alone(per_image: np.ndarray) -> Part:
    """The images alone, as a part: exact limits at 95 %, the normal's shape at other levels."""
    z = float(quantile(LEVEL, math.inf))
    down, up = ((reach / z) ** 2 for reach in _image_reach(per_image))
    return Part((math.inf,), (down,), (up,))


def _image_reach(per_image: np.ndarray) -> tuple[float, float]:
    """How far below and above the mean of per-image differences [N], in [-1, 1], the truth may lie, in points.

    With several runs an image counts by a fraction: a side's counts weigh what its images weigh in root mean
    square, with one image of whole weight added, for the images of which none was met.
    """
    sides = [per_image[per_image > 0], -per_image[per_image < 0]]
    (gained_low, gained_high), (lost_low, lost_high) = (_count_reach(side) for side in sides)
    points = 100 / len(per_image)
    down, up = math.hypot(gained_low, lost_high), math.hypot(gained_high, lost_low)
    return min(100.0, points * down), min(100.0, points * up)


def _count_reach(weights: np.ndarray) -> tuple[float, float]:
    """Distances of a count from its Poisson mean's exact lower and upper limit, in units of whole images."""
    from scipy import special

    count, tail = len(weights), (1 - LEVEL) / 2
    weight = math.sqrt((float(np.sum(weights**2)) + 1) / (count + 1))
    lower = float(special.gammaincinv(count, tail)) if count else 0.0
    return weight * (count - lower), weight * (float(special.gammaincinv(count + 1, 1 - tail)) - count)
