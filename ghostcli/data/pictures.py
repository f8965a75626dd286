"""Decodes a picture file to pixels, for training and for prediction.

Invariant: training and prediction use `fitted`, and files are opened by safe decoders only. No torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ghostcli.errors import UsageError, printable
from ghostcli.machine import cores

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)

#: Pillow's plain decoders: without this list a file named .png could start Ghostscript.
#: JPEG's opens MPO too, which is no name of Pillow's own.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")

#: What `decode` does, in words, for users who deploy a network elsewhere.
STEPS = (
    "turn by the EXIF orientation; put on white what is transparent; convert to RGB; "
    "scale the shorter side to the size (bilinear, antialiased); cut about the centre"
)


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden names. UsageError if it cannot be read."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
        return [folder / name for name in names if not name.startswith(".")]
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be read ({error.strerror})") from error


def tree(folder: Path) -> tuple[dict[str, dict[str, list[Path]]], dict[Path, str]]:
    """(part -> class -> images, path -> what is wrong with it), all sorted by name. Decodes no image.

    Parts are `train`, and `test` or else `val`. A folder of classes without parts is the part "". What is wrong is not
    among the images: links that lead out of the folder, and names of images that are no files. UsageError if there is
    no folder, or it cannot be read.
    """
    if not os.path.isdir(folder):
        raise UsageError(
            f"folder:{printable(folder)}: there is no such folder here; name one with train/ and test/ (or val/) in it"
        )
    inside = folder.resolve()
    faults: dict[Path, str] = {}

    def leads_out(path: Path) -> bool:
        out = os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(inside)
        if out:
            faults[path] = f"is a link that leads out of {printable(inside)}: copy what it points to"
        return out

    def below(place: Path) -> list[Path]:
        return [] if leads_out(place) else [path for path in entries(place) if not leads_out(path)]

    def images(label: Path) -> list[Path]:
        named = [path for path in below(label) if path.suffix.lower() in SUFFIXES]
        odd = [path for path in named if not os.path.isfile(path)]
        faults.update(dict.fromkeys(odd, "is named as an image but is not a file: remove it"))
        return [path for path in named if path not in odd]

    parts = [name for name in ("train", "test", "val") if os.path.isdir(folder / name)]
    if "test" in parts and "val" in parts:
        parts.remove("val")
    files = {
        part: {label.name: images(label) for label in below(folder / part) if os.path.isdir(label)}
        for part in parts or [""]
    }
    return files, faults


@contextmanager
def decoders() -> Iterator[ThreadPoolExecutor]:
    """Threads for `decode`. A picture with too many pixels is an error in this context, not a warning."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, cores())) as pool:
        warnings.simplefilter("ignore", UserWarning)  # of odd tags, with paths of Pillow's own
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield pool


def decode(source: Path | BinaryIO, size: int, name: str | None = None) -> np.ndarray:
    """uint8 [size, size, 3], RGB: upright, on white, shorter side scaled to `size`, centre crop.

    `name` stands in errors for a source without a path. UsageError if it cannot be decoded. Call it under `decoders`,
    because warning filters are not per thread.
    """
    where = printable(name or source)
    try:
        with Image.open(source, formats=FORMATS) as image:
            return fitted(image, size, where)
    except UsageError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{where}: too many pixels to be decoded safely: make it smaller") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UsageError(f"{where}: not an image that can be read, damaged or cut short: replace it") from error


def fitted(image: Image.Image, size: int, where: str) -> np.ndarray:
    """What `decode` makes of a picture that is open. UsageError, which names `where`, if it has too many bits."""
    if image.mode.startswith(("I", "F")):
        raise UsageError(f"{where}: has more than 8 bits a channel: convert it to 8 bits")
    upright = _upright(image)
    if upright.mode.endswith(("A", "a")) or "transparency" in upright.info:
        # Without this the colour that the file hides under transparent pixels would be seen.
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return np.asarray(ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BILINEAR))


#: The orientation of EXIF -> what turns the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says. Pillow's own way writes the tags again, and fails at odd ones."""
    image.load()  # Pillow turns a TIFF itself here
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # tags that cannot be read say nothing
        turn = None
    return image if turn is None else image.transpose(turn)
