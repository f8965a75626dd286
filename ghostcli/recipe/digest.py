"""The digest of all settings that change a result.

Invariants: equal digests mean equal work. The digest of an existing recipe never changes.

A key that is added later has a mark `Before(value)`: at this value the training is the same as before the key existed.
At this value the key is left out, so ids stay the same. All other keys are included with their values, so a changed
default changes no id either.

This module imports no torch and reads no file.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from pydantic import BaseModel

from ghostcli.recipe.models import UNDIGESTED, Before, Recipe

#: Version of the training arithmetic. It is part of every digest. Raise it with each change of the arithmetic that is
#: more than rounding. `tests/test_engine_semantics.py` fails if this is forgotten.
SEMANTICS = 2


def canonical(recipe: Recipe) -> dict[str, Any]:
    """A fresh, JSON-able dict of every key that changes the result.

    Left out: `UNDIGESTED`, keys at their `Before` value, and the labels `family` and `summary`. So two families with
    the same protocol share their teachers.
    """
    sections = recipe.model_dump(mode="json", exclude={"family", "summary"})
    return {
        section: {
            key: _plain(values[key])
            for key, before in _digest_keys(section, type(getattr(recipe, section)))
            if before is None or getattr(getattr(recipe, section), key) != before.value
        }
        for section, values in sections.items()
    }


@cache
def _digest_keys(section: str, kind: type[BaseModel]) -> tuple[tuple[str, Before | None], ...]:
    """The keys of a section that change the result, with the mark of those that were added later."""
    return tuple(
        (key, next((mark for mark in field.metadata if isinstance(mark, Before)), None))
        for key, field in kind.model_fields.items()
        if f"{section}.{key}" not in UNDIGESTED
    )


def _plain(value: Any) -> Any:
    return value + 0.0 if isinstance(value, float) else value  # -0.0 trains as 0.0 does


def digest(value: Any) -> str:
    """sha256 in hex of `value` as JSON, with sorted keys and floats in shortest exact form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
