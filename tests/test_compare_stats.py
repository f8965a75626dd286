"""Statistics against closed forms, and by simulation with known truth."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from ghostcli.comparison import calibration, chance, stats, verdicts
from ghostcli.comparison.stats import Difference, Sample

TIMES = 300


def holm(p: list[float | None]) -> list[float | None]:
    """What the correction is where only differences are asked about: Holm's (1979)."""
    return [adjusted for adjusted, _ in verdicts.shaffer(p, [None] * len(p))]


def arm(correct: np.ndarray) -> Sample:
    return Sample(100 * correct.mean(axis=1), correct)


def simulate(
    rng: np.random.Generator,
    seeds: tuple[int, ...],
    images: int = 800,
    accuracy: float = 0.9,
    effect: float = 0.0,
    seed_spread: float = 0.0,
) -> list[Sample]:
    """Arms of networks that are right where image + arm + seed + luck stays below a threshold, all normal.

    The first arm's threshold is set so that its expected accuracy, over images and seeds, is `accuracy + effect`;
    that of all others is `accuracy`. So the truth is known: in points, 100 * effect.
    """
    from scipy.special import ndtri

    image, of_arm, luck = 2.0, 0.35, 0.6
    total = math.sqrt(image**2 + of_arm**2 + luck**2 + seed_spread**2)
    hardness = rng.normal(0, image, images)
    arms = []
    for i, n in enumerate(seeds):
        threshold = ndtri(accuracy + (effect if i == 0 else 0.0)) * total
        common = hardness + rng.normal(0, of_arm, images)
        noise = rng.normal(0, luck, (n, images)) + rng.normal(0, 1, (n, 1)) * seed_spread
        arms.append(arm(common + noise < threshold))
    return arms


def coverage(seeds: tuple[int, int], seed_spread: float, times: int = TIMES) -> float:
    rng = np.random.default_rng([*seeds, round(100 * seed_spread)])
    hits = 0
    for _ in range(times):
        a, b = simulate(rng, seeds, effect=0.01, seed_spread=seed_spread)
        found = stats.difference(a, b)
        hits += found.low <= 1.0 <= found.high
    return hits / times


def alone(found: Difference, margin: float = 0.3) -> str | None:
    """The verdict of a comparison that is the only one."""
    return verdicts.judge([found], margin)[0].verdict


@pytest.mark.parametrize("seeds", [(3, 3), (3, 5), (5, 5), (2, 2)])
@pytest.mark.parametrize("seed_spread", [0.0, 0.1])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: tuple[int, int], seed_spread: float) -> None:
    # Seeds that differ by nothing but luck on each image, and seeds that are good or bad as a whole.
    allowed = 3 * math.sqrt(0.95 * 0.05 / TIMES)
    found = coverage(seeds, seed_spread)
    assert found > 0.95 - allowed
    if min(seeds) > 2:  # near nominal from above too: an interval that always covers says nothing
        assert found < 0.9975


def test_the_simulation_tells_a_bad_interval_from_a_good_one() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        a, b = simulate(rng, (3, 3), seed_spread=0.15)
        drawn = [
            x.accuracy[rng.integers(0, 3, (400, 3))].mean(axis=1) for x in (a, b)
        ]  # the percentile bootstrap over three seeds
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        hits += low <= 0 <= high
    assert hits / 200 < 0.85


@pytest.mark.parametrize("seeds", [3, 1])
def test_tables_without_an_effect_seldom_give_a_verdict(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    rows, tables, wrong_rows, wrong_tables = 6, 150, 0, 0
    for _ in range(tables):
        *taught, baseline = simulate(rng, (seeds,) * (rows + 1), seed_spread=0.05 if seeds > 1 else 0.0)
        found = [stats.difference(a, baseline) for a in taught]
        adjusted = holm([d.p for d in found])
        # For single runs the promise is McNemar's alone: they get no verdict.
        wrong = sum(p < 0.05 for p in adjusted)
        said = {verdicts.verdict(d, p, d.p_equivalent(0.3)) for d, p in zip(found, adjusted, strict=True)}
        assert seeds > 1 or said == {"not distinguished"}
        wrong_rows += wrong
        wrong_tables += wrong > 0
    assert wrong_rows / (rows * tables) <= 0.05
    assert wrong_tables / tables <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)


def test_a_large_effect_is_found() -> None:
    rng = np.random.default_rng(0)
    signs = []
    for effect in (0.04, -0.04):
        a, b = simulate(rng, (3, 3), images=4000, effect=effect)
        found = stats.difference(a, b)
        signs.append(alone(found))
    assert signs == ["better", "worse"]


