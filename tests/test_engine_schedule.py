"""The learning rate against the published numbers and torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from ghostcli.engine.schedule import averaging_decay, learning_rate
from ghostcli.recipe.models import SGD

PAPER = SGD()
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
    optim = SGD(warmup=0.0)
    assert learning_rate(0, 10, optim) == pytest.approx(0.01)
    assert learning_rate(5, 10, optim) == pytest.approx(1e-8 + (0.01 - 1e-8) * (1 + math.cos(math.pi / 2)) / 2)


def test_a_linear_end_agrees_with_torch_and_stays_at_its_end():
    optim = SGD(anneal="linear", warmup=0.2, lr=0.4)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-8 / 0.4, 1.0, total_iters=20)
    down = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-8 / 0.4, total_iters=80)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], [20])
    for step in range(100):
        assert learning_rate(step, 100, optim) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        both.step()
    assert learning_rate(99, 100, optim, extra=50) == pytest.approx(1e-8)


def shares(steps: int, decay: float) -> list[float]:
    """How much of the average after `steps` updates is the untrained start's, then each update's."""
    found = [1.0]
    for step in range(steps):
        kept = averaging_decay(step, decay)
        found = [share * kept for share in found] + [1 - kept]
    return found


def test_an_average_of_a_short_training_is_of_its_end():
    """A decay of 0.999 looks back over 1,000 steps; five epochs of the paper's batches have 980 in all."""
    found = shares(980, 0.999)
    assert math.fsum(found) == pytest.approx(1) and found[0] < 1e-15
    age = math.fsum(share * (980 - at) for at, share in enumerate(found))
    assert 0.08 < age / 980 < 0.12
    assert shares(20, 0.999)[0] < 1e-6


def test_an_average_of_a_long_training_has_the_decay_asked_for():
    assert averaging_decay(STEPS, 0.999) == 0.999
    assert averaging_decay(0, 0.0) == 0.0
    assert all(averaging_decay(step, 0.9) <= averaging_decay(step + 1, 0.9) <= 0.9 for step in range(200))
