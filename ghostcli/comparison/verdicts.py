"""Computes verdicts from differences, with one correction over all comparisons of an answer.

Invariant: at most 5 % of answers contain a wrong claim of any kind.

Each comparison can make two claims: there is a difference (better, worse), or there is none that matters (equivalent:
two one-sided tests show that it is smaller than the margin). Only one of the two can be wrong, because a difference
cannot be zero and beyond the margin at the same time. So at most m of the 2m hypotheses of m comparisons are true, and
Holm's steps count a comparison once until both its hypotheses are rejected (Shaffer 1986). A single comparison is not
corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ghostcli.comparison.stats import LEVEL, Difference

UNDECIDED = "not distinguished"


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the adjusted p of the difference; None if it was not tested."""

    verdict: str | None
    p: float | None


def judge(deltas: Sequence[Difference], margin: float) -> tuple[Judgement, ...]:
    """Verdicts for all comparisons of one answer, in order. `margin` > 0 in points of accuracy.

    A comparison with one run on a side has no test, so it does not count in the correction.
    """
    apart = [None if delta.of_two_networks else delta.p for delta in deltas]
    alike = [delta.p_equivalent(margin) for delta in deltas]
    adjusted = zip(deltas, shaffer(apart, alike), strict=True)
    return tuple(Judgement(verdict(delta, p, equivalent), p) for delta, (p, equivalent) in adjusted)


def shaffer(apart: Sequence[float | None], alike: Sequence[float | None]) -> list[tuple[float | None, float | None]]:
    """Step-down adjustment of pairs of p, where at most one hypothesis of a pair is true. None stays None."""
    pairs = [list(pair) for pair in zip(apart, alike, strict=True)]
    ordered = sorted((p, i, kind) for i, pair in enumerate(pairs) for kind, p in enumerate(pair) if p is not None)
    left = [sum(p is not None for p in pair) for pair in pairs]
    running = 0.0
    for p, i, kind in ordered:
        running = max(running, min(1.0, p * sum(count > 0 for count in left)))
        pairs[i][kind] = running
        left[i] -= 1
    return [(p, equivalent) for p, equivalent in pairs]


def verdict(delta: Difference, p: float | None, p_equivalent: float | None) -> str | None:
    """better | worse | equivalent | not distinguished; None if there is no interval. Both p are adjusted.

    better, worse: the interval does not contain zero, and `p` is below 5 %. Otherwise equivalent, if `p_equivalent` is.
    With one run on a side the verdict is always "not distinguished", with an interval or without: the spread over runs
    is unknown.
    """
    if delta.of_two_networks:
        return UNDECIDED
    if delta.low is None:
        return None
    if p < 1 - LEVEL and not delta.low <= 0 <= delta.high:
        return "better" if delta.mean > 0 else "worse"
    return "equivalent" if p_equivalent < 1 - LEVEL else UNDECIDED
