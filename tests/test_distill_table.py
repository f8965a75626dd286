"""Teachers and their tables: how they answer, and that each definition of views has a table of its own."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch

from ghostcli import zoo
from ghostcli.data import load
from ghostcli.data.batches import VARIANTS, Cropper, generator, normalise
from ghostcli.distill.teacher import Teacher, fill_table, open_table, teacher_logits_of_views
from ghostcli.distill.teacher import load as load_teacher
from ghostcli.engine.device import Settings
from ghostcli.errors import GhostError
from ghostcli.recipe.models import AugmentSection, Before, DataSection, Views
from ghostcli.zoo import weights


class Inverting(AugmentSection):
    """[augment] with a new key: half of the images are negatives."""

    invert: Annotated[bool, Views(lambda on: 1 + on), Before(False)] = False


INVERT = (
    lambda n, seed, epoch, on: torch.randint(2, (n,), generator=generator(seed, "invert", epoch)),
    lambda pixels, which: torch.where(which.bool()[:, None, None, None], 255 - pixels, pixels),
)


def test_a_new_augmentation_with_as_many_views_gets_its_own_table(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "invert", INVERT)
    digits = load(DataSection(name="digits", limit=20, limit_test=10))
    torch.manual_seed(0)
    network = zoo.build("gns:0.1", 10).eval().requires_grad_(False)
    teacher = Teacher("teacher/s0", "gns:0.1", tmp_path, network, (digits.mean, digits.std), "0" * 64)

    flips, negatives = Inverting(pad=0), Inverting(pad=0, flip="none", invert=True)
    assert flips.view_count == negatives.view_count == 2
    pixels = digits.train.pixels
    second = {flips: pixels.flip(2), negatives: 255 - pixels}
    for augment, other in second.items():
        table = fill_table(teacher, digits, augment, torch.device("cpu"), lambda count: None)
        for view, shown in enumerate((pixels, other)):
            found = table.read(np.full(len(pixels), view)).float()
            torch.testing.assert_close(found, teacher.logits(shown), rtol=2e-3, atol=1e-3)

    assert open_table(teacher, digits, flips).folder != open_table(teacher, digits, negatives).folder
    # At the value from before the key existed, the table from before is used.
    assert open_table(teacher, digits, AugmentSection(pad=0)).folder == open_table(teacher, digits, flips).folder


def test_a_teacher_answers_in_its_deploy_form(digits_run):
    """Its logits are those of its train form, to rounding, and nothing of it is in train mode or has gradients."""
    loaded = weights.load(digits_run.weights).model
    teacher = load_teacher(digits_run.id, digits_run.path.parents[1], 10, torch.device("cpu"))
    pixels = load(DataSection(name="digits", limit_test=64)).test.pixels
    assert teacher.model.deployed and len(list(teacher.model.modules())) < len(list(loaded.modules()))
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    with torch.no_grad():
        expected = loaded(normalise(pixels, *teacher.norm))
    torch.testing.assert_close(teacher.logits(pixels), expected, rtol=1e-3, atol=1e-3)


def test_of_few_images_a_batch_is_all_of_them():
    """So that 20 images are not padded to hundreds."""
    digits = load(DataSection(name="digits", limit=20, limit_test=10))
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.mean((2, 3))

    teacher = Teacher("teacher/s0", "own", Path(), Watched(), (digits.mean, digits.std), "0" * 64)
    compute = teacher_logits_of_views(teacher, Cropper(digits.train, AugmentSection()), torch.device("cpu"))
    assert compute(torch.arange(7), torch.zeros(7, dtype=torch.int64)).shape == (7, 3) and seen == [20]


def test_no_setting_of_a_run_rounds_the_answers_in_a_table():
    """Runs of any precision share a table, and its key has none."""
    digits = load(DataSection(name="digits", limit=20, limit_test=10))
    before, seen = Settings.now(), []
    rounding = before._replace(tf32_products=True, tf32_convolutions=True)

    class Watched(torch.nn.Module):
        def forward(self, x):
            seen.append(Settings.now())
            return x.mean((2, 3))

    teacher = Teacher("teacher/s0", "own", Path(), Watched(), (digits.mean, digits.std), "0" * 64)
    compute = teacher_logits_of_views(teacher, Cropper(digits.train, AugmentSection()), torch.device("cpu"))
    try:
        rounding.apply()
        compute(torch.arange(7), torch.zeros(7, dtype=torch.int64))
        assert Settings.now() == rounding
    finally:
        before.apply()
    assert [(now.tf32_products, now.tf32_convolutions) for now in seen] == [(False, False)]


def test_a_table_without_room_leaves_nothing_and_says_how_large_it_is(tmp_path, monkeypatch):
    """What was allocated filled the disk for every other run."""

    def allocate(handle, begin, size):
        if size > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    digits = load(DataSection(name="digits", limit=20, limit_test=10))
    network = zoo.build("gns:0.1", 10).eval().requires_grad_(False)
    teacher = Teacher("teacher/s0", "gns:0.1", tmp_path, network, (digits.mean, digits.std), "0" * 64)
    with pytest.raises(GhostError, match=r"no room for this table of \S+ MB .*; make room, or .*distill.source=live"):
        open_table(teacher, digits, AugmentSection(pad=4))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]
