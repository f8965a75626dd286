"""In what one recipe departs from another, and a run's from what its family ships.

Invariant: only values that both recipes hold are set against each other, so that a record older than a key, or
newer, departs in nothing it could not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ghostcli.errors import UsageError

#: What a title says anyway, or no result follows from.
SAID = frozenset({"data.name", "data.limit", "data.limit_test", "train.epochs", "engine.branches"})


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's keys by their whole names: `train.epochs`."""
    sections = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    top = {key: value for key, value in recipe.items() if key not in sections}
    return top | {f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()}


def departures(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The keys of recipe `a` that `b` holds otherwise or not at all, labels aside."""
    flat_a, flat_b = flat(a), flat(b)
    return [key for key in flat_a if flat_a[key] != flat_b.get(key) and key not in ("family", "summary")]


def differing(a: Mapping[str, Any], b: Mapping[str, Any], taught: bool = True) -> str:
    """The keys in which recipe `a` departs from `b`, as one would type them: `distill.temperature=4`.

    Without `taught` those that only teaching reads are left out.
    """
    values = flat(a)
    return typed({key: values[key] for key in departures(a, b) if taught or not key.startswith("distill.")})


def typed(values: Mapping[str, Any], most: int = 3) -> str:
    """`optim.lr=0.3, train.ema=0.9, ...`."""
    return ", ".join([f"{key}={value}" for key, value in values.items()][:most]) + ", ..." * (len(values) > most)


def own_values(recipe: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Where the training of `recipe` is otherwise than in every recipe that `family` ships: key -> its own value.

    Set against the nearest of them. The budget, the data's name and what only teaching reads count for nothing here.
    """
    from ghostcli.recipe.models import UNDIGESTED

    values = {
        key: value
        for key, value in flat(recipe).items()
        if "." in key and not key.startswith("distill.") and key not in SAID | UNDIGESTED
    }
    found = ({k: v for k, v in values.items() if k in known and v != known[k]} for known in shipped(family))
    return min(found, key=len, default={})


def own_teaching(distill: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The keys of [distill] that no recipe that `family` ships of that kind, or the kind itself, has so."""
    kind = distill.get("kind")
    known = [recipe for recipe in shipped(family) if recipe["distill.kind"] == kind]
    if not known and isinstance(kind, str):
        known = [flat({"distill": _defaults(kind)})]
    return {
        key: value
        for key, value in distill.items()
        if (usual := [recipe[f"distill.{key}"] for recipe in known if f"distill.{key}" in recipe])
        and value not in usual
    }


@cache
def shipped(family: str) -> tuple[dict[str, Any], ...]:
    """The recipes of `family` that come with ghost, flat, its base first."""
    from ghostcli.recipe.files import names
    from ghostcli.recipe.load import load

    return tuple(
        flat(load(name).recipe.model_dump(mode="json")) for name in names() if name.partition("/")[0] == family
    )


def _defaults(kind: str) -> dict[str, Any]:
    from ghostcli.recipe.load import load

    try:
        return load("paper", (f"distill.kind={kind}",)).recipe.distill.model_dump(mode="json")
    except UsageError:
        return {}
