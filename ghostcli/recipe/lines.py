"""The line number of each key in a TOML file. tomllib does not provide it.

Precondition: tomllib has accepted the text, so this module does not validate it.
"""

from __future__ import annotations

import re
import tomllib

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:'{0,2})'''  # strings of many lines
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'"""  # strings of one
    r"""|\#[^\n]*|[^\S\n]+|\n|[\[\]{}=,.]|[^\s\[\]{}=,."'\#]+""",
    re.DOTALL,
)

Path = tuple[str, ...]


def key_lines(text: str) -> dict[Path, int]:
    """(section,) and (section, key) -> line from 1, of headers, dotted and quoted keys and inline tables."""
    lines: dict[Path, int] = {}
    line = 1
    table: Path = ()  # the current header
    brackets: list[Path | None] = []  # open brackets in a value: path of an inline table, None for an array
    prefix: Path = ()  # of the current key
    parts: list[str] = []  # its parts so far
    path: Path = ()  # of the current value
    in_value = False
    for match in _TOKEN.finditer(text):
        token = match[0]
        at, line = line, line + token.count("\n")
        if (token.isspace() and token != "\n") or token.startswith("#"):
            continue
        if in_value:
            if token == "{":
                brackets.append(path)
                prefix, in_value = path, False
            elif token == "[":
                brackets.append(None)
            elif token in ("]", "}"):
                brackets.pop()
            elif token == "," and brackets and brackets[-1] is not None:
                prefix, in_value = brackets[-1], False
            elif token == "\n" and not brackets:
                prefix, in_value = table, False
        elif token == "=":
            path, parts, in_value = _record(lines, prefix, parts, at), [], True
        elif token == "}":  # of an empty inline table, or after a last comma
            brackets.pop()
            in_value = True
        elif token == "[":
            prefix = ()
        elif token == "]":
            if parts:
                table = prefix = _record(lines, (), parts, at)
                parts = []
            prefix = table
        elif token not in (".", ",", "\n"):
            parts.append(tomllib.loads(f"key = {token}")["key"] if token[0] in "\"'" else token)
    return lines


def _record(lines: dict[Path, int], prefix: Path, parts: list[str], line: int) -> Path:
    """Record the key's line at depths 1 and 2 (a recipe has no more). Returns its path, cut to two parts."""
    path = (*prefix, *parts[:2])[:2]
    for depth in range(1, len(path) + 1):
        lines.setdefault(path[:depth], line)
    return path
