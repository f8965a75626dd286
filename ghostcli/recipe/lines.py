"""The line number of each key in a TOML file. tomllib does not provide it.

Precondition: tomllib has accepted the text, so this module does not validate it.
"""

from __future__ import annotations

import tomllib

#: Lines of one value, at most. Keys after a longer one, which no recipe has, get no line: to find them takes too long.
LONGEST = 20

Path = tuple[str, ...]


def key_lines(text: str) -> dict[Path, int]:
    """(section,) and (section, key) -> line from 1, of headers, dotted and quoted keys and inline tables."""
    lines: dict[Path, int] = {}
    table: Path = ()
    statement = ""
    for number, line in enumerate(text.split("\n"), 1):
        if not statement:
            start, is_header = number, line.lstrip().startswith("[")
        statement += f"{line}\n"
        try:
            tree = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:  # the value ends on a later line
            if number - start + 1 == LONGEST:
                break
            continue
        statement = ""
        above = () if is_header else table
        for name, value in tree.items():
            for path in ((name,), *((name, key) for key in (value if isinstance(value, dict) else ()))):
                lines.setdefault((*above, *path)[:2], start)
                table = path if is_header else table
    return lines
