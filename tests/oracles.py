"""Reference values that do not come from this code: the authors' tensors and the paper's printed tables."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ghostcli.zoo.branches import RepConv

FOLDER = Path(__file__).with_name("golden")
#: Network of the authors' tensors -> its model name here.
NETWORKS = {"gns-1.0": "gns:1.0", "gns-0.5": "gns:0.5", "gnd-0.5": "gnd:0.5"}


@functools.cache
def golden(network: str) -> dict[str, Tensor]:
    """All tensors of one network, by the names of golden/README.md. The file lies there in parts."""
    parts = sorted(FOLDER.glob(f"{network}.safetensors.part*"))
    return safetensors.torch.load(b"".join(part.read_bytes() for part in parts))


def printed_tables() -> dict[str, list[tuple[str, ...]]]:
    """The paper's tables by name (`I` to `IV`): the cells of each row, without the head."""
    found = {}
    for block in (FOLDER / "printed_tables.tsv").read_text().split("TABLE ")[1:]:
        name, _head, *rows = block.strip().splitlines()
        found[name] = [tuple(row.split("\t")) for row in rows]
    return found


def gradients_by_branch(rep: RepConv) -> dict[str, Tensor]:
    """The gradient of each branch's parameter, by the name that the parameter has in the state dict."""
    gradients = copy.deepcopy(rep)
    for held, parameter in zip(gradients.parameters(), rep.parameters(), strict=True):
        held.data = parameter.grad
    return gradients.named_branches()