def test_half_width_combines_the_sources_by_squares() -> None:
    from scipy.stats import t

    rng = np.random.default_rng(3)
    a, b = simulate(rng, (5, 4), images=2000, seed_spread=0.1)
    found = stats.difference(a, b)
    seeds = [x.accuracy.var(ddof=1) / len(x.accuracy) for x in (a, b)]
    luck = [
        (x.correct.var(axis=0, ddof=1).mean() - x.correct.mean(axis=1).var(ddof=1)) / len(x.correct) for x in (a, b)
    ]
    item = 1e4 * ((a.correct.mean(axis=0) - b.correct.mean(axis=0)).var(ddof=1) - sum(luck)) / 2000
    half = math.sqrt(t.ppf(0.975, 4) ** 2 * seeds[0] + t.ppf(0.975, 3) ** 2 * seeds[1] + 1.959964**2 * item)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-6)
    assert found.mean == pytest.approx((found.low + found.high) / 2)
    assert (found.test, found.covers, found.units) == ("two-level", "seeds and test images", (5, 4))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_p_is_the_level_whose_half_width_is_the_distance(level: float) -> None:
    for sources in (([0.3, 0.02, 0.1], [1, 9, math.inf]), ([0.3], [2]), ([0.0, 0.2], [1, 4]), ([0.4, 0.1], [3, 3])):
        half = chance.half_width(level, *sources)
        assert chance.p_value(half, *sources) == pytest.approx(1 - level, rel=1e-5)
    assert chance.p_value(0.0, [0.3, 0.1], [1, 4]) == pytest.approx(1)
    assert chance.p_value(1.0, [0.0], [3]) == pytest.approx(0, abs=1e-200)


def test_the_interval_is_the_widest_of_three() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(12)
    for n in (2, 3, 3, 3, 5, 10):
        a, b = simulate(rng, (n, n), seed_spread=0.1)
        found = stats.difference(a, b)
        low, high = ttest_ind(a.accuracy, b.accuracy, equal_var=False).confidence_interval(0.95)
        counts = 1.96 * 100 * (a.correct.mean(axis=0) - b.correct.mean(axis=0)).std() / math.sqrt(800)
        assert found.low <= low + 1e-9 and high - 1e-9 <= found.high
        assert (found.high - found.low) / 2 >= 0.999 * counts


def test_one_run_each_covers_test_images_alone_and_asks_mcnemar() -> None:
    rng = np.random.default_rng(4)
    a, b = simulate(rng, (1, 1), images=2000)
    found = stats.difference(a, b)
    d = a.correct[0].astype(float) - b.correct[0]
    wald = 1.96 * 100 * d.std() / math.sqrt(2000)
    assert wald < (found.high - found.low) / 2 < 1.05 * wald  # some 70 images tell the arms apart
    assert found.p == stats.mcnemar(a.correct[0], b.correct[0])
    assert found.covers == "test images only"
    assert found.welch is None


def test_seeds_that_agree_to_the_digit_are_no_proof() -> None:
    # Three seeds without any spread, the arms 4 images of 400 apart: the test set alone leaves that open.
    right = np.ones((3, 400), dtype=bool)
    a, b = right.copy(), right.copy()
    a[:, :10], b[:, 6:20] = False, False
    found = stats.difference(arm(a), arm(b))
    assert found.mean == pytest.approx(1.0)
    assert found.low < 0 < found.high


def test_without_predictions_the_spreads_are_all_there_is() -> None:
    from scipy.stats import t

    a, b = np.array([91.0, 91.4, 91.1]), np.array([90.2, 90.9, 90.4, 90.5])
    found = stats.difference(Sample(a), Sample(b))
    half = math.sqrt(t.ppf(0.975, 2) ** 2 * a.var(ddof=1) / 3 + t.ppf(0.975, 3) ** 2 * b.var(ddof=1) / 4)
    assert (found.low, found.high) == pytest.approx((a.mean() - b.mean() - half, a.mean() - b.mean() + half))
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    assert found.welch == pytest.approx(2 * t.sf((a.mean() - b.mean()) / math.sqrt(va + vb), df))
    assert found.p > found.welch
    assert stats.difference(Sample(a[:1]), Sample(b)) == Difference(a[0] - b.mean(), units=(1, 4))


def test_the_same_records_give_the_same_interval() -> None:
    a, b = simulate(np.random.default_rng(8), (3, 3))
    assert stats.difference(a, b) == stats.difference(a, b)


def test_p_is_five_percent_where_zero_is_the_edge() -> None:
    a, b = simulate(np.random.default_rng(9), (3, 3), seed_spread=0.2)
    edge = stats.difference(a, b)
    shifted = Sample(a.accuracy - edge.low, a.correct)  # accuracies alone decide the mean
    assert stats.difference(shifted, b).p == pytest.approx(0.05, abs=1e-6)


