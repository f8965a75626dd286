"""The networks: students, teachers, and their deploy forms.

Invariant: importing this package imports no torch. Building a network does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from ghostcli.zoo.names import KNOWN, Spec, canonical, is_ghost, parse

if TYPE_CHECKING:
    from torch import nn

#: Name -> the module that defines it, which imports torch.
_HOME = {
    "build_shapes": "count",
    "count_macs": "count",
    "count_parameters": "count",
    "deploy": "fold",
    "init_kaiming": "init",
    "laid_out": "layout",
    "kept_bytes": "memory",
    "recompute": "memory",
    "recomputing": "memory",
}
__all__ = ["KNOWN", "Spec", "build", "canonical", "is_ghost", "parse", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def build(
    name: str,
    classes: int = 10,
    *,
    branches: Literal["plain", "folded"] = "folded",
    pretrained: bool = False,
    source: str | None = None,
) -> nn.Module:
    """The network of that name on the CPU in float32, in training mode, with its `Spec` as `.spec`.

    Torch's global generator draws its weights by the network's own rule (for the students' rule see `init_kaiming`).
    `branches` is how a Ghost network trains its sums of branches. `pretrained` requests ImageNet weights for networks
    that work at ImageNet's size. `source`: sha256 of the source of a user's own network, which is used also if the file
    has changed since (see `own.copy_of`); None: the file as it is. ValueError for a trained network (`run/ID`):
    it is built from its record.
    """
    parsed = parse(name)
    if parsed.family in ("timm", "teacher"):
        from ghostcli.zoo import teachers

        make = teachers.build_timm if parsed.family == "timm" else teachers.build_teacher
        return make(parsed.canonical, classes, pretrained)
    if parsed.family == "py":
        from ghostcli.zoo import own

        return own.build(parsed.canonical, classes, source and own.copy_of(parsed.canonical, source))
    if parsed.width is None:
        raise ValueError(f"{name} is a run: build its record's student, then load its weights")
    from ghostcli.zoo.ghost import ROWS, GhostNet

    model = GhostNet(ROWS[parsed.family], parsed.width, classes, mode=branches)
    model.spec = Spec(parsed.canonical, classes)
    return model
