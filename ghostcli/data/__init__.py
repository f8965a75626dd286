"""Data sets by name: loaded, limited, split and fingerprinted.

Invariant: a `Data` depends only on its recipe section and the files, never on the run's seed.
Torch is imported when a data set is loaded, not before.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ghostcli.errors import UsageError, nearest, printable
from ghostcli.recipe.sets import SETS, Triple

if TYPE_CHECKING:
    import torch

    from ghostcli.recipe.models import DataSection


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels, on one device."""

    pixels: torch.Tensor  # uint8 [N, H, W, 3]
    labels: torch.Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | torch.Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    @property
    def checksum(self) -> str:
        """sha256 of the pixels."""
        return hashlib.sha256(self.pixels.cpu().contiguous().numpy()).hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set as a run uses it. `mean`, `std`: of pixels in 0..1. `checksum`: of all pixels and labels."""

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images | None
    test: Images
    mean: Triple
    std: Triple
    checksum: str


def data_root() -> Path:
    """The folder of downloaded sets: `GHOST_DATA`, or `data` in the current directory."""
    return Path(os.environ.get("GHOST_DATA") or "data")


def folder_of(name: str) -> Path | None:
    """PATH of `folder:PATH`; None for a named set. UsageError for any other name."""
    if name in SETS:
        return None
    if name.startswith("folder:") and name != "folder:":
        return Path(os.path.expanduser(name.removeprefix("folder:")))
    hint = nearest(name, [*SETS, "folder:PATH"])
    raise UsageError(f"data.name: there is no data set '{printable(name)}'{hint}")


def load(section: DataSection, root: Path | None = None) -> Data:
    """The data set of a recipe, on the CPU. CIFAR is downloaded into `root` at first use. UsageError if none."""
    folder = folder_of(section.name)
    if folder is None and section.size != 32:
        raise UsageError(f"data.size = {section.size} is for folder data; {section.name} is 32 x 32: remove the key")
    if folder is not None:
        from ghostcli.data.folder import read_folder

        classes, train, test = read_folder(folder, section.size)
    else:
        classes, train, test = SETS[section.name].read(root or data_root())

    train, test = train[: section.limit], test[: section.limit_test]
    train, validation = _hold_out(train, section)
    known = SETS[section.name].statistics if folder is None else None
    mean, std = known or _statistics(train)
    parts = {"train": train, "validation": validation, "test": test}
    return Data(printable(section.name), classes, train, validation, test, mean, std, _checksum(parts))


def is_here(name: str) -> bool:
    """Whether a data set lies on this machine, so that `load` downloads nothing."""
    folder = folder_of(name)
    return folder.is_dir() if folder is not None else SETS[name].state(data_root()) == "ready"


def _hold_out(train: Images, section: DataSection) -> tuple[Images, Images | None]:
    from ghostcli.data.split import stratified

    if section.validation == 0:
        return train, None
    if section.validation >= len(train):
        raise UsageError(
            f"data.validation = {section.validation} leaves none of {len(train)} training images: "
            f"type a number below {len(train)}"
        )
    rest, held_out = stratified(train.labels, section.validation, section.split_seed)
    return train[rest], train[held_out]


def _statistics(train: Images) -> tuple[Triple, Triple]:
    """Channel means and standard deviations in 0..1. Sums are exact integers, so every machine gets the same values."""
    import torch

    mean, std = [], []
    for channel in train.pixels.unbind(-1):
        counts = torch.bincount(channel.flatten(), minlength=256).tolist()
        n = sum(counts)
        first, second = (sum(count * value**power for value, count in enumerate(counts)) for power in (1, 2))
        mean.append(first / (255 * n))
        std.append(math.sqrt(n * second - first**2) / (255 * n) or 1.0)  # a constant channel is divided by one
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _checksum(parts: dict[str, Images | None]) -> str:
    digest = hashlib.sha256()
    for name, images in parts.items():
        if images is not None:
            digest.update(f"{name} {tuple(images.pixels.shape)}\n".encode())
            digest.update(images.pixels.contiguous().numpy())
            digest.update(images.labels.contiguous().numpy())
    return digest.hexdigest()
