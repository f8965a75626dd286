"""Writes a resolved recipe as TOML. Invariant: loading the text gives an equal recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ghostcli.errors import printable
from ghostcli.recipe import keys
from ghostcli.recipe.models import Recipe


def dumps(recipe: Recipe, provenance: Mapping[str, str] | None = None) -> str:
    """TOML text of all keys. With `provenance`, each line ends in a comment with the source of the value."""
    tree = recipe.model_dump()
    rows = [_row(name, tree[name], name) for name in keys.TOP]
    for section in keys.MODELS:
        values = tree[section]
        first = [keys.VARIANTS[section].chooser] if section in keys.VARIANTS else []  # the other keys depend on it
        rows += [("", ""), (f"[{section}]", "")]
        rows += [_row(key, values[key], f"{section}.{key}") for key in dict.fromkeys([*first, *values])]
    if provenance is None:
        return "".join(f"{line}\n" for line, _ in rows)
    width = min(48, max(len(line) for line, path in rows if path != "summary"))
    return "".join(
        f"{line:<{width}}  # {printable(provenance[path])}\n" if path else f"{line}\n" for line, path in rows
    )


def _row(key: str, value: Any, path: str) -> tuple[str, str]:
    """A line, and the whole name of its key. TOML writes numbers, booleans and printable text as JSON does."""
    return f"{key} = {json.dumps('none' if value is None else value, ensure_ascii=False)}", path
