"""Do verdicts hold? Simulated comparisons whose truth is known, judged by the functions that judge real ones.

    nice -n 10 python benchmarks/verdicts.py            some 10 minutes of one core; goes on where it was stopped
    python benchmarks/verdicts.py --table               the record as Markdown (docs/verdicts.md)
    python benchmarks/verdicts.py --summary             its worst cells (docs/comparisons.md)

The record is benchmarks/results/verdicts.json, a cell at a time. Every cell is seeded by its own name.

Synthetic networks: a network is right on an image where `ability of the run - difficulty of the image for it` is above
zero, all normal. The difficulty has a part that both sides share, a part of the side and the luck of the run; their
sizes are solved so that errors correlate within a side and across sides as in `RECORDED`. To save time there are fewer
images than in the records, and all spreads are larger by the square root of that ratio: so is the luck on images, and
the problem is the same in other units. Results are in points of the recorded 10,000 images.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats
from scipy.special import ndtr, ndtri

from ghostcli.comparison.chance import half_width, p_value
from ghostcli.comparison.power import Spread, found
from ghostcli.comparison.stats import Difference, Sample, difference
from ghostcli.comparison.verdicts import judge

RECORD = Path(__file__).parent / "results" / "verdicts.json"
#: Measured on runs/cifar10x4 as of commit d8eded0: gns-0.5-kd-880f40d0 (ours) and gns-0.5-plain-c53e1244 (baseline),
#: three seeds each, 10,000 test images. Shares of right answers, correlation of correctness between runs of a
#: side and across sides, SD in points.
RECORDED = {"accuracy": (0.6911, 0.6357), "within": (0.6488, 0.5357), "across": 0.5601, "sd": (0.858, 0.147)}
ACCURACY, RECORDED_IMAGES, IMAGES = sum(RECORDED["accuracy"]) / 2, 10_000, 2_000
#: Spread over runs, in points, of a side's ability, besides the luck on images (0.27 and 0.33 points).
EVEN, NOISY, QUIET = 0.4, 0.81, 0.0
SIZES = [(2, 2), (3, 3), (5, 5), (10, 10), (2, 3), (2, 5), (2, 10), (3, 5), (3, 10), (5, 10)]
MARGIN, LOOKS, TEACHER_SD = 0.3, range(2, 11), 0.4


@dataclass(frozen=True)
class Cell:
    """A design: runs a side, spreads in points, and what else is special about it. `effect` in points."""

    kind: str
    sizes: tuple[int, int]
    spreads: tuple[float, float]
    tails: str = "normal"
    images: str = "resampled"
    teachers: int = 0
    teacher_sd: float = 0.0
    crossed: bool = False
    pairs: float | None = None
    effect: float = 0.0
    promised: bool = True

    @property
    def name(self) -> str:
        parts = {k: v for k, v in asdict(self).items() if v != getattr(Cell, k, None)}
        return " ".join(f"{k}={'/'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in parts.items())


def cells() -> list[Cell]:
    made = []
    for sizes in SIZES:
        spreads = [(EVEN, EVEN), (NOISY, QUIET), (QUIET, NOISY)][: 2 if sizes[0] == sizes[1] else 3]
        for tails in ("normal", "t3"):
            made += [Cell("runs and images", sizes, spread, tails) for spread in spreads]
            # Accuracies alone, with the ratio of spreads that the records have.
            apart = [(0.5, 0.5), (0.87, 0.2), (0.2, 0.87)][: len(spreads)]
            made += [Cell("runs alone", sizes, spread, tails, "none") for spread in apart]
        made.append(Cell("runs and images", sizes, spreads[-1], images="fixed"))
    for k, each in ((2, 3), (3, 1), (3, 3), (5, 2), (5, 3)):
        for sd in (0.0, TEACHER_SD):
            made.append(Cell("teachers", (k * each, 5), (EVEN, EVEN), teachers=k, teacher_sd=sd))
    for k, n in ((2, 3), (3, 3), (3, 5)):  # each of n seeds under every teacher, all its spread the seed's own
        for sd in (0.0, TEACHER_SD):
            made.append(Cell("teachers", (k * n, 5), (EVEN, EVEN), teachers=k, teacher_sd=sd, crossed=True))
    made += [Cell("pairs", (n, n), (EVEN, EVEN), pairs=r) for n in (5, 10) for r in (0.0, 0.4, 0.8)]
    made += [Cell("looks", (10, 10), spread, images="none") for spread in ((0.5, 0.5), (0.87, 0.2))]
    made += [Cell("answer", (n, n), (EVEN, EVEN), effect=e) for n in (3, 10) for e in (0.0, MARGIN)]
    made += [Cell("one run", (1, n), (NOISY, QUIET)) for n in (3, 5)]
    made += [
        Cell("power", (n, n), (EVEN, EVEN), effect=e) for n in (2, 3, 5, 10) for e in (0.5, 1.0, 2.0, 4.0)
    ]  # what the promise does not cover: one run in twenty collapses
    made += [Cell("runs alone", s, (0.5, 0.5), "collapse", "none", promised=False) for s in ((3, 3), (5, 10))]
    return made


def _standard(rng: np.random.Generator, tails: str, size) -> np.ndarray:
    """Draws of mean 0 and SD 1: normal, Student's with 3 degrees of freedom, or with a collapse in one of twenty."""
    if tails == "t3":
        return rng.standard_t(3, size) / math.sqrt(3)
    if tails == "collapse":
        return (rng.standard_normal(size) - 5 * (rng.random(size) < 0.05) + 0.25) / math.sqrt(1 + 25 * 0.05 * 0.95)
    return rng.standard_normal(size)


