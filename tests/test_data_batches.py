"""Order, views, crops, flips, cutout and normalisation: pure functions, and the same pixels as torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import Normalize, RandomCrop, ToPILImage, ToTensor
from torchvision.transforms import functional as F

from ghostcli.data import Images
from ghostcli.data.batches import Cropper, cutout_centres, generator, normalise, order, views
from ghostcli.errors import UsageError
from ghostcli.recipe.models import AugmentSection

PINNED_ORDER = [1, 6, 0, 8, 7, 9, 5, 3, 2, 4]
PINNED_VIEWS = [10, 22, 10, 63, 133, 29]
PINNED_SEED = 4489457307835839548

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def random_images(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Images:
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, height, width, 3), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.zeros(n, dtype=torch.int64))


# ---- order


def test_order_is_a_permutation_of_its_own_seed_and_epoch():
    first = order(1000, seed=3, epoch=5)
    assert torch.equal(first.sort().values, torch.arange(1000))
    torch.manual_seed(99)  # whatever ran before
    torch.rand(7)
    assert torch.equal(first, order(1000, seed=3, epoch=5))
    for other in (order(1000, 3, 6), order(1000, 4, 5), order(1000, 5, 3)):
        assert (first == other).float().mean() < 0.02


def test_unshuffled_order_is_the_files():
    assert torch.equal(order(50, seed=3, epoch=5, shuffle=False), torch.arange(50))


def test_draws_are_those_of_every_machine():
    """Pinned: another torch or machine that drew otherwise would make other runs under the same digest."""
    assert order(10, 0, 0).tolist() == PINNED_ORDER
    assert views(6, 0, 0, AugmentSection()).tolist() == PINNED_VIEWS
    assert generator(0, "order", 1).initial_seed() == PINNED_SEED


# ---- views


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
def test_views_are_pure_and_differ_between_epochs_and_seeds(flip):
    augment = AugmentSection(flip=flip)
    first = views(20_000, 1, 2, augment)
    torch.manual_seed(0)
    assert torch.equal(first, views(20_000, 1, 2, augment))
    assert set(first.tolist()) == set(range(augment.view_count))
    for other in (views(20_000, 1, 3, augment), views(20_000, 2, 2, augment)):
        assert (first == other).float().mean() < 0.03


def test_view_counts():
    assert AugmentSection().view_count == 162
    assert AugmentSection(flip="none").view_count == 81
    assert AugmentSection(flip="alternating", pad=2).view_count == 50
    assert AugmentSection(pad=0, flip="none").view_count == 1
    assert AugmentSection(cutout=8).view_count is None


def test_views_are_uniform():
    counts = torch.bincount(views(162_000, 0, 0, AugmentSection()), minlength=162).double()
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 161 - 5 * 18 < chi_square < 161 + 5 * 18  # 161 degrees of freedom, standard deviation 17.9


def test_alternating_flips_turn_every_epoch_and_crops_do_not_follow():
    augment = AugmentSection(flip="alternating")
    epochs = torch.stack([views(4000, 7, epoch, augment) for epoch in range(4)])
    flips, crops = epochs // 81, epochs % 81
    assert 0.45 < flips[0].double().mean() < 0.55
    for epoch in range(3):
        assert torch.equal(flips[epoch] + flips[epoch + 1], torch.ones(4000, dtype=torch.int64))
        assert (crops[epoch] == crops[epoch + 1]).double().mean() < 0.03
    assert not torch.equal(flips[0], views(4000, 8, 0, augment) // 81)


def test_the_kind_of_flip_leaves_the_crops_alone():
    crops = {flip: views(500, 0, 3, AugmentSection(flip=flip)) % 81 for flip in ("none", "random", "alternating")}
    assert torch.equal(crops["none"], crops["random"])
    assert torch.equal(crops["none"], crops["alternating"])


# ---- crops, against torchvision


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
def test_every_view_is_torchvisions_crop_and_flip_and_all_are_distinct(fill):
    images = random_images(2)
    cropper = Cropper(images, AugmentSection(fill=fill))
    seen = cropper.crop(torch.ones(162, dtype=torch.int64), torch.arange(162))
    mode = {"zeros": "constant", "reflect": "reflect"}[fill]
    padded = F.pad(images.pixels[1].permute(2, 0, 1), [4, 4, 4, 4], padding_mode=mode)
    for v in range(162):
        flip, dy, dx = v // 81, v % 81 // 9, v % 9
        expected = F.crop(padded, dy, dx, 32, 32)
        expected = F.hflip(expected) if flip else expected
        assert torch.equal(seen[v].permute(2, 0, 1), expected), f"view {v}"
    assert len({view.numpy().tobytes() for view in seen}) == 162
    assert torch.equal(seen[4 * 9 + 4], images.pixels[1])


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
def test_a_batch_equals_torchvisions_pipeline_for_the_same_draws(fill):
    images = random_images(24)
    cropper = Cropper(images, AugmentSection(fill=fill))
    mode = {"zeros": "constant", "reflect": "reflect"}[fill]
    torch.manual_seed(5)
    expected, chosen = [], []
    for i in range(24):
        image = F.pad(ToPILImage()(images.pixels[i].permute(2, 0, 1)), 4, padding_mode=mode)
        dy, dx, height, width = RandomCrop.get_params(image, (32, 32))
        flip = int(torch.rand(1) < 0.5)
        image = F.crop(image, dy, dx, height, width)
        image = F.hflip(image) if flip else image
        expected.append(Normalize(MEAN, STD)(ToTensor()(image)))
        chosen.append(flip * 81 + dy * 9 + dx)
    ours = normalise(cropper.crop(torch.arange(24), torch.tensor(chosen)), MEAN, STD)
    assert (ours - torch.stack(expected)).abs().max() <= 1e-6


def test_padding_four_zeros_is_torchvisions_random_crop():
    """`RandomCrop(32, padding=4)` itself, its draws taken by replaying its generator."""
    images = random_images(8)
    cropper = Cropper(images, AugmentSection(flip="none"))
    for i in range(8):
        image = images.pixels[i].permute(2, 0, 1)
        torch.manual_seed(i)
        theirs = RandomCrop(32, padding=4)(image)
        torch.manual_seed(i)
        dy, dx, *_ = RandomCrop.get_params(torch.empty(3, 40, 40), (32, 32))
        ours = cropper.crop(torch.tensor([i]), torch.tensor([dy * 9 + dx]))
        assert torch.equal(ours[0].permute(2, 0, 1), theirs)


def test_images_that_are_not_square_and_pads_of_nothing():
    images = random_images(3, height=8, width=20)
    index = torch.tensor([2, 0])
    same = Cropper(images, AugmentSection(pad=0)).crop(index, torch.tensor([0, 1]))
    assert torch.equal(same[0], images.pixels[2])
    assert torch.equal(same[1], images.pixels[0].flip(1))
    wide = Cropper(images, AugmentSection(pad=9, flip="none")).crop(index, torch.tensor([9 * 19 + 9, 0]))
    assert torch.equal(wide[0], images.pixels[2])
    assert not wide[1].any()


def test_a_reflection_wider_than_the_image_is_refused():
    images = random_images(1, height=8, width=20)
    with pytest.raises(UsageError, match=r"augment\.pad = 8.*at most 7"):
        Cropper(images, AugmentSection(pad=8, fill="reflect"))
    Cropper(images, AugmentSection(pad=7, fill="reflect"))


def test_an_empty_batch_stays_empty():
    cropper = Cropper(random_images(3), AugmentSection(cutout=8))
    none = torch.empty(0, dtype=torch.int64)
    assert normalise(cropper.crop(none, none), MEAN, STD).shape == (0, 3, 32, 32)


# ---- cutout


def test_cutout_greys_one_square_and_touches_nothing_else():
    images = random_images(40, seed=1)
    plain, cut = (Cropper(images, AugmentSection(cutout=side)) for side in (0, 7))
    index, chosen = torch.arange(40).flip(0), views(40, 3, 4, AugmentSection())[:40]
    whole, holed = plain.crop(index, chosen), cut.crop(index, chosen, seed=3, epoch=4)
    grey = images.pixels.double().mean((0, 1, 2)).round().to(torch.uint8)
    centres = cutout_centres(40, 3, 4, 32, 32)
    for row, i in enumerate(index.tolist()):
        top, left = (max(0, int(c) - 3) for c in centres[i])
        bottom, right = (min(32, int(c) - 3 + 7) for c in centres[i])
        expected = whole[row].clone()
        expected[top:bottom, left:right] = grey
        assert torch.equal(holed[row], expected)


def test_cutout_is_pure_in_seed_epoch_and_image():
    cropper = Cropper(random_images(64), AugmentSection(cutout=8))
    index, chosen = torch.arange(64), torch.full((64,), 40)
    first = cropper.crop(index, chosen, seed=1, epoch=2)
    assert not torch.equal(first, cropper.crop(index, chosen, seed=1, epoch=3))
    assert not torch.equal(first, cropper.crop(index, chosen, seed=2, epoch=2))
    assert torch.equal(first, cropper.crop(index, chosen, seed=1, epoch=2))
    assert torch.equal(first[10:20], cropper.crop(index[10:20], chosen[10:20], seed=1, epoch=2))
    assert len({tuple(centre) for centre in cutout_centres(64, 1, 2, 32, 32).tolist()}) > 50


# ---- normalisation


def test_normalise_is_channels_last_of_the_asked_type_and_leaves_its_input():
    images = random_images(5)
    before = images.pixels.clone()
    out = normalise(images.pixels, MEAN, STD)
    assert out.shape == (5, 3, 32, 32)
    assert out.dtype is torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images.pixels, before)
    half = normalise(images.pixels, MEAN, STD, dtype=torch.bfloat16)
    assert half.dtype is torch.bfloat16
    assert torch.equal(half, out.bfloat16())
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    double = (images.pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std
    assert (out - double).abs().max() < 1e-6


def test_normalise_takes_a_view_of_a_larger_set():
    images = random_images(6)
    strided = images.pixels[::2, :, 4:20]
    assert torch.equal(normalise(strided, MEAN, STD), normalise(strided.contiguous(), MEAN, STD))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_pixels_and_never_waits_for_the_host():
    images = random_images(300)
    for augment in (AugmentSection(), AugmentSection(fill="reflect", flip="alternating"), AugmentSection(cutout=9)):
        chosen = views(300, 0, 1, augment)
        on_cpu = Cropper(images, augment).crop(torch.arange(300), chosen, 0, 1)
        cropper, index, there = Cropper(images.to("cuda"), augment), torch.arange(300).cuda(), chosen.cuda()
        normalise(cropper.crop(index, there, 0, 1), MEAN, STD)  # constants and centres reach the device once
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu = cropper.crop(index, there, 0, 1)
            normalised = normalise(on_gpu, MEAN, STD)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(on_gpu.cpu(), on_cpu)
        assert (normalised.cpu() - normalise(on_cpu, MEAN, STD)).abs().max() <= 1e-6
