"""Half-widths and p-values for the sum of several independent sources of chance.

Invariant: pure functions of variances and degrees of freedom. At every level an interval is wide enough or too wide.

A source of chance is a variance and the degrees of freedom of its estimate (infinite: known). Each source alone has an
exact interval with half-width t(df) * sqrt(variance). The square of the half-width of the sum is the sum of the squares
(Zou and Donner 2008, MOVER):

    half(level)^2 = sum over sources of t(level, df)^2 * variance

Welch's test claims too many differences if the side with few runs has the larger spread. `benchmarks/verdicts.py` tests
both rules on simulated runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def quantile(level: float | np.ndarray, df: float) -> np.ndarray:
    """The t with P(|t'| < t) = `level` for `df` degrees of freedom (infinite: the normal distribution)."""
    from scipy import special

    return special.stdtrit(df, (1 + np.asarray(level, dtype=np.float64)) / 2)


def beyond(t: ArrayLike, df: float) -> np.ndarray:
    """The two-sided p of `t`."""
    from scipy import special

    return 2 * special.stdtr(df, -np.abs(np.asarray(t, dtype=np.float64)))


def half_width(level: float | np.ndarray, variances: Sequence[ArrayLike], dfs: Sequence[float]) -> np.ndarray:
    """Half-width at `level` of an interval with these sources of chance. All arrays broadcast."""
    squares = (quantile(level, df) ** 2 * np.asarray(v) for v, df in zip(variances, dfs, strict=True))
    return np.sqrt(sum(squares))


def p_value(distance: ArrayLike, variances: Sequence[ArrayLike], dfs: Sequence[float]) -> np.ndarray:
    """The p for which the half-width at level `1 - p` is |distance|. It is 1 at distance 0, and 0 if nothing varies.

    The squared quantile is a mean of those of the sources, so p is between the p of each source alone. Found by
    bisection.
    """
    from scipy import special

    distance, total = np.abs(np.asarray(distance, dtype=np.float64)), np.sum(np.broadcast_arrays(*variances), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(distance == 0, 0.0, distance / np.sqrt(total))
    alone = np.log(np.maximum([beyond(t, df) for df in dfs], 1e-300))
    low, high = alone.min(axis=0), alone.max(axis=0)
    for _ in range(40 if len(set(dfs)) > 1 else 0):
        middle = (low + high) / 2
        # The lower tail, because 1 - p is inexact for tiny p. With one degree of freedom its square can overflow.
        tails = (np.maximum(special.stdtrit(df, np.exp(middle) / 2), -1e150) for df in dfs)
        wider = sum(tail**2 * np.asarray(v) for tail, v in zip(tails, variances, strict=True)) > distance**2
        low, high = np.where(wider, middle, low), np.where(wider, high, middle)
    return np.exp(high)
