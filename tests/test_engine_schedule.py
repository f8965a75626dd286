"""The learning rate against the published numbers and torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from ghostcli.engine.schedule import learning_rate
from ghostcli.recipe.models import OptimSection

PAPER = OptimSection()
STEPS = 200 * 196


def test_paper_schedule_at_its_landmarks():
    assert learning_rate(0, STEPS, PAPER) == pytest.approx(1e-8)
    assert learning_rate(STEPS * 3 // 10, STEPS, PAPER) == pytest.approx(0.01)
    middle = STEPS * 3 // 10 + (STEPS - STEPS * 3 // 10) // 2
    assert learning_rate(middle, STEPS, PAPER) == pytest.approx(0.005, rel=1e-6)
    assert learning_rate(STEPS - 1, STEPS, PAPER) == pytest.approx(1e-8, abs=1e-10)


def test_agrees_with_torch_schedulers_step_by_step():
    total, warm = 100, 30
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-8 / 0.01, 1.0, total_iters=warm)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warm, eta_min=1e-8)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [warm])
    for step in range(total):
        assert learning_rate(step, total, PAPER) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        both.step()


def test_published_extra_step_ends_an_epoch_early_and_turns():
    """facts.md, section 2: 200 extra steps of 39,200, so that the cosine turns in the last epoch."""
    rates = [learning_rate(s, STEPS, PAPER, extra=s // 196) for s in range(STEPS)]
    lowest = min(range(STEPS // 2, STEPS), key=rates.__getitem__)
    assert lowest // 196 == 198  # the last epoch but one (from 0)
    assert rates[-1] > rates[lowest]
    assert rates[-1] == pytest.approx(learning_rate(STEPS - 1, STEPS, PAPER, extra=199))


def test_no_warmup_starts_at_the_peak():
    optim = OptimSection(warmup=0.0)
    assert learning_rate(0, 10, optim) == pytest.approx(0.01)
    assert learning_rate(5, 10, optim) == pytest.approx(1e-8 + (0.01 - 1e-8) * (1 + math.cos(math.pi / 2)) / 2)
