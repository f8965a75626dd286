"""What is in a folder of a user's own images, and where to begin with it. No torch.

Invariant: nothing is written. A folder with faults is described, with each fault named; only one that cannot be read at
all is an error.
"""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from PIL import Image

from ghostcli.data.pictures import FORMATS, SUFFIXES, decode
from ghostcli.errors import UsageError, printable

#: Images are compared at this side, in pixels: copies of one picture in two formats count as equal.
COMPARED_AT = 32
#: A class with fewer training images than this share of the largest is called small.
UNEVEN = 0.2
#: What a training of the paper takes, in images seen; small folders get epochs until about a tenth of it is reached.
SEEN, MOST_EPOCHS = 1_000_000, 200
SIZES = (32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Found:
    """Images by part and class, and what is wrong with them.

    `counts`: part (train, test) -> class -> readable images. `sides`: the least, middle and largest shorter side in
    pixels. `broken`: (file, why). `shared`: groups of equal pictures with a file in both parts. `contradictory`:
    groups of equal pictures under several classes. `remarks` are sentences on the whole. `command` begins a training.
    """

    folder: str
    counts: dict[str, dict[str, int]]
    sides: tuple[int, int, int] | None
    broken: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, ...], ...]
    contradictory: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    command: str | None


@dataclass(frozen=True)
class _Picture:
    file: Path
    part: str
    label: str
    side: int = 0
    checksum: str = ""
    problem: str | None = None


def inspect(folder: Path) -> Found:
    """Look at every image of a folder. UsageError where it holds no images in folders of classes."""
    files = list(images(folder))
    if not files:
        raise UsageError(
            f"folder:{printable(folder)}: holds no images in folders of classes; it needs train/CLASS/ and "
            f"test/CLASS/, or CLASS/ alone, with {', '.join(sorted(SUFFIXES))}"
        )
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        seen = list(pool.map(_look, files))
    good = [picture for picture in seen if picture.problem is None]
    counts: dict[str, dict[str, int]] = {}
    for picture in seen:
        counts.setdefault(picture.part, {}).setdefault(picture.label, 0)
        counts[picture.part][picture.label] += picture.problem is None
    sides = sorted(picture.side for picture in good)
    broken = tuple((printable(p.file), str(p.problem)) for p in seen if p.problem is not None)
    return Found(
        printable(folder),
        counts,
        (sides[0], round(median(sides)), sides[-1]) if sides else None,
        broken,
        _equal(good, lambda picture: picture.part),
        _equal(good, lambda picture: picture.label),
        tuple(_remarks(counts, len(broken))),
        _command(folder, counts, sides, bool(broken)),
    )


def images(folder: Path) -> Iterator[_Picture]:
    """Every image of a folder by part and class, by name; without parts all are `train`. Links are passed by."""
    if not folder.is_dir():
        raise UsageError(f"folder:{printable(folder)}: there is no such folder")
    parts = {name: folder / name for name in ("train", "test", "val") if (folder / name).is_dir()}
    if "test" in parts:
        parts.pop("val", None)
    for part, place in (parts or {"train": folder}).items():
        for label in _entries(place):
            if label.is_dir():
                for file in _entries(label):
                    if file.suffix.lower() in SUFFIXES and file.is_file():
                        yield _Picture(file, "test" if part == "val" else part, label.name)