def test_mcnemar_is_the_exact_binomial() -> None:
    a = np.array([1] * 9 + [0] * 2 + [1] * 30 + [0] * 5, dtype=bool)
    b = np.array([0] * 9 + [1] * 2 + [1] * 30 + [0] * 5, dtype=bool)
    tail = sum(math.comb(11, k) for k in (0, 1, 2))
    assert stats.mcnemar(a, b) == pytest.approx(float(Fraction(2 * tail, 2**11)))
    assert stats.mcnemar(a, a) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([None]) == [None]


@pytest.mark.parametrize(
    ("low", "high", "p", "equivalent", "expected"),
    [
        (0.1, 0.5, 0.01, 0.4, "better"),
        (-0.5, -0.1, 0.01, 0.4, "worse"),
        (-0.5, -0.1, 0.2, 0.4, "not distinguished"),  # the correction took it back
        (-0.1, 0.5, 0.2, 0.4, "not distinguished"),
        (-0.2, 0.29, 0.5, 0.01, "equivalent"),
        (0.05, 0.25, 0.001, 0.001, "better"),  # a difference is a difference, however small
        (None, None, None, None, None),
    ],
)
def test_verdicts(
    low: float | None, high: float | None, p: float | None, equivalent: float | None, expected: str | None
) -> None:
    mean = 0.3 if low is None else (low + high) / 2
    assert verdicts.verdict(Difference(mean, low, high, p), p, equivalent) == expected


def test_a_wide_margin_does_not_hide_a_difference() -> None:
    a, b = (arm(np.arange(4000) < 4000 * (share + np.array([[0], [0.001], [0.002]]))) for share in (0.70, 0.65))
    for margin in (0.3, 8.0):
        assert verdicts.judge([stats.difference(a, b)], margin)[0].verdict == "better"


def test_equivalence_is_two_one_sided_tests() -> None:
    from scipy.stats import t

    a, b = np.array([90.0, 90.2, 90.1, 90.1]), np.array([90.0, 90.1, 90.2, 90.2])
    found = stats.difference(Sample(a), Sample(b))
    error = math.sqrt(a.var(ddof=1) / 4 + b.var(ddof=1) / 4)
    assert found.p_equivalent(0.3) == pytest.approx(t.sf((0.3 - abs(found.mean)) / error, 3), rel=1e-4)
    assert found.p_equivalent(0.01) == 1.0
    assert verdicts.judge([found], 0.3)[0].verdict == "equivalent"


def test_one_correction_spans_both_claims_of_all_comparisons() -> None:
    # Three comparisons count three times until both hypotheses of one are rejected.
    found = verdicts.shaffer([0.001, 0.02, None], [0.9, 0.001, None])
    assert found == [pytest.approx((0.002, 0.9)), pytest.approx((0.04, 0.002)), (None, None)]


def test_summaries() -> None:
    assert stats.summarize([91.0]) == stats.Summary(91.0, None, 1)
    found = stats.summarize([90.0, 91.0, 92.0])
    assert (found.mean, found.sd, found.n) == (91.0, 1.0, 3)


def logits_of(probabilities: list[list[float]]) -> np.ndarray:
    return np.log(np.array(probabilities))


def test_nll_of_known_probabilities() -> None:
    logits = logits_of([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]) + np.array([[3.0], [-700.0]])  # shifts change nothing
    assert calibration.nll(logits, np.array([0, 2])) == pytest.approx((math.log(2) + math.log(10)) / 2)


