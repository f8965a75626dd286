"""The image order of an epoch, and the crops, flips and cutouts of whole batches.

Invariant: each is a pure function of (seed, epoch) and is drawn on the CPU. So it is the same on every device and does
not depend on earlier work. Code that runs on the device never synchronises with the host.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ghostcli.data import Images, Triple
from ghostcli.errors import UsageError

if TYPE_CHECKING:
    from ghostcli.recipe.models import AugmentSection


def generator(seed: int, stream: str, epoch: int) -> torch.Generator:
    """A fresh CPU generator for one purpose (`stream`) of one epoch."""
    digest = hashlib.sha256(f"{seed}/{stream}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def order(n: int, seed: int, epoch: int, shuffle: bool = True) -> torch.Tensor:
    """The image indices of an epoch in training order: int64 [n]."""
    return torch.randperm(n, generator=generator(seed, "order", epoch)) if shuffle else torch.arange(n)


def balanced(labels: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """As `order`, but each class of `labels` [n] has an equal share of the n places: int64 [n].

    A class goes through all of its images before it shows one again. Places that are left over go to the classes in
    turn, beginning with another class each epoch.
    """
    n, classes = len(labels), labels.unique()
    parts = []
    for place, label in enumerate(classes):
        share = n // len(classes) + ((place + epoch) % len(classes) < n % len(classes))
        members, rng = (labels == label).nonzero().flatten(), generator(seed, f"balance {int(label)}", epoch)
        rounds = [members[torch.randperm(len(members), generator=rng)] for _ in range(-(-share // len(members)))]
        parts.append(torch.cat(rounds or [members[:0]])[:share])
    drawn = torch.cat(parts)
    return drawn[order(n, seed, epoch)]


def views(n: int, seed: int, epoch: int, augment: AugmentSection) -> torch.Tensor:
    """The view number of each image in this epoch: int64 [n].

    For pad p, view v = flip * (2p+1)^2 + dy * (2p+1) + dx is the crop at (dy, dx) of the padded image, mirrored if
    flip is 1. Each further augmentation in `VARIANTS` adds one digit to this number.
    """
    size = augment.count("pad")
    numbers = torch.randint(size, (n,), generator=generator(seed, "crop", epoch))
    for key, (draw, _) in VARIANTS.items():
        if (count := augment.count(key)) > 1:
            numbers = numbers + size * draw(n, seed, epoch, getattr(augment, key))
            size *= count
    return numbers


def draw_flips(n: int, seed: int, epoch: int, how: str) -> torch.Tensor:
    """1 for each image to mirror: int64 [n]. Alternating (Jordan 2024): random in epoch 0, then every other epoch."""
    if how == "random":
        return torch.randint(2, (n,), generator=generator(seed, "flip", epoch))
    return (torch.randint(2, (n,), generator=generator(seed, "coin", 0)) + epoch) % 2


def flip(pixels: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Images [B, H, W, 3]. Those with `which` [B] = 1 are mirrored."""
    return torch.where(which.bool()[:, None, None, None], pixels.flip(2), pixels)


#: Augmentation key -> (draw(n, seed, epoch, value) gives the variant of each image, int64 [n]; apply(pixels, which)).
VARIANTS = {"flip": (draw_flips, flip)}


def cutout_centres(n: int, seed: int, epoch: int, height: int, width: int) -> torch.Tensor:
    """The centre pixel (y, x) of each image's cutout, uniform (DeVries 2017): int64 [n, 2]."""
    rng = generator(seed, "cutout", epoch)
    return torch.stack([torch.randint(side, (n,), generator=rng) for side in (height, width)], dim=1)


