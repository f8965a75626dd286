"""A user's own images: train/ and test/ (or val/), with one folder per class.

Invariant: no file outside the folder is opened. A file that cannot be read is an error that names it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ghostcli import display
from ghostcli.data import Images
from ghostcli.data.pictures import SUFFIXES, decode, decoders, tree
from ghostcli.data.split import interleaved
from ghostcli.errors import UsageError, printable


def read_folder(folder: Path, size: int) -> tuple[tuple[str, ...], Images, Images]:
    """(classes sorted by name, train, test). Images are `size` x `size`, classes interleaved in proportion."""
    train, test = list_images(folder)
    classes = tuple(printable(name) for name in train)
    return classes, _read(train, size), _read(test, size)


def list_images(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """(train, test): image paths by class name, sorted. Both have the same classes. Decodes no image."""
    parts, faults = tree(folder)
    held_out = "val" if "val" in parts else "test"
    if missing := [name for name in ("train", held_out) if name not in parts]:
        named = " and ".join(f"{name}/ (or val/)" if name == "test" else f"{name}/" for name in missing)
        raise UsageError(f"folder:{printable(folder)}: has no {named} with one folder per class")
    for path, why in faults.items():
        raise UsageError(f"{printable(path)}: {why}")
    for part, classes in parts.items():
        _require_images(folder / part, classes)
    train, test = parts["train"], parts[held_out]
    for part, names in (("train", train.keys() - test.keys()), (held_out, test.keys() - train.keys())):
        if names:
            raise UsageError(
                f"folder:{printable(folder)}: train/ and {held_out}/ must hold the same classes; "
                f"only {part}/ holds {_name_list(sorted(names))}"
            )
    if len(train) == 1:
        raise UsageError(
            f"{printable(folder / 'train')}: only one class, {_name_list(list(train))}; a classifier needs two or more"
        )
    return train, test


def _require_images(part: Path, classes: dict[str, list[Path]]) -> None:
    if not any(classes.values()):
        raise UsageError(
            f"{printable(part)}: holds no images; it needs one folder per class, with {', '.join(sorted(SUFFIXES))}"
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise UsageError(f"{printable(part)}: no images in {_name_list(empty)}: add some or remove the folder")


def _name_list(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:3]) + more


def _read(by_class: dict[str, list[Path]], size: int) -> Images:
    from rich.console import Console
    from rich.progress import track

    files = list(by_class.values())
    places = interleaved([len(paths) for paths in files])
    paths = [files[c][j] for c, j in places]
    pixels = np.empty((len(paths), size, size, 3), np.uint8)
    with decoders() as pool:
        console = Console(stderr=True)
        done = pool.map(lambda path, out: np.copyto(out, decode(path, size)), paths, pixels)
        hidden = not display.live()
        for _ in track(done, "reading images", len(paths), console=console, transient=True, disable=hidden):
            pass
    return Images(torch.from_numpy(pixels), torch.tensor([c for c, _ in places]))
