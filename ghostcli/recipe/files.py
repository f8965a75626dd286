"""Where recipes lie and how their text is had.

Invariant: a name leads only into the shipped recipes, and `extends` only to a shipped recipe or a file in the
folder of the recipe that was asked for (or below it).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ghostcli
from ghostcli.errors import UsageError, printable
from ghostcli.recipe import keys
from ghostcli.recipe.errors import shorten

#: No recipe is longer, and none has a longer line: tomllib's time is quadratic in the length of a dotted key.
MOST_BYTES, MOST_COLUMNS = 1 << 16, 2000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?", re.ASCII)


class Unreadable(Exception):
    """Text that is not TOML or not JSON, and the line where that shows (None: unknown)."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


@dataclass(frozen=True)
class Source:
    """A recipe file: what messages call it, and the folder its `extends` may name files of."""

    path: Path
    name: str
    label: str
    fence: Path


def folder() -> Path:
    """The shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(ghostcli.__file__).resolve().parent
    for place in (package / "_recipes", package.parent / "recipes"):
        if place.is_dir():
            return place
    raise UsageError(f"{printable(str(package))}: the shipped recipes are missing; install ghostcli again")


def names() -> tuple[str, ...]:
    """Every shipped recipe: a family's base by the family alone, before its variants."""
    files = sorted(folder().glob("*/*.toml"), key=lambda file: (file.parent.name, file.stem != "base", file.stem))
    return tuple(_name(file) for file in files)


def _name(file: Path) -> str:
    return file.parent.name if file.stem == "base" else f"{file.parent.name}/{file.stem}"


def find(asked: str) -> Source:
    """The recipe that a person calls `asked`: a shipped one's name, or a .toml (or a run's .json) file."""
    if is_file_name(asked):
        path = _regular(Path(asked), asked)
        return Source(path, path.name, asked, path.parent.resolve())
    return _shipped(asked)


def find_parent(asked: str, child: Source) -> Source:
    """The recipe that `child` extends: by name, or by a file's path relative to it."""
    if not is_file_name(asked):
        return _shipped(asked)
    label = os.path.normpath(os.path.join(os.path.dirname(child.label), asked))
    path = child.path.parent / asked
    inside = "\0" not in asked and Path(os.path.realpath(path)).is_relative_to(child.fence)
    if os.path.isabs(asked) or not inside:
        raise UsageError(f"{_told(asked)}: leads out of the recipe's folder; name a recipe or a file beside it")
    return Source(_regular(path, asked), path.name, label, child.fence)


def is_file_name(asked: str) -> bool:
    return asked.lower().endswith((".toml", ".json"))


def _shipped(asked: str) -> Source:
    root = folder()
    if _NAME.fullmatch(asked):
        family, _, variant = asked.partition("/")
        file = root / family / f"{variant or 'base'}.toml"
        if file.is_file() and file.resolve().is_relative_to(root.resolve()):
            label = f"recipes/{family}/{file.name}"
            return Source(file, _name(file), label, root.resolve())
    raise UsageError(f"{_told(asked)}: no such recipe{_nearest(asked)}; a file of your own is named with its .toml")


def _nearest(asked: str) -> str:
    known = names()
    near = get_close_matches(asked[:60].lower(), known, n=2)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(known)}"


def _regular(path: Path, asked: str) -> Path:
    """`path`, or UsageError where it is no regular file that could be read."""
    try:
        if path.is_file():
            return path
        if path.is_dir():
            text = "is a folder; name the recipe file in it"
        elif path.exists():
            text = "is no regular file; name a .toml file"
        else:
            here = [entry.name for entry in os.scandir(path.parent) if is_file_name(entry.name)]
            near = get_close_matches(path.name, here, n=2) + get_close_matches(
                asked.removesuffix(".toml"), names(), n=1
            )
            text = "no such file" + (f"; did you mean {' or '.join(near)}?" if near else "")
    except FileNotFoundError:
        text = "no such file: its folder does not exist"
    except (OSError, ValueError) as error:
        text = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise UsageError(f"{_told(asked)}: {text}")


def _told(asked: str) -> str:
    return printable(shorten(asked, 200)) or '""'


def read(source: Source) -> str:
    """The file's text. Unreadable where it is too long, not UTF-8, or the system refuses."""
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
    """The document's tree. Unreadable, with the line, where the text is not TOML or not JSON."""
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
