"""The statistics behind a verdict: spreads, intervals, tests, calibration.

Invariant: pure functions of arrays. Nothing here draws from a generator that was not seeded here, so the same
records always give the same table.

How an interval is made. `difference` compares two arms, each of n seeds tested on the same N images. Two
things were sampled: the seeds and the images. A two-level bootstrap resamples both, the seeds within each arm,
the images jointly for both arms. Drawn naively and cut at its percentiles it fails twice: with three seeds it
undercovers (resampling n values shrinks their variance by (n-1)/n, and two degrees of freedom are not
infinitely many), and it counts the luck of a seed on an image at both levels (Owen 2007, "The pigeonhole
bootstrap"). So here

- deviations of resampled seed means are stretched by sqrt(n/(n-1));
- deviations of resampled images are shrunk by sqrt(item/total), where `item` is what remains of the variance of
  the per-image differences once the seeds' own luck on each image (its mean squared spread across seeds,
  divided by n) is taken out: that luck already stands in the spread of the seeds' accuracies;
- the half-width is the quantile of the absolute deviations (a symmetric bootstrap interval, Hall 1988),
  stretched by t(df)/z with Welch's and Satterthwaite's degrees of freedom;
- it is never narrower than the interval over the images alone: three seeds that happen to agree to the digit are
  no evidence beyond what their test set can give.

The interval over the images alone does not resample: where few images tell the arms apart a resample shows too
little, and where none does it shows nothing, though 0 of N only excludes a share above 1 - 0.025^(1/N), some 3.7/N.
It takes Garwood's (1936) exact limits of the two Poisson counts, of images gained and of images lost, and combines
their distances from the counts by squares (Zou and Donner 2008, MOVER). Counts of a multinomial vary a little less
than Poisson's, so it errs towards width, by 2 % with 250 images on each side; a simulation holds its coverage.

An arm of one seed has no spread. It borrows the other arm's where that one has more seeds (equal variances
assumed). Where both have one, interval and McNemar's test are about these two networks on images like these: two
seeds of one and the same job part as far, so nothing follows for the way of training, and no verdict is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
DRAWS = 4000
#: What an interval covers where there is one run on each side.
IMAGES_ONLY = "test images only"


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for one value) of `n` accuracies, in percent."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Sample:
    """One arm: `accuracy` [n] in percent, a value a seed; `correct` [n, N] bool, or None where not recorded."""

    accuracy: np.ndarray
    correct: np.ndarray | None = None


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline in points of accuracy. `low`, `high` and `p` are None where nothing can be said.

    `test` names what `p` comes from; `welch` is the cross-check's p; `covers` says what the interval is about.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str | None = None
    welch: float | None = None
    covers: str | None = None

    @property
    def of_two_networks(self) -> bool:
        """Whether it compares one run with one run, and so says nothing of the seeds that were not run."""
        return self.covers == IMAGES_ONLY


def summarize(accuracy: Sequence[float] | np.ndarray) -> Summary:
    values = np.asarray(accuracy, dtype=np.float64)
    return Summary(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, len(values))


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float] | None:
    """Low, high and two-sided p of mean(a) - mean(b), unequal variances; None for an arm of one or no spread."""
    from scipy import stats

    if min(len(a), len(b)) < 2 or max(np.ptp(a), np.ptp(b)) < 1e-9:
        return None
    test = stats.ttest_ind_from_stats(a.mean(), a.std(ddof=1), len(a), b.mean(), b.std(ddof=1), len(b), equal_var=False)
    mean, va, vb = a.mean() - b.mean(), a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    low, high = stats.t.interval(LEVEL, df, loc=mean, scale=math.sqrt(va + vb))
    return float(low), float(high), float(test.pvalue)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test for two runs' correctness [N] on the same images."""
    from scipy import stats

    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def difference(a: Sample, b: Sample, draws: int = DRAWS) -> Difference:
    """Arm `a` minus baseline `b`. Both `correct` must be over the same images in the same order."""
    mean = float(np.mean(a.accuracy) - np.mean(b.accuracy))
    cross = welch(a.accuracy, b.accuracy)
    cross_p = cross[2] if cross else None
    if a.correct is None or b.correct is None:
        if cross is None:
            return Difference(mean)
        return Difference(mean, cross[0], cross[1], cross_p, "Welch", cross_p, "seeds only")

    per_image = a.correct.mean(axis=0) - b.correct.mean(axis=0)
    down, up = _image_reach(per_image)
    if max(len(a.accuracy), len(b.accuracy)) == 1:
        exact = mcnemar(a.correct[0], b.correct[0])
        return Difference(mean, mean - down, mean + up, exact, "McNemar, exact", None, IMAGES_ONLY)
    seeds = _seed_deviations(a, b, draws)
    half, p = _student(mean, seeds.draws + seeds.item_share * _image_deviations(per_image, draws), seeds.df)
    down, up, p = max(half, down), max(half, up), max(p, _normal_p(mean, down if mean > 0 else up))
    covers = "seeds and test images" + (", one arm's spread borrowed" if seeds.borrowed else "")
    return Difference(mean, mean - down, mean + up, p, "two-level bootstrap", cross_p, covers)


