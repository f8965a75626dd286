"""A picture file as the pixels that a network is trained on and asked about.

Invariant: training and prediction decode a picture by this one function, and only by decoders that are safe. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ghostcli.errors import UsageError, printable

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

#: Pillow's plain decoders: without this list a file named .png could start Ghostscript.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "GIF", "TIFF", "PPM")

#: What `decode` does, in words, for whoever deploys a network elsewhere.
STEPS = (
    "turn by the EXIF orientation; convert to RGB; scale the shorter side to the size (bilinear, antialiased); "
    "cut about the centre"
)


def decode(source: Path | BinaryIO, size: int, name: str | None = None) -> np.ndarray:
    """uint8 [size, size, 3] in red, green, blue: upright, shorter side scaled to `size`, cut about the centre.

    `name` is what an error calls a source that has no path. UsageError where it cannot be decoded. The caller turns
    Pillow's DecompressionBombWarning into an error (warnings are no thread's own).
    """
    where = printable(name or source)
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise UsageError(f"{where}: has more than 8 bits a channel: convert it to 8 bits")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR))
    except UsageError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{where}: too many pixels to be decoded safely: make it smaller") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UsageError(f"{where}: not an image that can be read, damaged or cut short: replace it") from error
