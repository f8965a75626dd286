"""Reads and writes final weights.

Invariant: a weights file contains its model, classes, form and normalisation. A file that does not match is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ghostcli import zoo
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.records import tensorfile
from ghostcli.zoo import names, own
from ghostcli.zoo.evaluate import Norm


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, in eval mode, and the normalisation it was trained with."""

    model: nn.Module
    name: str
    classes: int
    norm: Norm
    sha256: str


def encode(model: nn.Module, norm: Norm, form: str = "train") -> bytes:
    """The bytes of model.safetensors, with readable tensor names and one checksum over all."""
    spec = model.spec
    meta = {
        "model": spec.name,
        "classes": spec.classes,
        "form": form,
        "mean": list(norm[0]),
        "std": list(norm[1]),
        **({"source": spec.source} if spec.source else {}),
    }
    return tensorfile.encode(dict(model.state_dict()), meta)


def last_layer(name: str, classes: int, source: str | None = None) -> set[str]:
    """The tensors of a network whose shape follows the number of classes. `source`: as in `zoo.build`."""
    here, other = (zoo.build(name, n, source=source).state_dict() for n in (classes, classes + 1))
    return {key for key, tensor in here.items() if other[key].shape != tensor.shape}


def begin_from(model: nn.Module, start: Loaded) -> None:
    """Give `model` the weights of a trained network of the same name, all but its last layer's.

    It also keeps that network's normalisation, so that its first layers see what they were trained on.
    """
    fresh = last_layer(start.name, model.spec.classes, model.spec.source)
    mine, theirs = model.state_dict(), start.model.state_dict()
    model.load_state_dict({key: mine[key] if key in fresh else theirs[key] for key in mine})
    model.spec = replace(model.spec, mean=start.norm[0], std=start.norm[1])


def load(
    path: Path, device: torch.device | str = "cpu", classes: int | None = None, model: str | None = None
) -> Loaded:
    """Build the network of a weights file and load its weights.

    Raises GhostError, naming the file, if it is damaged or foreign, or has another architecture than `model` or another
    class count than `classes`.
    """
    where = printable(path)
    tensors, meta = tensorfile.read(path)
    try:
        name, count, form = str(meta["model"]), int(meta["classes"]), meta["form"]
        norm = (tuple(float(v) for v in meta["mean"]), tuple(float(v) for v in meta["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise GhostError(f"{where}: is not the weights of a network ({error}); refused") from error
    if model is not None and name != model:
        raise GhostError(f"{where}: holds {printable(name)}, not {model}; refused")
    if classes is not None and count != classes:
        raise GhostError(f"{where}: was trained for {count} classes, not {classes}; name a run on the same data")
    own_network = names.is_own(name)
    source = str(meta.get("source")) if own_network else None
    if own_network:
        own.require_trusted(name, source)
        own.copy_of(name, source)
    try:
        with torch.device("meta"):  # needs no memory, so a forged name or class count cannot exhaust it
            parameters = 0 if own_network else zoo.count_parameters(zoo.build(name, count))
        if parameters > 4 * sum(tensor.numel() for tensor in tensors.values()):
            raise ValueError(f"{parameters} parameters")
        network = zoo.build(name, count, source=source)
        network = zoo.deploy(network) if form == "deploy" else network
        network.load_state_dict(tensors)
    except UsageError as error:  # a package that is missing, a fault in the user's own code
        raise GhostError(f"{where}: refused: {printable(error)}") from error
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise GhostError(f"{where}: its tensors are not those of {printable(name)}; refused") from error
    sha256 = tensorfile.checksum(tensors, meta)
    network = zoo.laid_out(network, device).eval()
    return Loaded(network, name, count, norm, sha256)  # type: ignore[arg-type]