def _image_reach(per_image: np.ndarray) -> tuple[float, float]:
    """How far below and above the mean of per-image differences [N], in [-1, 1], the truth may lie, in points.

    With several seeds an image counts by a fraction: a side's counts weigh what its images weigh in root mean
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


def _image_deviations(per_image: np.ndarray, draws: int) -> np.ndarray:
    """Deviations [draws], in points, of the mean per-image difference when images are resampled jointly.

    Images with equal differences are interchangeable, so counts of the few distinct values are drawn.
    """
    values, counts = np.unique(per_image.round(9), return_counts=True)
    total = len(per_image)
    drawn = np.random.default_rng(1).multinomial(total, counts / total, size=draws)
    return 100 * (drawn @ values / total - per_image.mean())


@dataclass(frozen=True)
class _Seeds:
    draws: np.ndarray
    df: float
    item_share: float
    borrowed: bool


def _seed_deviations(a: Sample, b: Sample, draws: int) -> _Seeds:
    """Deviations [draws] from resampling seeds within each arm, and what of the images' variance is no luck."""
    arms = (a, b)
    spread = [_residuals(arm.accuracy) for arm in arms]
    luck = [_luck(arm) for arm in arms]
    borrowed = False
    for this, other in ((0, 1), (1, 0)):
        if len(arms[this].accuracy) == 1:
            spread[this], luck[this], borrowed = spread[other], luck[other], True

    generator = np.random.default_rng(2)
    sizes = [len(arm.accuracy) for arm in arms]
    drawn = np.zeros(draws)
    for sign, residuals, n in zip((1, -1), spread, sizes, strict=True):
        drawn += sign * generator.choice(residuals, size=(draws, n)).mean(axis=1)

    images = a.correct.shape[1]
    total = float((a.correct.mean(axis=0) - b.correct.mean(axis=0)).var(ddof=1)) if images > 1 else 0.0
    item = max(0.0, total - sum(share / n for share, n in zip(luck, sizes, strict=True)))

    variances = [float(np.mean(r**2)) / n for r, n in zip(spread, sizes, strict=True)]
    dfs = [len(r) - 1 for r in spread]
    if borrowed:
        variances, dfs = [sum(variances)], dfs[:1]
    whole = sum(variances) + 1e4 * item / images
    noise = sum(v**2 / df for v, df in zip(variances, dfs, strict=True))
    df = whole**2 / noise if noise > 0 else math.inf
    return _Seeds(drawn, df, math.sqrt(item / total) if total > 0 else 0.0, borrowed)


