"""A network as a torch program (`.pt2`): written, and read back without trust.

Invariant: reading a foreign file runs nothing but torch's own operations.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.deploy import about as description
from ghostcli.deploy.about import About
from ghostcli.errors import UsageError, printable
from ghostcli.zoo.evaluate import Norm

if TYPE_CHECKING:
    from ghostcli.zoo.weights import Loaded

#: The only expressions that a program of ours holds: the number of images, whole numbers, and what is computed of them
#: in at most three steps. torch evaluates these strings, so no other is let through, and no long one: the minimum of a
#: hundred symbols takes it seconds.
TERM = r"(?:Symbol\('[a-z]\d+', positive=True, integer=True\)|Integer\(-?\d+\))"
EXPRESSION = TERM
for _ in range(3):
    EXPRESSION = rf"(?:{TERM}|(?:Add|Mul|Min|Max)\({EXPRESSION}(?:, {EXPRESSION})*\))"
SYMBOL = re.compile(rf"(?=.{{0,300}}$){EXPRESSION}")
#: The only operations: torch's own, and those of whole numbers.
OPERATION = re.compile(r"torch\.ops\.aten\.[a-z0-9_]+\.[A-Za-z0-9_]+|_operator\.(?:add|sub|mul|floordiv|getitem)")
MOST = 1 << 30  # bytes that an archive may unpack to


class Program(nn.Module):
    """A deployed network behind its own normalisation: float32 [N, 3, H, W] in 0..1 to logits [N, classes]."""

    def __init__(self, net: nn.Module, norm: Norm) -> None:
        super().__init__()
        self.net = net
        for name, value in zip(("mean", "std"), norm, strict=True):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean) / self.std
        return self.net(x.contiguous(memory_format=torch.channels_last))


def deployed(network: Loaded) -> Program:
    """A trained network in its deploy form."""
    return Program(zoo.laid_out(zoo.deploy(network.model)), network.norm).eval()


def encode(program: nn.Module, about: About) -> bytes:
    """A `torch.export` program for any batch size, with what its user must know as the extra file `ghost.json`."""
    example = torch.rand(2, 3, about.size, about.size)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(program, (example,), dynamic_shapes=({0: batch},))
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights in channels_last, which it keeps as they are
        torch.export.save(exported, content, extra_files={description.ENTRY: description.encode(about)})
    return content.getvalue()


def decode(content: bytes, file: str) -> tuple[nn.Module, About]:
    """The program in `content`. UsageError naming the file where it is none, or not one that is safe to load."""
    where = printable(file)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if sum(entry.file_size for entry in archive.infolist()) > MOST:
                raise UsageError(f"{where}: would unpack to more than {MOST:,} bytes; refused")
            if f"extra/{description.ENTRY}" not in entries:
                raise UsageError(f"{where}: is no program that ghost export wrote; name one that is")
            about = description.decode(archive.read(entries[f"extra/{description.ENTRY}"]), file)
            _refuse_foreign(archive, entries, where)
        with _no_pickle(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(content)).module(), about
    except UsageError:
        raise
    except Exception as error:  # torch's reader raises nearly anything on a damaged file
        raise UsageError(f"{where}: is no whole torch program ({type(error).__name__}); export it again") from error


def _refuse_foreign(archive: zipfile.ZipFile, entries: dict[str, str], where: str) -> None:
    for entry, name in entries.items():
        if not entry.endswith(".json") or entry.startswith("extra/"):
            continue
        text = archive.read(name).decode()
        expressions = re.findall(r'"expr_str"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
        operations = re.findall(r'"target"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
        if (
            re.search(r'"use_pickle"\s*:\s*true', text)
            or not all(SYMBOL.fullmatch(expression) for expression in expressions)
            or not all(OPERATION.fullmatch(operation) for operation in operations)
            or "\\u" in text  # a key could be spelled so
        ):
            raise UsageError(f"{where}: holds more than torch's own operations on plain weights; refused")


@contextmanager
def _no_pickle() -> Iterator[None]:
    """While this lasts, torch.load takes plain tensors alone, whatever its caller asks for."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before
