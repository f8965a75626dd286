"""Half-widths and p-values where several independent sources of chance add up.

Invariant: pure functions of variances and degrees of freedom. At every level they err towards width, never below it.

A source of chance is a variance and the degrees of freedom that it was estimated with (infinite: known). Each source
alone has an exact interval, of half-width t(df) * sqrt(variance). The half-width of their sum combines those of the
sources by squares (Zou and Donner 2008, MOVER):

    half(level)^2 = sum over sources of t(level, df)^2 * variance

Welch's test instead takes one quantile with an estimated number of degrees of freedom. That estimate is too high
where one side has few runs and much spread: two runs against ten are called different in 12 % of cases without a
difference, and at the smaller levels that Holm's correction asks for Welch's test errs by a factor of 2 to 20.
`benchmarks/verdicts.py` holds both rules against simulated runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def quantile(level: float | np.ndarray, df: float) -> np.ndarray:
    """The t that a fraction `level` of |t| stays below, with `df` degrees of freedom (infinite: the normal's)."""
    from scipy import special

    tail = (1 + np.asarray(level, dtype=np.float64)) / 2
    return special.ndtri(tail) if np.isinf(df) else special.stdtrit(df, tail)


def beyond(t: ArrayLike, df: float) -> np.ndarray:
    """The two-sided p of `t`."""
    from scipy import special

    t = -np.abs(np.asarray(t, dtype=np.float64))
    return 2 * (special.ndtr(t) if np.isinf(df) else special.stdtr(df, t))


def half_width(level: float | np.ndarray, variances: Sequence[ArrayLike], dfs: Sequence[float]) -> np.ndarray:
    """Half-width at `level` of what has these sources of chance; all arrays broadcast."""
    squares = (quantile(level, df) ** 2 * np.asarray(v) for v, df in zip(variances, dfs, strict=True))
    return np.sqrt(sum(squares))


def p_value(distance: ArrayLike, variances: Sequence[ArrayLike], dfs: Sequence[float]) -> np.ndarray:
    """The p that `1 - p` is the level whose half-width is |distance|; 1 at no distance, 0 where nothing varies.

    The squared quantile is a mean of the sources' own, so p lies between the p of each alone. It is found by bisection.
    """
    distance, total = np.abs(np.asarray(distance, dtype=np.float64)), np.sum(np.broadcast_arrays(*variances), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(distance == 0, 0.0, distance / np.sqrt(total))
    alone = np.log(np.maximum([beyond(t, df) for df in dfs], 1e-300))
    low, high = alone.min(axis=0), alone.max(axis=0)
    for _ in range(40 if len(set(dfs)) > 1 else 0):
        middle = (low + high) / 2
        wider = _squared(np.exp(middle), variances, dfs) > distance**2
        low, high = np.where(wider, middle, low), np.where(wider, high, middle)
    return np.exp(high)


def _squared(p: np.ndarray, variances: Sequence[ArrayLike], dfs: Sequence[float]) -> np.ndarray:
    """Squared half-width at level 1 - p, by the lower tail: p may be far below what 1 - p can hold."""
    from scipy import special

    tails = (special.ndtri(p / 2) if np.isinf(df) else special.stdtrit(df, p / 2) for df in dfs)
    # One degree of freedom has quantiles beyond what their square can hold.
    return sum(np.maximum(t, -1e150) ** 2 * np.asarray(v) for t, v in zip(tails, variances, strict=True))
