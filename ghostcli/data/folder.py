"""A user's own images: train/ and test/ (or val/), with one folder per class.

Invariant: no file outside the folder is opened. A file that cannot be read is an error that names it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ghostcli import display
from ghostcli.data import Images
from ghostcli.data.pictures import SUFFIXES, decode, decoders, entries
from ghostcli.data.split import interleaved
from ghostcli.errors import UsageError, printable


def read_folder(folder: Path, size: int) -> tuple[tuple[str, ...], Images, Images]:
    """(classes sorted by name, train, test). Images are `size` x `size`, classes interleaved in proportion."""
    train, test = list_images(folder)
    classes = tuple(printable(name) for name in train)
    return classes, _read(train, size), _read(test, size)


def list_images(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """(train, test): image paths by class name, sorted. Both have the same classes. Decodes no image."""
    if not os.path.isdir(folder):
        raise UsageError(
            f"folder:{printable(folder)}: there is no such folder; it must hold train/ and test/ (or val/)"
        )
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if os.path.isdir(folder / name)), None)
    if not os.path.isdir(train) or test is None:
        missing = "train/" if test else "test/ (or val/)" if os.path.isdir(train) else "train/ and test/ (or val/)"
        raise UsageError(f"folder:{printable(folder)}: has no {missing} with one folder per class")
    inside = folder.resolve()
    parts = [_list_part(part, inside) for part in (train, test)]
    only = [sorted(set(a) - set(b)) for a, b in (parts, parts[::-1])]
    for part, other, names in ((train, test, only[0]), (test, train, only[1])):
        if names:
            raise UsageError(
                f"folder:{printable(folder)}: {part.name}/ and {other.name}/ must hold the same classes; "
                f"only {part.name}/ holds {_listed(names)}"
            )
    if len(parts[0]) == 1:
        raise UsageError(
            f"{printable(train)}: only one class, {_listed(list(parts[0]))}; a classifier needs two or more"
        )
    return parts[0], parts[1]


def _list_part(part: Path, inside: Path) -> dict[str, list[Path]]:
    _refuse_escape(part, inside)
    folders = [entry for entry in _entries(part, inside) if os.path.isdir(entry)]
    images = {}
    for folder in folders:
        files = [f for f in _entries(folder, inside) if f.suffix.lower() in SUFFIXES]
        for file in files:
            if not os.path.isfile(file):
                raise UsageError(f"{printable(file)}: is named as an image but is not a file: remove it")
        if files:
            images[folder.name] = files
    if not images:
        raise UsageError(
            f"{printable(part)}: holds no images; it needs one folder per class, with {', '.join(sorted(SUFFIXES))}"
        )
    empty = [folder.name for folder in folders if folder.name not in images]
    if empty:
        raise UsageError(f"{printable(part)}: no images in {_listed(empty)}: add some or remove the folder")
    return images


def _entries(folder: Path, inside: Path) -> list[Path]:
    """What is in a folder. UsageError for a link that leads out of `inside`."""
    paths = entries(folder)
    for path in paths:
        _refuse_escape(path, inside)
    return paths


def _refuse_escape(path: Path, inside: Path) -> None:
    if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(inside):
        raise UsageError(f"{printable(path)}: is a link that leads out of {printable(inside)}: copy what it points to")


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:most]) + more


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
