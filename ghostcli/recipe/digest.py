"""The fingerprint of what decides a result. Invariant: equal digests mean equal work, whatever the path there.

Neither imports torch nor touches a file.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ghostcli.recipe.models import UNDIGESTED, Recipe


def canonical(recipe: Recipe) -> dict[str, Any]:
    """A fresh, JSON-able dict of every key that changes the result, defaults spelled out.

    Left out: `UNDIGESTED`, and the labels `family` and `summary`, so that a teacher trained under one family is
    found again by another with the same protocol.
    """
    sections = recipe.model_dump(mode="json", exclude={"family", "summary"})
    return {
        section: {key: _plain(value) for key, value in keys.items() if f"{section}.{key}" not in UNDIGESTED}
        for section, keys in sections.items()
    }


def _plain(value: Any) -> Any:
    return value + 0.0 if isinstance(value, float) else value  # -0.0 trains as 0.0 does


def digest(value: Any) -> str:
    """sha256, in hex, of `value` as JSON with sorted keys and floats in their shortest exact form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