@functools.cache
def _loadings() -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """What of the unit variance of difficulty is shared, the side's and the run's luck, as loadings a side."""

    def latent(phi: float, p: float, q: float) -> float:
        """The normal correlation at which two networks' correctness correlates by `phi`."""
        z = [ndtri(p), ndtri(q)]

        def excess(r: float) -> float:
            both = stats.multivariate_normal.cdf(z, cov=[[1, r], [r, 1]])
            return (both - p * q) / math.sqrt(p * (1 - p) * q * (1 - q)) - phi

        return optimize.brentq(excess, 0, 0.9999)

    a, b = RECORDED["accuracy"]
    ours, theirs = (latent(phi, p, p) for phi, p in zip(RECORDED["within"], (a, b), strict=True))
    across = min(latent(RECORDED["across"], a, b), 0.999 * math.sqrt(ours * theirs))
    shared = across * math.sqrt(ours / theirs), across * math.sqrt(theirs / ours)
    return tuple(
        tuple(math.sqrt(share) for share in (common, within - common, 1 - within))
        for common, within in zip(shared, (ours, theirs), strict=True)
    )


@functools.cache
def _threshold(spread: float, tails: str, effect: float) -> float:
    """The ability whose expected accuracy, over runs and images, is ACCURACY and `effect` points."""
    ability = spread / (100 * stats.norm.pdf(ndtri(ACCURACY)))
    draws = _standard(np.random.default_rng(0), tails, 200_000) * ability
    return optimize.brentq(lambda t: ndtr(t + draws).mean() - ACCURACY - effect / 100, -5, 5)