def _residuals(accuracy: np.ndarray) -> np.ndarray:
    """Deviations from the mean, stretched so that their mean square is the unbiased variance."""
    n = len(accuracy)
    return (accuracy - accuracy.mean()) * math.sqrt(n / (n - 1)) if n > 1 else np.zeros(1)


def _luck(arm: Sample) -> float:
    """Variance of one seed's correctness on an image about the image's mean, less what whole seeds differ by."""
    if len(arm.correct) < 2:
        return 0.0
    return max(0.0, float(arm.correct.var(axis=0, ddof=1).mean() - arm.correct.mean(axis=1).var(ddof=1)))


def _student(mean: float, deviations: np.ndarray, df: float) -> tuple[float, float]:
    """Half-width of the symmetric bootstrap interval stretched by t/z, and the p that is `1 - LEVEL` at its edge."""
    from scipy import special

    tail = (1 + LEVEL) / 2
    half = float(np.quantile(np.abs(deviations), LEVEL))
    if half == 0 or math.isinf(df):
        return half, _normal_p(mean, half)
    error = half / float(special.ndtri(tail))
    return float(special.stdtrit(df, tail)) * error, float(2 * special.stdtr(df, -abs(mean) / error))


def _normal_p(mean: float, half: float) -> float:
    """The two-sided p that is `1 - LEVEL` where a normal interval of this half-width touches zero."""
    from scipy import special

    if half == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.ndtr(-abs(mean) * float(special.ndtri((1 + LEVEL) / 2)) / half))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over the values that are there; None stays None."""
    ordered = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    running = 0.0
    for rank, (value, i) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * value))
        adjusted[i] = running
    return adjusted


def verdict(delta: Difference, adjusted_p: float | None, margin: float) -> str | None:
    """better | worse | equivalent | not distinguished; None without an interval.

    Of two single networks always the last: their interval knows nothing of the spread between seeds.
    equivalent: the whole interval lies within +-`margin` points (two one-sided tests at half of 5 % each); the
    margin is what the reader calls no difference, so it is asked first. better, worse: the interval leaves
    zero out and p, adjusted over the table's rows, is below 5 %.
    """
    if delta.low is None or delta.high is None:
        return None
    if delta.of_two_networks:
        return "not distinguished"
    if adjusted_p is None:
        return None
    if -margin <= delta.low and delta.high <= margin:
        return "equivalent"
    if adjusted_p < 1 - LEVEL and not delta.low <= 0 <= delta.high:
        return "better" if delta.mean > 0 else "worse"
    return "not distinguished"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, [..., C]; the temperature is left alone."""
    x = _finite(logits)
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _finite(logits: np.ndarray) -> np.ndarray:
    """float64, with what overflowed in float16 at that type's limits."""
    most = float(np.finfo(np.float16).max)
    return np.nan_to_num(np.asarray(logits, dtype=np.float64), nan=0.0, posinf=most, neginf=-most)


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of `labels` [N] under `logits` [N, C], in nats."""
    x = _finite(logits)
    x = x - x.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), labels]))


@dataclass(frozen=True)
class Bins:
    """Equal-width bins of confidence: how many images, their mean confidence and their accuracy (fractions)."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> Bins:
    """Confidence (the largest probability) against accuracy; bins are (k/bins, (k+1)/bins]. Empty ones hold 0."""
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    safe = np.maximum(count, 1)
    mean = [np.bincount(which, weights=values, minlength=bins) / safe for values in (confidence, correct)]
    return Bins(count, *mean)


def ece(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo 2017), a fraction: mean |confidence - accuracy| weighed by count."""
    table = calibration(logits, labels, bins)
    return float(np.sum(table.count * np.abs(table.confidence - table.accuracy)) / table.count.sum())


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Percent of images on which two sets of logits [N, C] have the same first choice."""
    return 100 * float(np.mean(np.argmax(a, axis=1) == np.argmax(b, axis=1)))
