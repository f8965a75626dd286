"""Collects the mistakes in a recipe, to report all of them at once.

Invariant: a line is `place: key: what is wrong`. It is printable for any file content. The number of lines is limited.
"""

from __future__ import annotations

from typing import Any

from ghostcli.errors import UsageError, meant, printable, similar
from ghostcli.recipe import keys

#: The maximum number of mistakes in a message.
SHOWN = 20


class Problems:
    """Mistakes in the order found. `raise_any` reports them sorted by file and line."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, str], None] = {}
        self._more = 0

    @property
    def full(self) -> bool:
        return len(self._found) >= SHOWN

    def add(self, file: str, line: int | None, text: str) -> None:
        """`file` is a file's label or a flag. `line` counts from 1; None if unknown."""
        if self.full:
            self._more += 1
        else:
            self._found[(file, line or 0, text)] = None

    def raise_any(self) -> None:
        """UsageError with one line per mistake, if there are any."""
        if not self._found:
            return
        files = list(dict.fromkeys(file for file, _, _ in self._found))
        ordered = sorted(self._found, key=lambda mistake: (files.index(mistake[0]), mistake[1]))
        lines = [place(file, line) + ": " + text for file, line, text in ordered]
        if self._more:
            lines.append(f"... and {self._more} more")
        raise UsageError("\n".join(map(printable, lines)))


def place(file: str, line: int | None) -> str:
    return f"{file}:{line}" if line else file


def unknown_key(section: str, key: str, is_table: bool) -> str:
    """One line about a key that does not exist in [section]. `section` is empty for keys above all sections."""
    prefix = f"{section}." if section else ""
    wrong = f"{prefix}{shown_key(key)}: unknown {'section' if is_table and not section else 'key'}"
    if moved := [path for path in keys.PATHS if path.rpartition(".")[2] == key]:
        return wrong + meant(moved)
    known = keys.FIELDS[section] if section else (*keys.TOP, *keys.MODELS, "extends")
    if near := similar(key, known):
        return wrong + meant([prefix + hit for hit in near])
    if near := similar(prefix + key, keys.PATHS):
        return wrong + meant(near[:1])
    return f"{wrong}; known here: {', '.join(known)}"


def shown_key(key: str) -> str:
    """A key in TOML's spelling. A very long key is cut."""
    bare = key.isascii() and key.replace("-", "_").isidentifier()
    return shorten(key) if bare else f'"{shorten(key)}"'


def shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."


def shown_value(value: Any) -> str:
    """A value as the user wrote it, or its kind if it has no short form."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{shorten(value)}"'
        case dict():
            return "a table"
        case list():
            return "an array"
        case int() if abs(value) >= 10**40:
            return "a number of more than 40 digits"
        case _:
            return shorten(str(value))
