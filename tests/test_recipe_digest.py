"""Every key that changes a result changes the digest; labels and speed do not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import pytest

from ghostcli.errors import UsageError
from ghostcli.plan import Job
from ghostcli.recipe import UNDIGESTED, canonical, digest, load
from ghostcli.recipe.keys import PATHS, VARIANTS, schema
from ghostcli.recipe.models import Before, Recipe, TrainSection

GOLDEN = Path(__file__).parent / "golden"
BASE = json.loads((GOLDEN / "base_keys.json").read_text())
IDS = json.loads((GOLDEN / "ids.json").read_text())


def other(section: str, key: str, value: Any) -> str:
    """An override's text for another value that the key may hold."""
    known = schema(section)[key]
    if "anyOf" in known:
        known = next(option for option in known["anyOf"] if option["type"] != "null")
    if "enum" in known:
        return next(option for option in reversed(known["enum"]) if option != value)
    match known["type"]:
        case "boolean":
            return "false" if value else "true"
        case "integer":
            return str(1 if value is None else value + 1)
        case "number":
            return str(value / 2 + 0.125)
    return "digits" if key == "name" else "other"


def variants(section: str) -> list[list[str]]:
    """Overrides that choose each variant of a section in turn; none where it has but one."""
    found = VARIANTS.get(section)
    return [[f"{section}.{found.chooser}={name}"] for name in found.models] if found else [[]]


@pytest.mark.parametrize("path", PATHS)
def test_each_key_alone(path: str) -> None:
    section, _, key = path.rpartition(".")
    tried = 0
    for chosen in variants(section):
        before = load("paper", chosen).recipe
        holder = getattr(before, section) if section else before
        if not hasattr(holder, key):
            continue
        try:
            after = load("paper", [*chosen, f"{path}={other(section, key, getattr(holder, key))}"]).recipe
        except UsageError:  # a feature kind refuses, say, the patch
            continue
        tried += 1
        assert after != before, "the test must change something"
        same = digest(canonical(after)) == digest(canonical(before))
        assert same == (path in UNDIGESTED or path in ("family", "summary"))
    assert tried


def test_undigested_keys_exist() -> None:
    assert set(PATHS) >= UNDIGESTED


def test_canonical_spells_out_what_was_always_there_and_is_fresh() -> None:
    recipe = Recipe()
    found = canonical(recipe)
    assert {f"{section}.{key}" for section, values in found.items() for key in values} == set(BASE["default"])
    del found["distill"]
    assert "distill" in canonical(recipe)


def test_zero_has_one_digest() -> None:
    signed = load("paper", ["train.ema=-0.0", "optim.weight_decay=0"]).recipe
    plain = load("paper", ["optim.weight_decay=0.0"]).recipe
    assert digest(canonical(signed)) == digest(canonical(plain))


def test_a_folder_has_one_digest_however_its_path_is_spelled() -> None:
    def of(path: str) -> str:
        return digest(canonical(load("paper", [f"data.name=folder:{path}"]).recipe))

    assert len({of(path) for path in ("pics", "pics/", "./pics", ".//pics//.")}) == 1
    assert len({of(path) for path in ("pics", "/pics", "../pics", "pics/..", "~/pics", ".")}) == 6


def test_digest_is_sha256_of_sorted_json() -> None:
    text = '{"a":[1,1e-08,null],"b":{"c":true,"d":0.1}}'
    assert digest({"b": {"d": 0.1, "c": True}, "a": (1, 1e-8, None)}) == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ValueError):
        digest(float("nan"))


def test_a_recipe_that_exists_is_valid_and_frozen() -> None:
    with pytest.raises(ValueError, match=r"train\.stop"):
        Recipe.model_validate({"train": {"epochs": 2, "stop": 3}})
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3  # type: ignore[misc]


# --- identity: what runs are called never moves --------------------------------------------------------------------


@pytest.mark.parametrize("known", IDS, ids=lambda known: known["id"])
def test_ids_never_move(known: dict[str, Any]) -> None:
    """Runs of these very recipes are recorded under these ids. If this fails, recorded runs are lost to everybody:
    give the new key `Before(value)`, whatever default it has (see ghostcli/recipe/digest.py)."""

    def job_of(said: dict[str, Any]) -> Job:
        teachers = tuple(job_of(teacher) for teacher in said.get("teachers", ()))
        return Job(said["student"], said["seed"], Recipe.model_validate(said["recipe"]), "any", teachers)

    assert job_of(known["job"]).id == known["id"]


@pytest.mark.parametrize("section", ["data", "augment", "model", "train", "optim", "distill", "engine"])
def test_a_key_without_before_was_always_there(section: str) -> None:
    now = set()
    for chosen in variants(section):
        holder = type(getattr(load("paper", chosen).recipe, section))
        now |= {
            f"{section}.{key}"
            for key, field in holder.model_fields.items()
            if not any(isinstance(mark, Before) for mark in field.metadata)
        }
    assert now - UNDIGESTED == set(BASE["all"][section])


class Later(TrainSection):
    """[train] as a later version may have it."""

    mixup: Annotated[float, Before(0.0)] = 0.3


class LaterRecipe(Recipe):
    train: Later = Later()


def test_a_key_that_is_added_later_moves_no_id() -> None:
    def of(recipe: Recipe) -> str:
        return digest(canonical(recipe))

    assert of(LaterRecipe(train=Later(mixup=0.0))) == of(Recipe())
    assert of(LaterRecipe()) != of(Recipe()), "its default is another training than before"
    assert of(LaterRecipe(train=Later(mixup=0.1))) not in (of(Recipe()), of(LaterRecipe()))
