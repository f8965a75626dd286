"""What an exported file says of itself: one JSON value in every format. No torch.

Invariant: whoever deploys the file finds in it all that the pixels, the classes and the run need.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated

from pydantic import Field, TypeAdapter

from ghostcli.data.pictures import STEPS
from ghostcli.errors import UsageError, printable

KEY = "ghost"  # the metadata entry of an ONNX file
ENTRY = "ghost.json"  # the extra file of a .pt2 program

#: What is known of the right to use each data set; a folder's is its owner's affair.
LICENCES = {
    "cifar10": "CIFAR-10: its authors state no licence; cite Krizhevsky 2009",
    "cifar100": "CIFAR-100: its authors state no licence; cite Krizhevsky 2009",
    "digits": "Optical Recognition of Handwritten Digits (UCI), CC BY 4.0",
}


@dataclass(frozen=True)
class About:
    """`accuracy` in percent, on the run's test images; `data` the name of the data set; `size` in pixels."""

    run: str
    model: str
    data: str
    data_licence: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    size: Annotated[int, Field(ge=8, le=4096)]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float
    input: str
    output: str
    preprocessing: str = STEPS


def describe(
    run: str, model: str, data: str, classes: tuple[str, ...], size: int, norm: tuple, accuracy: float
) -> About:
    """The description of an exported network. `norm` is (mean, std) a channel, which the file applies itself."""
    licence = LICENCES.get(data, "of the images in the owner's folder: unknown to ghost")
    mean, std = (tuple(values) for values in norm)
    pixels = f"float32 [N, 3, {size}, {size}], red, green, blue in 0..1; the file normalises them itself"
    return About(run, model, data, licence, classes, size, mean, std, accuracy, pixels, f"logits [N, {len(classes)}]")


def encode(about: About) -> str:
    return json.dumps(asdict(about), indent=1, ensure_ascii=False)


@cache
def _reader() -> TypeAdapter[About]:
    return TypeAdapter(About)


def decode(text: str | bytes, file: str) -> About:
    """UsageError naming the file where the text is no such description."""
    try:
        return _reader().validate_json(text)
    except ValueError as error:
        raise UsageError(
            f"{printable(file)}: says nothing that ghost understands of its classes and its images; name a file that "
            "ghost export wrote"
        ) from error
