"""The difference between two recipes, and between a run's recipe and the shipped ones.

Invariant: `config_diff` is the only place where the values of two recipes are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

from ghostcli.errors import UsageError
from ghostcli.recipe.files import names
from ghostcli.recipe.load import load
from ghostcli.recipe.models import UNDIGESTED, Recipe

#: Keys that tables show elsewhere (data, budget) or that do not change a result.
SHOWN_ELSEWHERE = UNDIGESTED | {"data.name", "data.limit", "data.limit_test", "train.epochs", "engine.branches"}
SHOWN_ELSEWHERE |= {"model.start_sha256"}  # `model.start` names these weights


@lru_cache(maxsize=20_000)
def flat(recipe: Recipe) -> Mapping[str, Any]:
    """The values of a recipe by full key (`train.epochs`); without the labels `family` and `summary`."""
    sections = recipe.model_dump(mode="json", exclude={"family", "summary"})
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def config_diff(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Full key -> (value in `a`, value in `b`) for keys that differ. A missing key counts as None."""
    values, others = flat(a), flat(b)
    pairs = {key: (values.get(key), others.get(key)) for key in {**values, **others}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def typed(values: Mapping[str, Any]) -> str:
    """The first three values as a user types them: `optim.lr=0.3, train.ema=0.9, ...`."""
    return ", ".join([f"{key}={value}" for key, value in values.items()][:3]) + ", ..." * (len(values) > 3)


def untaught(keys: Iterable[str]) -> set[str]:
    """The keys that matter without a teacher: all except [distill] and keys that do not change a result."""
    return {key for key in keys if not key.startswith("distill.")} - UNDIGESTED - {"engine.branches"}


@lru_cache(maxsize=20_000)
def training_changes(recipe: Recipe, family: str) -> Mapping[str, Any]:
    """Key -> value for keys whose training settings differ from the nearest shipped recipe of `family`.

    Data, budget and [distill] are ignored.
    """
    diffs = [config_diff(recipe, known) for known in shipped(family)]
    changes = [{key: diff[key][0] for key in diff if key in untaught(diff) - SHOWN_ELSEWHERE} for diff in diffs]
    return min(changes, key=len, default={})


def teaching_changes(recipe: Recipe, family: str) -> dict[str, Any]:
    """Keys in [distill] whose values match no shipped recipe of this family and kind -> value.

    If the family has no recipe of the kind, the comparison is with the kind's defaults.
    """
    kind = recipe.distill.kind
    known = [other for other in shipped(family) if other.distill.kind == kind]
    if not known:
        try:
            known = [load("paper", [f"distill.kind={kind}"]).recipe]
        except UsageError:  # the kind has required keys, so it has no defaults
            return {}
    diffs = [config_diff(recipe, other) for other in known]
    return {
        key.removeprefix("distill."): pair[0]
        for key, pair in diffs[0].items()
        if key.startswith("distill.") and all(key in diff for diff in diffs)
    }


@cache
def shipped(family: str) -> tuple[Recipe, ...]:
    """The shipped recipes of `family`, its base first."""
    return tuple(load(name).recipe for name in names() if name.partition("/")[0] == family)
