"""The names of networks: what a user can type, and the canonical form of each.

Invariant: no torch here, and `canonical(canonical(name)) == canonical(name)`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from ghostcli.errors import UsageError, nearest

Family = Literal["gns", "gnd", "teacher", "timm", "trained", "py"]

#: The rows of the paper's Table I, in its order. `gns` and `gnd` take any other positive width too.
KNOWN: tuple[str, ...] = (
    "gns:1.0",
    "gns:1.3",
    "gns:1.6",
    "gns:1.9",
    "gns:2.2",
    "gns:2.8",
    "gns:3.4",
    "gnd:1.0",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg13",
    "inceptionv3",
    "densenet161",
    "efficientnetv2",
)
_GHOSTS = ("gns", "gnd")
#: Beginning of a name -> (its family, an example).
_FOLDERS: dict[str, tuple[Family, str]] = {
    "timm/": ("timm", "timm/resnet10t"),
    "run/": ("trained", "run/gns-1.0-plain-1a2b3c4d/s0"),
    "pretrained/": ("trained", "pretrained/gns-1.0"),
}
#: The end of a run's id.
_RUN = re.compile(r"([^/]+-[0-9a-f]{8}(/s\d+)?)/?$")
_TEACHERS = tuple(name for name in KNOWN if ":" not in name)


@dataclass(frozen=True)
class ModelName:
    """A parsed name. `width` is None, except for `gns` and `gnd`."""

    canonical: str
    family: Family
    width: float | None = None


@dataclass(frozen=True)
class Spec:
    """The description of a built network, at `model.spec`.

    `input_size`: side in pixels to which the module enlarges its input (None: no enlargement). `mean`, `std`: its own
    normalisation (None: that of the data set). `note`: a sentence for the run record. `pretrained`: whether it starts
    from ImageNet weights. `source`: sha256 of the file of a user's own network.
    """

    name: str
    classes: int
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    note: str | None = None
    pretrained: bool = False
    source: str | None = None


def parse(name: str) -> ModelName:
    """Parse `name`. UsageError with the nearest names if it is unknown."""
    name = name.strip()
    for prefix, (family, example) in _FOLDERS.items():
        if name.startswith(prefix):
            if name == prefix:
                raise UsageError(f"model '{name}': nothing follows the slash; type for example {example}.")
            return ModelName(name, family)
    if is_own(name):
        return _own(name)
    head, colon, width = name.partition(":")
    if head in _GHOSTS:
        return _ghost(name, head, width if colon else "1.0")
    if name in _TEACHERS:
        return ModelName(name, "teacher")
    if run := _RUN.search(name):
        raise UsageError(f"model '{name}' looks like a run's id; type run/{run[1]}")
    hint = nearest(name.lower(), (*_GHOSTS, *KNOWN))
    raise UsageError(
        f"model '{name}' is unknown{hint} (or gns:WIDTH, gnd:WIDTH, timm/NAME, py:FILE.py:FUNCTION, run/ID, "
        "pretrained/NAME)"
    )


def _own(name: str) -> ModelName:
    where, function = parts_of_own(name)
    module = all(part.isidentifier() for part in where.split("."))
    if not function.isidentifier() or not (where.endswith(".py") or module):
        raise UsageError(f"model '{name}': type py:path/to/file.py:function or py:package.module:function.")
    return ModelName(f"py:{PurePath(where) if where.endswith('.py') else where}:{function}", "py")


def _ghost(name: str, family: Literal["gns", "gnd"], text: str) -> ModelName:
    try:
        width = float(text.replace("_", "?"))  # float() would take 1_3 for 13
    except ValueError:
        width = math.nan
    if math.isnan(width):
        raise UsageError(
            f"model '{name}': the width '{text}' is not a number; type a positive one, such as {family}:1.3."
        )
    if width <= 0 or math.isinf(width):
        raise UsageError(f"model '{name}': the width must be positive and finite; type for example {family}:1.3.")
    return ModelName(f"{family}:{width!r}", family, width)


def canonical(name: str) -> str:
    """`gns` -> `gns:1.0`, `gns:1.30` -> `gns:1.3`. Most other names do not change."""
    return parse(name).canonical


def slug(name: str) -> str:
    """A canonical name as part of a file name: `gns:1.3` -> `gns-1.3`, `timm/x` -> `timm-x`, without the + of 1e+20.

    For a user's own network: file name and function name, `py:a/net.py:tiny` -> `py-net-tiny`.
    """
    if is_own(name):
        where, function = parts_of_own(name)
        stem = PurePath(where).stem if where.endswith(".py") else where.rpartition(".")[2]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"py-{stem[:24]}-{function[:24]}")
    return name.replace(":", "-").replace("/", "-").replace("e+", "e")


def is_own(name: str) -> bool:
    """Whether `name` is a user's own network."""
    return name.startswith("py:")


def parts_of_own(name: str) -> tuple[str, str]:
    """(file or module, function) of a user's own network."""
    where, _, function = name.removeprefix("py:").rpartition(":")
    return where, function


def is_ghost(name: str) -> bool:
    """Whether `name` is a GhostNetV3-Small or its deeper parent, at any width."""
    return parse(name).family in _GHOSTS


def has_pretrained(name: str) -> bool:
    """Whether ImageNet weights exist for `name`."""
    return name == "efficientnetv2" or name.startswith("timm/")