class Cropper:
    """Cuts views out of images for a whole batch, on the images' device. Images are padded once, at construction."""

    def __init__(self, images: Images, augment: AugmentSection) -> None:
        self.augment = augment
        self.count, self.height, self.width, _ = images.pixels.shape
        padded = _pad(images.pixels, augment)
        row = padded.stride(1)
        offsets = 2 * augment.pad + 1
        # All crops of all images as a view: windows[i, dy, dx] is the crop of image i at (dy, dx). Each row of a crop
        # is contiguous, so gathering a batch copies whole rows.
        self._windows = padded.as_strided(
            (len(padded), offsets, offsets, self.height, self.width * 3), (padded.stride(0), row, 3, row, 1)
        )
        if augment.cutout:
            total = images.pixels.flatten(0, 2).sum(0, dtype=torch.int64).cpu().double()  # MPS has no float64
            mean = total / images.pixels[..., 0].numel()
            self._grey = mean.round().to(images.pixels.device, torch.uint8).repeat(self.width)
        self._centres: tuple[tuple[int, int], torch.Tensor] | None = None

    def crop(self, index: torch.Tensor, views: torch.Tensor, seed: int = 0, epoch: int = 0) -> torch.Tensor:
        """Views [B] of images `index` [B], both int64 on the images' device: uint8 [B, H, W, 3].

        `seed` and `epoch` only place the cutout.
        """
        offsets = 2 * self.augment.pad + 1
        rest, place = views // offsets**2, views % offsets**2
        crops = self._windows[index, place // offsets, place % offsets]
        crops = crops.view(len(index), self.height, self.width, 3)
        for key, (_, apply) in VARIANTS.items():
            if (count := self.augment.count(key)) > 1:
                crops, rest = apply(crops, rest % count), rest // count
        return self._cut_out(crops, index, seed, epoch) if self.augment.cutout else crops

    def _cut_out(self, crops: torch.Tensor, index: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        if self._centres is None or self._centres[0] != (seed, epoch):
            centres = cutout_centres(len(self._windows), seed, epoch, self.height, self.width)
            self._centres = (seed, epoch), centres.to(crops.device)
        start = self._centres[1][index] - self.augment.cutout // 2
        y = torch.arange(self.height, device=crops.device) - start[:, :1]
        x = torch.arange(self.width, device=crops.device).repeat_interleave(3) - start[:, 1:]
        inside_y, inside_x = ((d >= 0) & (d < self.augment.cutout) for d in (y, x))
        square = inside_y[:, :, None] & inside_x[:, None, :]  # [B, H, 3 W]
        return torch.where(square, self._grey, crops.flatten(2)).view_as(crops)


def normalise(pixels: torch.Tensor, mean: Triple, std: Triple, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [B, H, W, 3] to `dtype` [B, 3, H, W] in channels_last: (pixels / 255 - mean) / std in float32."""
    b, h, w, _ = pixels.shape
    tiled_mean, tiled_std = _tile(tuple(mean), tuple(std), h * w, pixels.device)
    flat = torch.div(pixels.reshape(b, h * w * 3), 255).sub_(tiled_mean).div_(tiled_std)
    return flat.view(b, h, w, 3).permute(0, 3, 1, 2).to(dtype)


@lru_cache(maxsize=32)
def _tile(mean: Triple, std: Triple, repeats: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The channel constants, repeated for every pixel of an image, kept on the device.

    An inner dimension of 3 is not vectorised; the long one is 7 times as fast on a CPU.
    """
    return torch.tensor(mean, device=device).repeat(repeats), torch.tensor(std, device=device).repeat(repeats)


def _pad(pixels: torch.Tensor, augment: AugmentSection) -> torch.Tensor:
    """uint8 [N, H, W, 3] to [N, H + 2p, W + 2p, 3]. Zero is black before normalisation."""
    n, h, w, c = pixels.shape
    p = augment.pad
    if augment.fill == "reflect":
        if p >= min(h, w):
            raise UsageError(f"augment.pad = {p}: an image of {h} x {w} reflects at most {min(h, w) - 1} pixels")
        rows, columns = (_reflection(side, p).to(pixels.device) for side in (h, w))
        return pixels[:, rows[:, None], columns]
    padded = pixels.new_zeros((n, h + 2 * p, w + 2 * p, c))
    padded[:, p : p + h, p : p + w] = pixels
    return padded


def _reflection(side: int, pad: int) -> torch.Tensor:
    """Source index of each pixel of a side padded by reflection at its border pixels: int64 [side + 2 pad]."""
    place = torch.arange(-pad, side + pad).abs()
    return torch.where(place < side, place, 2 * (side - 1) - place)
