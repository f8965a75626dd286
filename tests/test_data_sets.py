"""Names, limits, splits, statistics and fingerprints of data sets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from ghostcli.data import Images, _checksum, _statistics, data_root, folder_of, load
from ghostcli.data.digits import SHA256, raw_checksum, raw_digits
from ghostcli.data.split import interleaved, stratified
from ghostcli.errors import UsageError
from ghostcli.recipe.models import DataSection


def digits(**keys):
    return load(DataSection(name="digits", **keys))


@pytest.fixture(scope="module")
def all_digits():
    return digits()


# ---- names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar1O", "cifar10"),
        ("digit", "digits"),
        ("folder:", "folder:PATH"),
        ("", "known: cifar10"),
        ("x\x1b[2J", "x"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, hint):
    with pytest.raises(UsageError, match=r"data\.name") as error:
        folder_of(name)
    assert hint in str(error.value)
    assert str(error.value).isprintable()


def test_the_folder_of_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert folder_of("digits") is None
    assert str(folder_of("folder:a/b:c")) == "a/b:c"
    assert str(folder_of("folder:~/pets")) == "/home/somebody/pets"


def test_where_downloads_live(monkeypatch):
    monkeypatch.delenv("GHOST_DATA", raising=False)
    assert str(data_root()) == "data"
    monkeypatch.setenv("GHOST_DATA", "/elsewhere")
    assert str(data_root()) == "/elsewhere"


def test_size_is_for_folders():
    with pytest.raises(UsageError, match=r"data\.size = 64 .* digits is 32 x 32"):
        digits(size=64)


def test_torch_is_not_needed_to_ask_for_names():
    code = "import sys, ghostcli.data; ghostcli.data.folder_of('digits'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- digits


def test_digits_are_scikit_learns(all_digits):
    assert raw_checksum() == SHA256
    assert all_digits.classes == tuple("0123456789")
    assert (len(all_digits.train), len(all_digits.test), all_digits.validation) == (1437, 360, None)
    assert all_digits.train.pixels.shape == (1437, 32, 32, 3)
    assert all_digits.train.pixels.dtype is torch.uint8
    assert all_digits.train.labels.dtype is torch.int64
    _, labels = raw_digits()
    whole, test = torch.bincount(labels), torch.bincount(all_digits.test.labels)
    assert (test - whole * 360 / 1797).abs().max() < 1
    assert torch.equal(test + torch.bincount(all_digits.train.labels), whole)


def test_digits_are_enlarged_bilinearly(all_digits):
    """Against the definition, a pixel at a time: centres of small pixels lie at 4 k + 1.5 of the large grid."""
    greys, labels = raw_digits()
    train, _ = stratified(labels, 360, seed=0)
    small = greys[train[5]].numpy().astype(float)
    place = np.clip((np.arange(32) - 1.5) / 4, 0, 7)
    across = np.stack([np.interp(place, np.arange(8), row) for row in small])
    both = np.stack([np.interp(place, np.arange(8), column) for column in across.T]).T
    for channel in range(3):
        assert np.array_equal(all_digits.train.pixels[5, :, :, channel].numpy(), np.rint(both * 255 / 16))


# ---- limits, splits


def test_limits_are_the_first_images(all_digits):
    few = digits(limit=100, limit_test=7)
    assert torch.equal(few.train.pixels, all_digits.train.pixels[:100])
    assert torch.equal(few.train.labels, all_digits.train.labels[:100])
    assert torch.equal(few.test.pixels, all_digits.test.pixels[:7])
    assert len(digits(limit=10**6).train) == 1437


def test_validation_is_held_out_of_the_limited_training_set(all_digits):
    data = digits(limit=500, validation=120)
    assert (len(data.train), len(data.validation), len(data.test)) == (380, 120, 360)
    rest, held = stratified(all_digits.train.labels[:500], 120, seed=0)
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(500))
    assert torch.equal(data.train.pixels, all_digits.train.pixels[rest])
    assert torch.equal(data.validation.labels, all_digits.train.labels[held])


def test_the_split_is_fixed_by_its_own_seed():
    first, again, other = (digits(validation=300, split_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.validation.pixels, again.validation.pixels)
    assert not torch.equal(first.validation.pixels, other.validation.pixels)


@pytest.mark.parametrize("count", [1, 7, 10, 333, 999])
def test_a_stratified_split_gives_each_class_its_share(count):
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([400, 300, 299, 1]))
    labels = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    rest, taken = stratified(labels, count, seed=5)
    assert (len(rest), len(taken)) == (1000 - count, count)
    assert torch.equal(torch.cat([rest, taken]).sort().values, torch.arange(1000))
    share = torch.bincount(labels[taken], minlength=4) - torch.tensor([400, 300, 299, 1]) * count / 1000
    assert share.abs().max() < 1


@pytest.mark.parametrize("validation", [500, 501])
def test_a_validation_split_must_leave_something(validation):
    with pytest.raises(UsageError, match=rf"data\.validation = {validation} .* 500 .* below 500"):
        digits(limit=500, validation=validation)
    assert len(digits(limit=500, validation=499).train) == 1


def test_interleaved_classes_are_in_proportion_in_every_prefix():
    sizes = [60, 30, 10]
    places = interleaved(sizes)
    assert sorted(places) == [(c, j) for c in range(3) for j in range(sizes[c])]
    for n in range(1, 101):
        counts = np.bincount([c for c, _ in places[:n]], minlength=3)
        assert np.abs(counts - np.array(sizes) * n / 100).max() <= 1.5


# ---- statistics and checksums


def test_statistics_are_those_of_the_training_images():
    data = digits(limit=200, validation=50)
    pixels = data.train.pixels.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_divides_by_one():
    pixels = torch.full((3, 4, 4, 3), 51, dtype=torch.uint8)
    mean, std = _statistics(Images(pixels, torch.zeros(3, dtype=torch.int64)))
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == (1.0, 1.0, 1.0)


def test_the_checksum_sees_every_part():
    base = digits(limit=100, limit_test=50, validation=10)
    assert base.checksum == digits(limit=100, limit_test=50, validation=10).checksum
    assert len(base.checksum) == 64
    parts = {"train": base.train, "validation": base.validation, "test": base.test}
    assert _checksum(parts) == base.checksum
    seen = {base.checksum}
    for name in parts:
        for field in ("pixels", "labels"):
            changed = Images(parts[name].pixels.clone(), parts[name].labels.clone())
            getattr(changed, field).view(-1)[-1] += 1
            seen.add(_checksum(parts | {name: changed}))
    moved = {"train": base.train[:-1], "validation": base.validation, "test": base.test}
    seen.add(_checksum(moved))
    assert len(seen) == 8


def test_images_travel_whole():
    images = digits(limit=20).train
    assert len(images) == 20
    moved = images.to("meta")
    assert moved.pixels.device.type == moved.labels.device.type == "meta"
    assert torch.equal(images[torch.tensor([3, 1])].labels, images.labels[[3, 1]])
