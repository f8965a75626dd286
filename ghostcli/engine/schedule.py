"""Values that depend on the step only. Invariant: pure functions without state, so resuming needs no schedule state."""

from __future__ import annotations

import math

from ghostcli.recipe.models import OptimBase


def learning_rate(step: int, total: int, optim: OptimBase, extra: int = 0) -> float:
    """Learning rate of update `step` (from 0) of `total`: linear warm-up, then a half cosine or a line.

    `extra`: how many steps the schedule is ahead (one per epoch in the published KD scripts). A cosine past its end
    rises again, as in those scripts.
    """
    warm = optim.warmup * total
    at = step + extra
    if at < warm:
        return optim.lr_start + (optim.lr - optim.lr_start) * at / warm
    share = (at - warm) / (total - warm)
    left = (1 + math.cos(math.pi * share)) / 2 if optim.anneal == "cosine" else max(1 - share, 0.0)
    return optim.lr_end + (optim.lr - optim.lr_end) * left


def averaging_decay(step: int, decay: float) -> float:
    """Decay of the weights' moving average at update `step` (from 0): (1 + step) / (10 + step) until `decay` is less.

    So the average covers at most about a tenth of the training so far, and the initial weights do not dominate it.
    """
    return min(decay, (1 + step) / (10 + step))
