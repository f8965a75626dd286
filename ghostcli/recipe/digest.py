"""The fingerprint of what decides a result. Invariants: equal digests mean equal work, whatever the path there; and
the digest of a recipe that exists never moves.

A key that is added later carries `Before(value)`: the value at which it means what was done before it existed. At
that value it is left out, so ids stay. All other keys are spelled out, so a changed default moves no id either.

Neither imports torch nor touches a file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ghostcli.recipe.models import UNDIGESTED, Before, Recipe

#: Version of what a training computes from a job. It is part of every digest. Raise it with each change of the
#: arithmetic that is more than rounding: `tests/test_engine_semantics.py` fails where that was forgotten.
SEMANTICS = 2


def canonical(recipe: Recipe) -> dict[str, Any]:
    """A fresh, JSON-able dict of every key that changes the result.

    Left out: `UNDIGESTED`; keys at their value from before they existed; and the labels `family` and `summary`, so
    that a teacher trained under one family is found again by another with the same protocol.
    """
    sections = recipe.model_dump(mode="json", exclude={"family", "summary"})
    return {
        section: {
            key: _plain(value)
            for key, value in values.items()
            if f"{section}.{key}" not in UNDIGESTED and not _as_before(getattr(recipe, section), key)
        }
        for section, values in sections.items()
    }


def _as_before(section: Any, key: str) -> bool:
    """Whether a key that was added later stands at the value that means what was done before."""
    marks = [mark for mark in type(section).model_fields[key].metadata if isinstance(mark, Before)]
    return bool(marks) and getattr(section, key) == marks[0].value


def _plain(value: Any) -> Any:
    return value + 0.0 if isinstance(value, float) else value  # -0.0 trains as 0.0 does


def digest(value: Any) -> str:
    """sha256, in hex, of `value` as JSON with sorted keys and floats in their shortest exact form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
