"""scikit-learn's handwritten digits, which need no download: 1,797 greys of 8 x 8 (Alpaydin and Kaynak 1998).

Invariant: the same 1,437 training and 360 test images on every machine, exact to the last bit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F

from ghostcli.data import Images
from ghostcli.data.split import stratified

TEST_IMAGES = 360

PLACE = "within scikit-learn"
CLASSES = tuple("0123456789")

#: Of the 8 x 8 greys and the labels, as bytes.
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def raw_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Greys 0..16 uint8 [1797, 8, 8] and labels int64 [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target).to(torch.int64)


def raw_checksum() -> str:
    greys, labels = raw_digits()
    return hashlib.sha256(greys.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()).hexdigest()


def checks(name: str, root: Path) -> list[tuple[str, str | None]]:
    """Whether the images are those of scikit-learn's releases."""
    same = raw_checksum() == SHA256
    problem = None if same else "scikit-learn's digits are not the 1,797 images of its releases: install it again"
    return [("sklearn.datasets.load_digits", problem)]


def read(name: str, root: Path) -> tuple[tuple[str, ...], Images, Images]:
    """(classes, train, test) at 32 x 32 in three equal channels, split by class."""
    greys, labels = raw_digits()
    # Bilinear weights of a fourfold enlargement are eighths, so in float64 nothing is rounded before the end.
    large = F.interpolate(greys[:, None].double(), size=(32, 32), mode="bilinear", align_corners=False)
    pixels = (large * 255 / 16).round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3)
    images = Images(pixels, labels)
    train, test = stratified(labels, TEST_IMAGES, seed=0)
    return CLASSES, images[train], images[test]
