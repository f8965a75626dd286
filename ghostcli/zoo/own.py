"""A user's own networks: `py:path/to/file.py:function` and `py:package.module:function`.

Invariant: the user's code is imported only when a network is built. Code that only a record names is not run: the user
must have named this source on a command line before (`trust`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ghostcli.errors import UsageError, nearest, printable
from ghostcli.zoo.names import Spec, parts_of_own

if TYPE_CHECKING:
    from torch import nn


def cache_folder() -> Path:
    """`GHOST_CACHE`, else `ghost` in the user's cache folder."""
    own = os.environ.get("GHOST_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ghost"


def source(name: str) -> Path:
    """The file that defines a network. Imports nothing. UsageError if there is no such file."""
    where, _ = parts_of_own(name)
    if where.endswith(".py"):
        file = Path(where).expanduser()
        if not file.is_file():
            raise wrong(name, f"there is no file {where}; type py:PATH.py:FUNCTION with the path of your file")
        return file
    _importable(Path.cwd())
    paths: Any = None
    parts = where.split(".")
    for depth in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:depth]), paths)
        if spec is None:
            missing = ".".join(parts[:depth])
            raise wrong(name, f"there is no module {missing} here or installed; type its name, or py:PATH.py:FUNCTION")
        paths = spec.submodule_search_locations
    if not spec.origin or not spec.origin.endswith(".py"):
        raise wrong(name, f"{where} has no Python source; name the module that defines the function")
    return Path(spec.origin)


def checksum(name: str) -> str:
    """sha256 of the source file. Files that it imports are not included."""
    try:
        return hashlib.sha256(source(name).read_bytes()).hexdigest()
    except OSError as error:
        raise wrong(name, f"the file cannot be read ({error.strerror})") from error


def trust(name: str) -> None:
    """Remember that the user named this source on a command line, so its runs may load it again."""
    digest, known = checksum(name), cache_folder() / "own-networks"
    _TRUSTED.add(digest)
    try:
        if not known.exists() or digest not in known.read_text().split():
            known.parent.mkdir(parents=True, exist_ok=True)
            with known.open("a") as file:
                file.write(digest + "\n")
    except OSError:
        pass  # then the user names the network with each command


def require_trusted(name: str, recorded: str | None) -> None:
    """UsageError if the source has changed since training, or if this user never named it."""
    digest, known = checksum(name), cache_folder() / "own-networks"
    if digest != recorded:
        raise wrong(name, "the source has changed since these weights were trained; put it back, or train again")
    if digest not in _TRUSTED and not (known.is_file() and digest in known.read_text().split()):
        raise wrong(name, f"only a record names this code; to run it, name it yourself once: ghost bench {name}")


def build(name: str, classes: int) -> nn.Module:
    """Call the user's function with the number of classes. UsageError for any error in it."""
    from torch import nn

    _, function_name = parts_of_own(name)
    module = _module(name)
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise wrong(name, f"the file has no function {function_name}{nearest(function_name, there) if there else ''}")
    try:
        model = function(classes)
    except Exception as error:
        raise _usage_error(name, error, f"{function_name}({classes})") from error
    if not isinstance(model, nn.Module):
        raise wrong(name, f"{function_name}({classes}) returned {type(model).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise wrong(name, "the network has no parameter to train")
    if "spec" in dir(model) and not isinstance(model.spec, Spec):
        raise wrong(name, "the network has an attribute `spec`, which ghost uses for its own notes; rename it")
    model.spec = Spec(name, classes, source=checksum(name))
    return model


def check(name: str, classes: int, side: int) -> nn.Module:
    """The network, after it was run on two images of `side` pixels, in train mode and in eval mode.

    UsageError if it raises, or if its result is not logits [2, classes].
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = build(name, classes)
        for mode in (True, False):
            try:
                logits = model.train(mode)(torch.zeros(2, 3, side, side))
            except Exception as error:
                raise _usage_error(name, error, f"forward, on images [2, 3, {side}, {side}],") from error
            if not isinstance(logits, torch.Tensor):
                raise wrong(name, f"forward returned {type(logits).__name__}; return logits [N, {classes}] alone")
            if tuple(logits.shape) != (2, classes):
                shape = list(logits.shape)
                raise wrong(name, f"forward returned shape {shape} for 2 images; logits must be [2, {classes}]")
    return model


def wrong(name: str, problem: str) -> UsageError:
    return UsageError(printable(f"your own network {name}: {problem}"))


_TRUSTED: set[str] = set()


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _module(name: str) -> ModuleType:
    file = source(name)
    where, _ = parts_of_own(name)
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        key = f"ghost_own_{checksum(name)[:16]}"
        if key in sys.modules:
            return sys.modules[key]
        _importable(file.resolve().parent)
        spec = importlib.util.spec_from_file_location(key, file)
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
        return module
    except (Exception, SystemExit) as error:
        raise _usage_error(name, error, "importing it") from error


def _usage_error(name: str, error: BaseException, doing: str) -> UsageError:
    file = str(source(name))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
    line = f"{Path(file).name}:{error.lineno}: " if isinstance(error, SyntaxError) else ""
    line = f"{Path(file).name}:{lines[-1]}: " if lines else line
    text = str(error).partition("\n")[0]
    return wrong(name, f"{doing} raised {type(error).__name__}: {line}{text}")
