"""Handwritten digits, embedded: 1,797 grey images of 8 x 8 (Alpaydin and Kaynak 1998), for demos and tests.

They are the test part of "Optical Recognition of Handwritten Digits" of the UCI repository (CC BY 4.0), the same
images and order as scikit-learn's. Invariant: every machine gets the same 1,437 training and 360 test images, bit for
bit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ghostcli.data import Images
from ghostcli.data.split import stratified

TEST_IMAGES = 360

FILE = Path(__file__).with_name("digits.npz")
CLASSES = tuple("0123456789")

#: Checksum of the 8 x 8 images and the labels, as bytes.
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def raw_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Grey values 0..16, uint8 [1797, 8, 8], and labels, int64 [1797]."""
    with np.load(FILE, allow_pickle=False) as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).to(torch.int64)


def raw_checksum() -> str:
    greys, labels = raw_digits()
    return hashlib.sha256(greys.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()).hexdigest()


def checks(name: str, root: Path) -> list[tuple[str, str | None]]:
    """Check that the images are those that were shipped."""
    same = raw_checksum() == SHA256
    problem = None if same else "the digits are not the 1,797 images that ghost ships: install it again"
    return [(FILE.name, problem)]


def read(name: str, root: Path) -> tuple[tuple[str, ...], Images, Images]:
    """(classes, train, test) at 32 x 32 with three equal channels. The split is stratified by class."""
    greys, labels = raw_digits()
    # For a fourfold enlargement the bilinear weights are eighths, so float64 is exact until the last rounding.
    large = F.interpolate(greys[:, None].double(), size=(32, 32), mode="bilinear", align_corners=False)
    pixels = (large * 255 / 16).round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3)
    images = Images(pixels, labels)
    train, test = stratified(labels, TEST_IMAGES, seed=0)
    return CLASSES, images[train], images[test]