def test_ece_of_known_probabilities() -> None:
    # 10 images at confidence 0.9, 7 right; 10 at 0.6, 8 right: (|0.7 - 0.9| + |0.8 - 0.6|) / 2.
    logits = logits_of([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [0] * 8 + [1] * 2)
    assert calibration.ece(logits, labels) == pytest.approx(0.2)
    table = calibration.calibration(logits, labels, bins=10)
    assert table.count.tolist() == [0, 0, 0, 0, 0, 10, 0, 0, 10, 0]
    assert table.accuracy[8] == pytest.approx(0.7)
    assert calibration.ece(logits * 1000, np.zeros(20, dtype=int)) == pytest.approx(0.0)


def test_ece_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.normal(size=(300, 10)), rng.integers(0, 10, 300)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = 0.0
    for k in range(15):
        inside = [i for i in range(300) if k / 15 < p[i].max() <= (k + 1) / 15]
        if inside:
            gap = np.mean([p[i].argmax() == labels[i] for i in inside]) - np.mean([p[i].max() for i in inside])
            expected += len(inside) / 300 * abs(gap)
    assert calibration.ece(logits, labels) == pytest.approx(expected)


def test_logits_that_overflowed_are_at_their_limit() -> None:
    logits = np.array([[np.inf, 0.0], [0.0, -np.inf]], dtype=np.float16)
    assert calibration.softmax(logits) == pytest.approx(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert calibration.nll(logits, np.array([0, 0])) == pytest.approx(0.0)


def pairs(rng: np.random.Generator, images: int, gained: float, lost: float, seeds: int) -> tuple[Sample, Sample]:
    """Two arms that are alike but on a share `gained` of all images, right in the first alone, and `lost` likewise."""
    kind = rng.choice(3, size=images, p=[gained, lost, 1 - gained - lost])
    right = rng.random(images) < 0.9
    a, b = np.where(kind == 0, True, right & (kind != 1)), np.where(kind == 1, True, right & (kind != 0))
    return arm(np.tile(a, (seeds, 1))), arm(np.tile(b, (seeds, 1)))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("images", [60, 250])
@pytest.mark.parametrize(("gained", "lost"), [(0.002, 0.0), (0.004, 0.001), (0.01, 0.0), (0.02, 0.01), (0.05, 0.05)])
def test_the_interval_covers_where_few_images_are_told_apart(
    gained: float, lost: float, images: int, seeds: int
) -> None:
    rng = np.random.default_rng([images, seeds, round(1e4 * gained)])
    times = 200
    found = [stats.difference(*pairs(rng, images, gained, lost, seeds)) for _ in range(times)]
    truth = 100 * (gained - lost)
    hits = sum(d.low <= truth <= d.high for d in found)
    assert hits / times > 0.95 - 3 * math.sqrt(0.95 * 0.05 / times)
    assert sum(alone(d) == "equivalent" for d in found) / times <= 0.05  # no 250 images show that


def test_seeds_that_differ_on_few_images_are_covered() -> None:
    # Each seed of either arm is wrong by its own luck on one image in 300: truth is no difference.
    rng = np.random.default_rng(21)
    found = [stats.difference(*(arm(rng.random((3, 250)) > 1 / 300) for _ in range(2))) for _ in range(200)]
    assert sum(d.low <= 0 <= d.high for d in found) / 200 > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)
    assert not any(alone(d) == "equivalent" for d in found)


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_image_told_apart_excludes_no_more_than_the_exact_bound(seeds: int) -> None:
    for images in (250, 10_000):
        same = arm(np.tile(np.arange(images) % 10 > 0, (seeds, 1)))
        found = stats.difference(same, same)
        exact = 100 * (1 - 0.025 ** (1 / images))  # Clopper and Pearson's upper limit of 0 in N
        assert found.high == -found.low
        assert exact <= found.high <= 1.01 * exact
        assert found.p == 1.0
        known = images == 10_000 and seeds > 1  # two single networks, were they constant, say nothing of seeds
        assert alone(found) == ("equivalent" if known else "not distinguished")


@pytest.mark.parametrize("told_apart", [0, 200, -200])
def test_two_single_networks_have_an_interval_and_no_verdict(told_apart: int) -> None:
    better, worse = np.ones((1, 2000), dtype=bool), np.arange(2000)[None] >= abs(told_apart)
    a, b = (better, worse) if told_apart > 0 else (worse, better)
    found = stats.difference(arm(a), arm(b))
    assert found.of_two_networks
    assert (found.p < 0.001) == (found.low > 0 or found.high < 0) == bool(told_apart)
    assert alone(found, 5.0) == "not distinguished"


@pytest.mark.parametrize("others", [3, 5])
def test_one_run_against_several_has_no_verdict_whatever_the_images_say(others: int) -> None:
    one, several = np.arange(2000)[None] < 1900, np.arange(2000)[None] < 1500 + np.arange(others)[:, None]
    for a, b in ((one, several), (several, one)):
        found = stats.difference(arm(a), arm(b))
        assert found.covers == "test images only" and found.welch is None
        assert not found.low <= 0 <= found.high
        assert verdicts.judge([found], 0.3)[0].verdict == "not distinguished"


@pytest.mark.parametrize("told_apart", [4, 5, 6, 7, 20])
def test_an_interval_of_single_runs_and_mcnemar_say_the_same(told_apart: int) -> None:
    a = np.ones((1, 500), dtype=bool)
    b = a.copy()
    b[0, :told_apart] = False
    found = stats.difference(arm(a), arm(b))
    assert (found.low > 0) == (found.p < 0.05) == (told_apart > 5)
