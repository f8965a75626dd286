"""A user's own networks: `py:path/to/file.py:function` and `py:package.module:function`.

Invariant: the user's code is imported only when a network is built. Code that only a record names is not run: the user
must have named this source on a command line before (`trust`). A trained network is built from the source that it was
trained with.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from contextlib import redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ghostcli.errors import GhostError, UsageError, nearest, printable
from ghostcli.records.storage import write_bytes
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
    return hashlib.sha256(_read(name)).hexdigest()


def _read(name: str) -> bytes:
    try:
        return source(name).read_bytes()
    except OSError as error:
        raise wrong(name, f"the file cannot be read ({error.strerror})") from error


def trust(name: str) -> None:
    """Keep a copy of this source, which the user named on a command line. So its runs may load it again.

    They may also if the file changes: a run's network is built from the source that it was trained with.
    """
    content = _read(name)
    digest = hashlib.sha256(content).hexdigest()
    _TRUSTED.add(digest)
    try:
        if not _kept(digest):
            _copy(digest).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(_copy(digest), content)
    except (OSError, GhostError):
        pass  # then the user names the network with each command


def _copy(digest: str) -> Path:
    """Where the copy of a source is kept."""
    return cache_folder() / "sources" / f"{digest}.py"


def copy_of(name: str, digest: str) -> Path | None:
    """The copy of the source with this sha256, where the user's file has changed since; None where it has not.

    UsageError if it has changed and there is no copy.
    """
    try:
        if checksum(name) == digest:
            return None
    except UsageError:
        if not _kept(digest):
            raise
    if not _kept(digest):
        raise wrong(name, "the source has changed since, and no copy of it is here; put it back, or train anew")
    return _copy(digest)


def require_trusted(name: str, digest: str) -> None:
    """UsageError if this user never named the source that a record names."""
    if digest not in _TRUSTED and not _kept(digest):
        copy_of(name, digest)  # a source that has changed is the first thing to say
        raise wrong(name, f"only a record names this code; to run it, name it yourself once: ghost bench {name}")


def _kept(digest: str) -> bool:
    """Whether there is a whole copy of the source."""
    try:
        return hashlib.sha256(_copy(digest).read_bytes()).hexdigest() == digest
    except (OSError, ValueError):  # a record may hold anything, and \0 is in no file's name
        return False


def build(name: str, classes: int, source_file: Path | None = None) -> nn.Module:
    """Call the user's function with the number of classes. UsageError for any error in it.

    `source_file`: a copy of the source, to be used in place of the file that the name says (see `copy_of`).
    """
    from torch import nn

    _, function_name = parts_of_own(name)
    file = source_file or source(name)
    module = _module(name, file, is_copy=source_file is not None)
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise wrong(name, f"the file has no function {function_name}{nearest(function_name, there) if there else ''}")
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results
            model = function(classes)
    except Exception as error:
        raise _usage_error(name, file, error, f"{function_name}({classes})") from error
    if not isinstance(model, nn.Module):
        raise wrong(name, f"{function_name}({classes}) returned {type(model).__name__}, not a torch.nn.Module")
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise wrong(
            name, "the network has lazy layers, whose sizes are unknown before training; give their input sizes"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise wrong(name, "the network has no parameter to train")
    if "spec" in dir(model) and not isinstance(model.spec, Spec):
        raise wrong(name, "the network has an attribute `spec`, which ghost uses for its own notes; rename it")
    model.spec = Spec(name, classes, source=hashlib.sha256(file.read_bytes()).hexdigest())
    model.register_forward_pre_hook(_contiguous)
    return model


def _contiguous(model: nn.Module, images: tuple[Any, ...]) -> tuple[Any, ...]:
    """The images in PyTorch's usual layout: a user's code may reshape its maps with `view`, which needs it."""
    return tuple(each.contiguous() if hasattr(each, "contiguous") else each for each in images)


def check(name: str, classes: int, side: int, source_file: Path | None = None) -> nn.Module:
    """The network, after it was run on two images of `side` pixels, in train mode and in eval mode.

    UsageError if it raises, or if its result is not logits [2, classes].
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = build(name, classes, source_file)
        for mode in (True, False):
            try:
                with redirect_stdout(sys.stderr):
                    logits = model.train(mode)(torch.zeros(2, 3, side, side))
            except Exception as error:
                raise _usage_error(
                    name, source_file or source(name), error, f"forward, on images [2, 3, {side}, {side}],"
                ) from error
            if not isinstance(logits, torch.Tensor):
                raise wrong(name, f"forward returned {type(logits).__name__}; return logits [N, {classes}] alone")
            if tuple(logits.shape) != (2, classes):
                shape = list(logits.shape)
                raise wrong(name, f"forward returned shape {shape} for 2 images; logits must be [2, {classes}]")
    return model


def wrong(name: str, problem: str) -> UsageError:
    return UsageError(printable(f"your own network {name}: {problem}"))


_TRUSTED: set[str] = set()
_IMPORTED: dict[str, str] = {}  # module -> sha256 of the source that was imported


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _module(name: str, file: Path, is_copy: bool) -> ModuleType:
    where, _ = parts_of_own(name)
    is_file = where.endswith(".py")
    try:
        if not is_file and not is_copy:
            return _imported(where, hashlib.sha256(file.read_bytes()).hexdigest())
        # A copy of a package's module still belongs to the package, for its relative imports.
        key = f"ghost_own_{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        key = key if is_file else f"{where.rpartition('.')[0]}.{key}".lstrip(".")
        if key in sys.modules:
            return sys.modules[key]
        _importable(Path(where).expanduser().resolve().parent if is_file else Path.cwd())
        spec = importlib.util.spec_from_file_location(key, file)
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        try:
            with redirect_stdout(sys.stderr):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[key]
            raise
        return module
    except (Exception, SystemExit) as error:
        raise _usage_error(name, file, error, "importing it") from error


def _imported(where: str, digest: str) -> ModuleType:
    """The module of this name, as its source is now: in a notebook it may have been imported before a change."""
    with redirect_stdout(sys.stderr):
        before = where in sys.modules
        module = importlib.import_module(where)
        if before and _IMPORTED.get(where) != digest:
            module = importlib.reload(module)
    _IMPORTED[where] = digest
    return module


def _usage_error(name: str, file: Path, error: BaseException, doing: str) -> UsageError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(str(file))]
    line = f"{file.name}:{error.lineno}: " if isinstance(error, SyntaxError) else ""
    line = f"{file.name}:{lines[-1]}: " if lines else line
    text = str(error).partition("\n")[0]
    return wrong(name, f"{doing} raised {type(error).__name__}: {line}{text}")
