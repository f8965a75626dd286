"""Every key that changes a result changes the digest; labels and speed do not."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from ghostcli.errors import UsageError
from ghostcli.recipe import UNDIGESTED, canonical, digest, load
from ghostcli.recipe.keys import KINDS, PATHS, schema
from ghostcli.recipe.models import Recipe


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


@pytest.mark.parametrize("path", PATHS)
def test_each_key_alone(path: str) -> None:
    section, _, key = path.rpartition(".")
    tried = 0
    for kind, model in KINDS.items():
        if section == "distill" and key not in model.model_fields:
            continue
        before = load("paper", [f"distill.kind={kind}"]).recipe
        value = getattr(getattr(before, section) if section else before, key)
        try:
            after = load("paper", [f"distill.kind={kind}", f"{path}={other(section, key, value)}"]).recipe
        except UsageError:  # a feature kind refuses, say, the patch
            continue
        tried += 1
        assert after != before, "the test must change something"
        same = digest(canonical(after)) == digest(canonical(before))
        assert same == (path in UNDIGESTED or path in ("family", "summary"))
    assert tried


def test_undigested_keys_exist() -> None:
    assert set(PATHS) >= UNDIGESTED


def test_canonical_spells_every_default_out_and_is_fresh() -> None:
    recipe = Recipe()
    found = canonical(recipe)
    keys = {f"{section}.{key}" for section, values in found.items() for key in values}
    others = {f"distill.{key}" for model in KINDS.values() for key in model.model_fields}
    plain = {f"distill.{key}" for key in KINDS["kd"].model_fields}
    assert keys == {path for path in PATHS if "." in path} - UNDIGESTED - (others - plain)
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
