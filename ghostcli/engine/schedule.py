"""What changes with the step, in closed form. Invariant: no object, no memory; resuming needs nothing."""

from __future__ import annotations

import math

from ghostcli.recipe.models import OptimBase


def learning_rate(step: int, total: int, optim: OptimBase, extra: int = 0) -> float:
    """Rate of update `step` (from 0) of `total`: linear to the peak, then half a cosine or a line to the end.

    `extra` is how many steps the schedule ran ahead (one an epoch in the published KD scripts). A cosine that runs
    past its end turns and rises again, as theirs did.
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

    So an average looks back over a tenth of what was trained at most, and is never held back by the untrained start.
    """
    return min(decay, (1 + step) / (10 + step))
