"""Finds and reads recipe files.

Invariant: a name finds shipped recipes only. `extends` finds a shipped recipe, or a file in the folder of the
requested recipe (or below it).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ghostcli
from ghostcli.errors import UsageError, meant, nearest, printable, similar
from ghostcli.recipe import keys
from ghostcli.recipe.errors import shorten

#: Limits of a recipe file. tomllib's time is quadratic in the length of a dotted key.
MOST_BYTES, MOST_COLUMNS = 1 << 16, 2000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?", re.ASCII)


class Unreadable(Exception):
    """Text that is not TOML or JSON, with the line of the error (None: unknown)."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


@dataclass(frozen=True)
class Source:
    """A recipe file. `label`: its name in messages. `fence`: the folder whose files `extends` may name."""

    path: Path
    name: str
    label: str
    fence: Path


def folder() -> Path:
    """The folder of the shipped recipes: in the installed package, or beside it in a checkout."""
    package = Path(ghostcli.__file__).resolve().parent
    for place in (package / "_recipes", package.parent / "recipes"):
        if place.is_dir():
            return place
    raise UsageError(f"{printable(package)}: the shipped recipes are missing; install ghostcli again")


def names() -> tuple[str, ...]:
    """The names of all shipped recipes. A family's base has the family's name and comes before its variants."""
    files = sorted(folder().glob("*/*.toml"), key=lambda file: (file.parent.name, file.stem != "base", file.stem))
    return tuple(_name(file) for file in files)


def _name(file: Path) -> str:
    return file.parent.name if file.stem == "base" else f"{file.parent.name}/{file.stem}"


def find(name: str) -> Source:
    """The recipe with this name: a shipped recipe, a .toml file, or a run's .json file."""
    if is_file_name(name):
        path = _regular(Path(name), name)
        return Source(path, path.name, name, path.parent.resolve())
    return _shipped_source(name)


def find_parent(name: str, child: Source) -> Source:
    """The recipe that `child` extends: a name, or a file path relative to `child`."""
    if not is_file_name(name):
        return _shipped_source(name)
    label = os.path.normpath(os.path.join(os.path.dirname(child.label), name))
    path = child.path.parent / name
    inside = "\0" not in name and Path(os.path.realpath(path)).is_relative_to(child.fence)
    if os.path.isabs(name) or not inside:
        raise UsageError(f"{_quoted(name)}: is outside the recipe's folder; name a recipe or a file beside it")
    return Source(_regular(path, name), path.name, label, child.fence)


def is_file_name(name: str) -> bool:
    return name.lower().endswith((".toml", ".json"))


def _shipped_source(name: str) -> Source:
    root = folder()
    if _NAME.fullmatch(name):
        family, _, variant = name.partition("/")
        file = root / family / f"{variant or 'base'}.toml"
        if file.is_file() and file.resolve().is_relative_to(root.resolve()):
            label = f"recipes/{family}/{file.name}"
            return Source(file, _name(file), label, root.resolve())
    raise UsageError(
        f"{_quoted(name)}: no such recipe{nearest(name, names())}; a file of your own is named with its .toml"
    )


def _regular(path: Path, name: str) -> Path:
    """`path`. UsageError if it is not a readable regular file."""
    try:
        if path.is_file():
            return path
        if path.is_dir():
            text = "is a folder; name the recipe file in it"
        elif path.exists():
            text = "is no regular file; name a .toml file"
        else:
            here = [entry.name for entry in os.scandir(path.parent) if is_file_name(entry.name)]
            near = similar(path.name, here) + similar(name.removesuffix(".toml"), names())[:1]
            text = "no such file" + (meant(near) if near else "")
    except FileNotFoundError:
        text = "no such file: its folder does not exist"
    except (OSError, ValueError) as error:
        text = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise UsageError(f"{_quoted(name)}: {text}")


def _quoted(name: str) -> str:
    return printable(shorten(name, 200)) or '""'


def read(source: Source) -> str:
    """The file's text. Unreadable if it is too long, not UTF-8, or cannot be opened."""
    try:
        with open(source.path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Unreadable(None, f"cannot be read ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise Unreadable(None, "longer than any recipe (64 KiB); name a recipe file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, f"not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8") from error


def parse(text: str, is_json: bool) -> dict[str, Any]:
    """The parsed document. Unreadable, with the line, if the text is not TOML or JSON."""
    try:
        return _parse_json(text) if is_json else _parse_toml(text)
    except RecursionError as error:
        raise Unreadable(None, "nested too deeply for a recipe") from error
    except json.JSONDecodeError as error:
        raise Unreadable(error.lineno, f"not JSON: {error.msg}") from error
    except ValueError as error:  # TOMLDecodeError, or a number too long for Python
        words = str(error)
        at = re.search(r" \(at line (\d+), column (\d+)\)$", words)
        if at is None:
            line = len(text.splitlines()) if words.endswith("(at end of document)") else None
            raise Unreadable(line, f"not {'JSON' if is_json else 'TOML'}: {words}") from error
        raise Unreadable(int(at[1]), f"not TOML: {words[: at.start()]} (column {at[2]})") from error


def _parse_toml(text: str) -> dict[str, Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MOST_COLUMNS:
            raise Unreadable(number, f"a line of {len(line)} characters; no recipe has one longer than {MOST_COLUMNS}")
    tree = tomllib.loads(text)
    if not tree:
        raise Unreadable(None, "is empty; start from ghost recipe copy paper")
    return tree


def _parse_json(text: str) -> dict[str, Any]:
    """A run's recipe.json: the resolved recipe, at top level or under `recipe`."""
    document = json.loads(text)
    if isinstance(document, dict) and isinstance(document.get("recipe"), dict):
        document = document["recipe"]
    if not isinstance(document, dict) or not any(name in document for name in keys.MODELS):
        raise Unreadable(None, "holds no recipe; name a run's recipe.json or a .toml file")
    return document