class Networks:
    """Draws sides of a cell, one comparison at a time."""

    def __init__(self, cell: Cell, images: int):
        self.cell, self.images = cell, images
        self.rng = np.random.default_rng(zlib.crc32(cell.name.encode()))
        self.scale = math.sqrt(RECORDED_IMAGES / images)
        self.point = self.scale / (100 * stats.norm.pdf(ndtri(ACCURACY)))
        self.fixed = self.difficulties() if cell.images == "fixed" else None

    def difficulties(self) -> list[np.ndarray]:
        shared = self.rng.standard_normal(self.images, dtype=np.float32)
        return [
            np.float32(common) * shared + np.float32(own) * self.rng.standard_normal(self.images, dtype=np.float32)
            for common, own, _ in _loadings()
        ]

    def abilities(self) -> list[np.ndarray]:
        """Of every run about its side's mean, in points."""
        cell, rng = self.cell, self.rng
        a, b = (s * _standard(rng, cell.tails, n) for s, n in zip(cell.spreads, cell.sizes, strict=True))
        if cell.pairs is not None:
            b = cell.pairs * a + math.sqrt(1 - cell.pairs**2) * b
        if cell.crossed:
            a = np.repeat(a[: len(a) // cell.teachers], cell.teachers)
        if cell.teachers:
            a = a + np.resize(rng.normal(0, cell.teacher_sd, cell.teachers), len(a))  # run j has teacher j mod K
        return [a, b]

    def sides(self) -> tuple[Sample, Sample]:
        cell, made = self.cell, []
        base = self.fixed or self.difficulties()
        for i, ability in enumerate(self.abilities()):
            luck = np.float32(_loadings()[i][2]) * self.rng.standard_normal((len(ability), self.images), np.float32)
            spread = math.hypot(cell.spreads[i], cell.teacher_sd if i == 0 and cell.teachers else 0)
            top = (
                _threshold(self.scale * spread, cell.tails, self.scale * cell.effect * (i == 0)) + self.point * ability
            )
            correct = base[i] + luck < top[:, None].astype(np.float32)
            teachers = [j % cell.teachers for j in range(len(ability))] if i == 0 and cell.teachers else None
            seeds = [j // cell.teachers if i == 0 and cell.crossed else j for j in range(len(ability))]
            made.append(Sample(100 * correct.mean(axis=1), correct, teachers, seeds))
        return tuple(made)

    def truth(self) -> float:
        """The expected difference: over all images, or on the fixed ones."""
        if self.fixed is None:
            return self.scale * self.cell.effect
        draws = _standard(np.random.default_rng(0), self.cell.tails, 100)
        shares = []
        for i, base in enumerate(self.fixed):
            top = (
                _threshold(self.scale * self.cell.spreads[i], self.cell.tails, 0.0)
                + self.point * self.cell.spreads[i] * draws
            )
            shares.append(np.mean([ndtr((t - base) / _loadings()[i][2]).mean() for t in top]))
        return 100 * (shares[0] - shares[1])


def others(a: np.ndarray, b: np.ndarray, images: np.ndarray, truth: float) -> dict[str, float]:
    """How often other tests at 5 % exclude the truth: Welch's, pooled t, and the two-way mixed model.

    `a` and `b` are accuracies [comparisons, runs], `images` the variance by the choice of images in each comparison.
    The mixed model (runs and images crossed, one variance of runs for both sides) is fitted by its analysis of
    variance, which is REML where sides are equal and no estimate is negative; Satterthwaite's degrees of freedom.
    """
    n, m = a.shape[1], b.shape[1]
    pooled = ((n - 1) * a.var(axis=1, ddof=1) + (m - 1) * b.var(axis=1, ddof=1)) / (n + m - 2)
    runs = pooled * (1 / n + 1 / m)
    t = (a.mean(axis=1) - b.mean(axis=1) - truth) / np.sqrt(runs + images)
    df = (n + m - 2) * (1 + images / np.maximum(runs, 1e-12)) ** 2
    return {
        "welch": (stats.ttest_ind(a - truth, b, axis=1, equal_var=False).pvalue < 0.05).mean(),
        "pooled": (stats.ttest_ind(a - truth, b, axis=1).pvalue < 0.05).mean(),
        "mixed": (2 * stats.t.sf(np.abs(t), df) < 0.05).mean(),
    }


def accuracies_alone(cell: Cell, times: int) -> dict[str, float]:
    """Many comparisons at once, of accuracies without predictions."""
    rng = np.random.default_rng(zlib.crc32(cell.name.encode()))
    a, b = (s * _standard(rng, cell.tails, (times, n)) for s, n in zip(cell.spreads, cell.sizes, strict=True))
    looks = LOOKS if cell.kind == "looks" else [cell.sizes[0]]
    wrong, plain = np.zeros(times, bool), np.zeros(times, bool)
    for k, n in enumerate(looks, start=1):
        x, y = (a[:, :n], b[:, :n]) if cell.kind == "looks" else (a, b)
        variances, dfs = [v.var(axis=1, ddof=1) / v.shape[1] for v in (x, y)], [v.shape[1] - 1.0 for v in (x, y)]
        distance, cross = np.abs(x.mean(axis=1) - y.mean(axis=1)), stats.ttest_ind(x, y, axis=1, equal_var=False)
        level = 0.95 if cell.kind != "looks" else 1 - 0.05 / (k * (k + 1))
        low, high = cross.confidence_interval(level)
        wrong |= distance > np.maximum(half_width(level, variances, dfs), (high - low) / 2)
        plain |= cross.pvalue < 0.05
    # The vectorised form is the one that verdicts come from.
    for i in range(5 if cell.kind != "looks" else 0):
        one = difference(Sample(a[i]), Sample(b[i]))
        assert (one.p < 0.05) == wrong[i] and one.p >= 0.999 * float(
            p_value(distance[i], [v[i] for v in variances], dfs)
        )
    return {
        "false": wrong.mean(),
        "coverage": 1 - wrong.mean(),
        "welch": plain.mean(),
        "pooled": (stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean(),
    }


def answers(cell: Cell, networks: Networks, times: int) -> dict[str, float]:
    """Answers of six comparisons with one baseline, none different or each one margin apart: is a claim wrong?"""
    wrong = 0
    for _ in range(times):
        deltas: list[Difference] = []
        baseline = networks.sides()[1]
        for _ in range(6):
            deltas.append(difference(networks.sides()[0], baseline))
        said = {found.verdict for found in judge(deltas, networks.scale * MARGIN)}
        wrong += bool(said & ({"equivalent", "worse"} if cell.effect else {"better", "worse"}))
    return {"false": wrong / times}


def simulate(cell: Cell, times: int, images: int = IMAGES) -> dict[str, float]:
    """Shares of wrong verdicts and of intervals that hold the truth; of right verdicts where there is an effect."""
    if cell.images == "none":
        return {"times": 50 * times, **{k: float(v) for k, v in accuracies_alone(cell, 50 * times).items()}}
    networks = Networks(cell, images)
    if cell.kind == "answer":
        return {"times": max(1, times // 3), **answers(cell, networks, max(1, times // 3))}
    truth = networks.truth()
    seen: dict[str, list[float]] = {}
    runs: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(times):
        a, b = networks.sides()
        delta = difference(a, b, paired=cell.pairs is not None)
        row = {"half_width": (delta.high - delta.low) / 2 / networks.scale}
        if cell.kind == "one run":
            row["false"] = judge([delta], networks.scale * MARGIN)[0].verdict != "not distinguished"
        elif cell.kind == "power":
            verdict = judge([delta], networks.scale * MARGIN)[0].verdict
            row |= {
                "found": verdict == "better",
                "equivalent": verdict == "equivalent",
                "welch": (1.0 if delta.welch is None else delta.welch) < 0.05,
            }
        else:
            covers = delta.low <= truth <= delta.high
            row |= {"false": not covers, "coverage": covers}
            images_alone = delta.parts[0].down[-1]  # of pairs or teachers it is that of their means
            runs.append((a.accuracy, b.accuracy, images_alone))
        for key, value in row.items():
            seen.setdefault(key, []).append(float(value))
    done = {key: float(np.mean(values)) for key, values in seen.items()}
    if runs:
        done |= others(*(np.array(values) for values in zip(*runs, strict=True)), truth)
    if cell.kind == "power":
        luck = [100 * math.sqrt(_luck(i) / RECORDED_IMAGES) for i in (0, 1)]
        spread = Spread(*(math.hypot(s, e) for s, e in zip(cell.spreads, luck, strict=True)), _item())
        done["reckoned"] = found(cell.effect, *spread.design(*cell.sizes))
    return {"times": times, **done}


def _luck(side: int) -> float:
    """Variance of a run's correctness about its image's mean."""
    return ACCURACY * (1 - ACCURACY) * (1 - RECORDED["within"][side])


def _item() -> float:
    """Standard error, in points, that the choice of images gives a difference."""
    within, variance = RECORDED["within"], ACCURACY * (1 - ACCURACY)
    return 100 * math.sqrt(max(0.0, variance * (sum(within) - 2 * RECORDED["across"])) / RECORDED_IMAGES)


def binomial_error(share: float, times: int) -> float:
    return math.sqrt(share * (1 - share) / times)


def holds(cell: Cell, row: dict[str, float]) -> bool:
    """At most 5 % false verdicts and at least 94 % coverage, as far as chance allows (two binomial errors)."""
    false = row.get("false", 0.0) <= 0.05 + 2 * binomial_error(0.05, row["times"])
    return false and row.get("coverage", 1.0) >= 0.94


def percent(row: dict, key: str) -> str:
    return f"{100 * row[key]:.1f}" if key in row else ""


def table(record: dict) -> str:
    """The record as Markdown: null cells, then power."""
    lines = ["| design | runs | spreads | false verdicts, % ± error | Welch, % | pooled t, % | mixed model, % |"]
    lines.append("|---|---|---|---|---|---|---|")
    power = ["| runs a side | difference, points | found, % | reckoned, % | Welch, % |", "|---|---|---|---|---|"]
    for cell in cells():
        row = record["cells"].get(cell.name)
        if row is None:
            continue
        if cell.kind == "power":
            shares = " | ".join(percent(row, key) for key in ("found", "reckoned", "welch"))
            power.append(f"| {cell.sizes[0]} | {cell.effect:g} | {shares} |")
            continue
        more = [cell.tails] * (cell.tails != "normal") + ["fixed images"] * (cell.images == "fixed")
        shared = " of the same seeds" * cell.crossed
        more += [f"{cell.teachers} teachers{shared}, SD {cell.teacher_sd:g}"] * bool(cell.teachers)
        more += [f"correlation {cell.pairs}"] * (cell.pairs is not None)
        more += ["each one margin apart" if cell.effect else "no difference"] * (cell.kind == "answer")
        more += ["not promised"] * (not cell.promised)
        error = 100 * binomial_error(row["false"], row["times"])
        rest = " | ".join(percent(row, key) for key in ("welch", "pooled", "mixed"))
        lines.append(
            f"| {', '.join([cell.kind, *more])} | {cell.sizes[0]} and {cell.sizes[1]} | {cell.spreads[0]:g} and "
            f"{cell.spreads[1]:g} | {percent(row, 'false')} ± {error:.1f} | {rest} |"
        )
    return "\n".join([*lines, "", *power])


def summary(record: dict) -> str:
    """The worst cell of each kind of design, as Markdown."""
    lines = ["| design | cells | worst: false verdicts, % | Welch, % | pooled t, % | mixed model, % |"]
    lines.append("|---|---|---|---|---|---|")
    kinds: dict[str, list[dict]] = {}
    for cell in cells():
        shared = " of the same seeds" * cell.crossed
        several = f"several teachers{shared}, SD {cell.teacher_sd:g}" if cell.teachers else cell.kind
        name = several if cell.promised else f"{cell.kind}, not promised"
        if cell.kind != "power" and cell.name in record["cells"]:
            kinds.setdefault(name, []).append(record["cells"][cell.name])
    for name, rows in kinds.items():
        worst = {key: [row for row in rows if key in row] for key in ("false", "welch", "pooled", "mixed")}
        shares = " | ".join(
            percent(max(found, key=lambda row, key=key: row[key]), key) if found else "" for key, found in worst.items()
        )
        lines.append(f"| {name} | {len(rows)} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("--times", type=int, default=300, help="comparisons a cell (of accuracies alone 50 times that)")
    asks.add_argument("--table", action="store_true", help="print the record as Markdown and leave")
    asks.add_argument("--summary", action="store_true", help="print its worst cells as Markdown and leave")
    chosen = asks.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if chosen.table or chosen.summary:
        print(table(record) if chosen.table else summary(record))
        return
    if record.get("times") != chosen.times:
        record = {"times": chosen.times, "images": IMAGES, "recorded": RECORDED, "cells": {}}
    for cell in cells():
        if cell.name not in record["cells"]:
            record["cells"][cell.name] = {k: round(v, 5) for k, v in simulate(cell, chosen.times).items()}
            RECORD.write_text(json.dumps(record, indent=1) + "\n")
            print(cell.name, record["cells"][cell.name], flush=True)
    failed = [c.name for c in cells() if c.promised and not holds(c, record["cells"][c.name])]
    print(f"{len(record['cells'])} cells, {len(failed)} fail", *failed, sep="\n")


if __name__ == "__main__":
    main()
