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
from PIL import Image, ImageOps

from ghostcli.errors import UsageError, printable

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

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


@contextmanager
def decoders() -> Iterator[ThreadPoolExecutor]:
    """Threads for `decode`. A picture with too many pixels is an error in this context, not a warning."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
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
    upright = ImageOps.exif_transpose(image)
    if upright.mode.endswith(("A", "a")) or "transparency" in upright.info:
        # Without this the colour that the file hides under transparent pixels would be seen.
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return np.asarray(ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
