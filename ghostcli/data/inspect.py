"""Describes a folder of a user's own images, suggests settings for it, and splits it. No torch.

Invariant: a folder with faults is described, and each fault is named. It is an error only if it cannot be read at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from ghostcli import signals
from ghostcli.data.pictures import FORMATS, SUFFIXES, decode, decoders, entries, tree
from ghostcli.errors import GhostError, UsageError, printable

#: Images are compared at this side in pixels, so copies of a picture in two formats are equal.
COMPARED_AT = 32
#: A class is small if it has fewer training images than this share of the largest class.
UNEVEN = 0.2
#: The suggested budget in images (a tenth of the paper's), and the maximum number of epochs.
SEEN, MOST_EPOCHS = 1_000_000, 200
SIZES = (32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Found:
    """Images by part and class, and their faults.

    `counts`: part (train, test) -> class -> readable images. `sides`: the smallest, median and largest shorter side in
    pixels. `broken`: (file, reason). `shared`: groups of equal pictures with files in both parts. `contradictory`:
    groups of equal pictures in several classes. `remarks`: sentences about the folder. `settings`: keys of a recipe for
    a first training; None if the folder cannot be used as it is.
    """

    folder: str
    counts: dict[str, dict[str, int]]
    sides: tuple[int, int, int] | None
    broken: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, ...], ...]
    contradictory: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    settings: dict[str, Any] | None


@dataclass(frozen=True)
class _Picture:
    file: Path
    part: str
    label: str
    side: int = 0
    checksum: str = ""
    problem: str | None = None


def inspect(folder: Path) -> Found:
    """Inspect all images of a folder. UsageError if it has no images in class folders."""
    files, faults, empty = _list_pictures(folder)
    if not files and not faults:
        raise UsageError(
            f"{_nothing(folder)}; it needs train/CLASS/ and test/CLASS/, or CLASS/ alone, with "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    with decoders() as pool:
        seen = list(pool.map(_look, files))
    good = [picture for picture in seen if picture.problem is None]
    counts: dict[str, dict[str, int]] = {}
    for picture in seen:
        counts.setdefault(picture.part, {}).setdefault(picture.label, 0)
        counts[picture.part][picture.label] += picture.problem is None
    for part, label in empty:
        counts.setdefault(part, {})[label] = 0
    sides = sorted(picture.side for picture in good)
    broken = _unreadable(seen, faults)
    return Found(
        printable(folder),
        counts,
        (sides[0], round(median(sides)), sides[-1]) if sides else None,
        broken,
        _equal(good, lambda picture: picture.part),
        _equal(good, lambda picture: picture.label),
        (*_remarks(counts, len(broken), set(os.listdir(folder))), *passed_over(folder)),
        _settings(folder, counts, sides, bool(broken)),
    )


def _list_pictures(folder: Path) -> tuple[list[_Picture], dict[Path, str], list[tuple[str, str]]]:
    """(all images, the faults of `tree`, (part, class) of folders without images). Without parts all are `train`."""
    parts, faults = tree(folder)
    names = {"": "train", "val": "test"}
    labels = [(names.get(part, part), label, files) for part, each in parts.items() for label, files in each.items()]
    pictures = [_Picture(file, part, label) for part, label, files in labels for file in files]
    empty = [(part, label) for part, label, files in labels if not files]
    return pictures, faults, empty


def _unreadable(seen: Sequence[_Picture], faults: dict[Path, str]) -> tuple[tuple[str, str], ...]:
    """(file, reason) of what a training cannot read."""
    unread = {picture.file: picture.problem for picture in seen if picture.problem is not None}
    return tuple((printable(file), why) for file, why in {**unread, **faults}.items())


def _look(picture: _Picture) -> _Picture:
    try:
        pixels = decode(picture.file, COMPARED_AT)
        with Image.open(picture.file, formats=FORMATS) as image:
            side = min(image.size)
    except UsageError as error:
        return replace(picture, problem=str(error).removeprefix(f"{printable(picture.file)}: "))
    return replace(picture, side=side, checksum=hashlib.sha256(pixels.tobytes()).hexdigest())


def _equal(pictures: Sequence[_Picture], apart: Callable[[_Picture], str]) -> tuple[tuple[str, ...], ...]:
    """Groups of equal pictures with several values of `apart`."""
    groups: dict[str, list[_Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.checksum].append(picture)
    mixed = (group for group in groups.values() if len({apart(picture) for picture in group}) > 1)
    return tuple(tuple(printable(picture.file) for picture in group) for group in mixed)


def _remarks(counts: dict[str, dict[str, int]], broken: int, there: set[str]) -> Iterator[str]:
    train, test = counts.get("train", {}), counts.get("test", {})
    unusable = "has no class that can be used" if broken else "has no classes"
    if not train:
        what = f"train/ {unusable}" if "train" in there else "There is no train/"
        yield f"{what}, so there is nothing to train on."
    if not test and (held := [part for part in ("test", "val") if part in there]):
        yield f"{held[0]}/ {unusable}."
    elif not test:
        yield "There is no test/: `ghost data split PATH --out NEW` makes one, stratified by class."
    for part, other, names in (
        ("train", "test", train.keys() - test.keys()),
        ("test", "train", test.keys() - train.keys()),
    ):
        if train and test and names:
            yield f"Only {part}/ has {', '.join(map(printable, sorted(names)))}: {other}/ needs the same classes."
    if len(train) == 1:
        yield "There is one class: a classifier needs two or more."
    most, small = max(train.values(), default=0), {name: n for name, n in _small(train).items() if n}
    if small:
        listed = ", ".join(f"{printable(name)} ({n:,})" for name, n in sorted(small.items(), key=lambda item: item[1]))
        yield (
            f"Uneven classes: the largest has {most:,} training images; small ones are {listed}. The accuracy alone "
            "hides errors in small classes: `ghost evaluate run/ID --by-class` shows each. With data.balance=true a "
            "training shows every class equally often."
        )
    for part, classes in counts.items():
        if empty := [name for name, n in classes.items() if n == 0]:
            listed = ", ".join(map(printable, sorted(empty)))
            yield f"No images in {part}/ for {listed}: add some, or remove the folder; a training stops there."
    if broken:
        yield f"{broken} file{'s' * (broken != 1)} cannot be read: a training stops at the first such file."


def passed_over(folder: Path) -> Iterator[str]:
    """What a training does not see: other kinds of files, pictures in deeper folders, folders that are no part.

    Links are not followed; `tree` names those that lead out of the folder.
    """
    used = [name for name in tree(folder)[0] if name]

    def inner(place: Path) -> list[Path]:
        return [path for path in entries(place) if path.is_dir() and not path.is_symlink()]

    if used and (others := [path.name for path in inner(folder) if path.name not in used]):
        listed = ", ".join(f"{printable(name)}/" for name in others)
        yield f"Not used: {listed}. A training reads train/ and test/, or val/ where there is no test/."
    labels = [label for name in used or [""] for label in inner(folder / name)]
    kinds = Counter(
        path.suffix.lower() or path.name
        for label in labels
        for path in entries(label)
        if path.suffix.lower() not in SUFFIXES and path.is_file()
    )
    if kinds:
        listed = ", ".join(f"{printable(kind)} ({n:,})" for kind, n in kinds.most_common(5)) + ", ..." * (
            len(kinds) > 5
        )
        yield f"Files of other kinds are not read: {listed}. Convert pictures among them, for example to .png or .jpg."
    deeper = {
        path: sum(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
        for label in labels
        for path in inner(label)
    }
    if count := sum(deeper.values()):
        first = next(path for path, n in deeper.items() if n)
        yield (
            f"Pictures in folders inside a class are not read: {count:,}, as in {printable(first)}. Move them into the "
            "folder of their class."
        )


def _small(train: dict[str, int]) -> dict[str, int]:
    """The classes with few images, beside the largest."""
    return {name: n for name, n in train.items() if n < UNEVEN * max(train.values())}


def _settings(
    folder: Path, counts: dict[str, dict[str, int]], sides: Sequence[int], broken: bool
) -> dict[str, Any] | None:
    """Keys of a recipe for a first training; None if the folder cannot be used as it is."""
    train, test = counts.get("train", {}), counts.get("test", {})
    if broken or not sides or len(train) < 2 or train.keys() != test.keys() or 0 in (*train.values(), *test.values()):
        return None
    count = sum(train.values())
    size = max((side for side in SIZES if side <= median(sides)), default=SIZES[0])
    batch = max(8, min(256, 2 ** max(3, (count // 20).bit_length() - 1)))
    epochs = max(1, min(MOST_EPOCHS, SEEN // count))
    return {
        "data.name": f"folder:{folder}",
        "train.epochs": epochs,
        "data.size": size,
        "train.batch_size": batch,
    } | ({"data.balance": True} if _small(train) else {})


def split(folder: Path, out: Path, share: float, seed: int) -> Counter[str]:
    """Copy a folder of classes to `out`/train and `out`/test. `share` of each class (at least one image) goes to test.

    Equal pictures go to the same part. `out` is there once it is whole. Returns the number of images of each part.
    UsageError if `out` exists, if files cannot be read, if equal pictures lie in two classes, or if a class has too few
    pictures.
    """
    if out.exists():
        raise UsageError(f"{printable(out)}: already exists; name a new folder")
    files, faults, _ = _list_pictures(folder)
    if any(picture.part == "test" for picture in files):
        raise UsageError(f"folder:{printable(folder)}: already has a test part")
    if not files and not faults:
        raise UsageError(_nothing(folder))
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{printable(out)}: is in the folder that is split; name one beside it")
    with decoders() as pool:
        seen = list(pool.map(_look, files))
    _require_sound(seen, faults)
    by_class: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for picture in seen:
        by_class[picture.label][picture.checksum].append(picture.file)
    copies: list[tuple[Path, Path]] = []
    for label, groups in by_class.items():
        if len(groups) < 2:
            alike = sum(map(len, groups.values()))
            what = "one picture" if alike < 2 else f"one picture in {alike:,} equal files"
            raise UsageError(f"{printable(label)}: has {what}; a split needs two or more pictures of each class")
        order = sorted(groups.values())
        random.Random(f"{seed} {label}").shuffle(order)
        count = min(len(order) - 1, max(1, round(share * len(order))))
        for i, files in enumerate(order):
            copies += [(file, Path("test" if i < count else "train", label, file.name)) for file in files]
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for source, target in copies:
            signals.raise_if_received()
            (unfinished / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, unfinished / target)
        os.rename(unfinished, out)
    except OSError as error:
        kind = GhostError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UsageError
        raise kind(f"{printable(out)}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Counter(target.parts[0] for _, target in copies)


def _require_sound(seen: Sequence[_Picture], faults: dict[Path, str]) -> None:
    """UsageError if a file cannot be read, or if equal pictures lie in two classes: they could come to both parts."""
    if broken := [f"{file} ({why})" for file, why in _unreadable(seen, faults)]:
        more = f" and {len(broken) - 3} more (ghost data inspect lists them)" if broken[3:] else ""
        pronoun = "them" if broken[1:] else "it"
        raise UsageError(f"{', '.join(broken[:3])}{more}: cannot be read; repair or remove {pronoun}")
    if doubtful := _equal(seen, lambda picture: picture.label):
        first, other = doubtful[0][0], doubtful[0][-1]
        more = f", and so have {len(doubtful) - 1} other pictures" * (len(doubtful) > 1)
        raise UsageError(
            f"{first}: has an equal picture in another class, {other}{more} (ghost data inspect lists them); "
            "keep each in one class"
        )


def _nothing(folder: Path) -> str:
    return f"folder:{printable(folder)}: holds no images in folders of classes"