def _entries(folder: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
    return [path for name in names if not (path := folder / name).is_symlink()]


def _look(picture: _Picture) -> _Picture:
    try:
        pixels = decode(picture.file, COMPARED_AT)
        with Image.open(picture.file, formats=FORMATS) as image:
            side = min(image.size)
    except UsageError as error:
        return replace(picture, problem=str(error).removeprefix(f"{printable(picture.file)}: "))
    return replace(picture, side=side, checksum=hashlib.sha256(pixels.tobytes()).hexdigest())


def _equal(pictures: Sequence[_Picture], apart: Callable[[_Picture], str]) -> tuple[tuple[str, ...], ...]:
    """Groups of equal pictures in which `apart` has several values."""
    groups: dict[str, list[_Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.checksum].append(picture)
    found = (group for group in groups.values() if len({apart(picture) for picture in group}) > 1)
    return tuple(tuple(printable(picture.file) for picture in group) for group in found)


def _remarks(counts: dict[str, dict[str, int]], broken: int) -> Iterator[str]:
    train, test = counts.get("train", {}), counts.get("test", {})
    if not train:
        yield "There is no train/: nothing can be learnt from."
    if not test:
        yield "There is no test/: `ghost data split` makes one, stratified by class."
    for part, other, names in (
        ("train", "test", train.keys() - test.keys()),
        ("test", "train", test.keys() - train.keys()),
    ):
        if train and test and names:
            yield f"Only {part}/ has {', '.join(map(printable, sorted(names)))}: {other}/ needs the same classes."
    if len(train) == 1:
        yield "There is one class: a classifier needs two or more."
    most = max(train.values(), default=0)
    small = {name: n for name, n in train.items() if n < UNEVEN * most}
    if small:
        listed = ", ".join(f"{printable(name)} ({n:,})" for name, n in sorted(small.items(), key=lambda item: item[1]))
        yield (
            f"Uneven classes: the largest has {most:,} training images; few have {listed}. Accuracy alone hides how "
            "badly small classes do: look at each class in `ghost report`."
        )
    if broken:
        yield f"{broken} file{'s' * (broken != 1)} cannot be read: a training stops at the first of them."


def _command(folder: Path, counts: dict[str, dict[str, int]], sides: Sequence[int], broken: bool) -> str | None:
    """A training to begin with; None where the folder cannot be trained on as it is."""
    train, test = counts.get("train", {}), counts.get("test", {})
    if broken or not sides or len(train) < 2 or train.keys() != test.keys():
        return None
    count = sum(train.values())
    size = max((side for side in SIZES if side <= median(sides)), default=SIZES[0])
    batch = max(8, min(256, 2 ** max(3, (count // 20).bit_length() - 1)))
    epochs = max(1, min(MOST_EPOCHS, SEEN // count))
    words = ["ghost", "train-teacher", "gns:1.0", "--data", f"folder:{folder}", "--epochs", str(epochs)]
    return shlex.join([*words, "-s", f"data.size={size}", "-s", f"train.batch_size={batch}"])


def split(folder: Path, out: Path, share: float, seed: int) -> Counter[str]:
    """Copy a folder of classes to `out`/train and `out`/test, `share` of each class (at least one image) into test.

    Equal pictures stay together, so that none is in both parts. Returns how many images each part has. UsageError where
    `out` exists, or where a class has too few pictures.
    """
    if out.exists():
        raise UsageError(f"{printable(out)}: exists; name a folder that does not")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        seen = [_look(picture) for picture in images(folder)]
    parts = {picture.part for picture in seen}
    if parts != {"train"}:
        raise UsageError(f"folder:{printable(folder)}: has a test part already" if parts else _nothing(folder))
    by_class: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for picture in seen:
        by_class[picture.label][picture.checksum or str(picture.file)].append(picture.file)
    copies: list[tuple[Path, Path]] = []
    for label, groups in by_class.items():
        if len(groups) < 2:
            raise UsageError(f"{printable(label)}: has {len(groups)} picture; a split needs two or more of each class")
        order = sorted(groups.values())
        random.Random(f"{seed} {label}").shuffle(order)
        count = min(len(order) - 1, max(1, round(share * len(order))))
        for i, files in enumerate(order):
            copies += [(file, out / ("test" if i < count else "train") / label / file.name) for file in files]
    try:
        for source, target in copies:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(f"{printable(out)}: cannot be written ({error.strerror or error})") from error
    return Counter(target.parent.parent.name for _, target in copies)


def _nothing(folder: Path) -> str:
    return f"folder:{printable(folder)}: holds no images in folders of classes"
