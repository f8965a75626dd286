"""Which keys there are and what each may hold, read off the models.

Invariant: nothing here is written down twice; a field added to a model is known to the loader, to its error
messages and to the JSON schema.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from ghostcli.recipe.models import DistillBase, DistillSection, Recipe, Section

#: distill.kind -> its model.
KINDS: dict[str, type[DistillBase]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(DistillSection)[0])
}

#: Section -> its model; [distill] has one a kind (see `model`), here that of the default kind.
MODELS: dict[str, type[Section]] = {
    name: type(field.default) for name, field in Recipe.model_fields.items() if isinstance(field.default, Section)
}

#: Keys that stand above all sections.
TOP: tuple[str, ...] = tuple(name for name in Recipe.model_fields if name not in MODELS)

#: Section -> its keys; of [distill], those of every kind.
FIELDS: dict[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(k for m in (KINDS.values() if name == "distill" else [model]) for k in m.model_fields))
    for name, model in MODELS.items()
}

#: Every key by its whole name.
PATHS: tuple[str, ...] = TOP + tuple(f"{section}.{key}" for section, keys in FIELDS.items() for key in keys)


def model(section: str, kind: str) -> type[Section]:
    """The model of a section under `distill.kind` = `kind`."""
    return KINDS[kind] if section == "distill" else MODELS[section]


@cache
def schema(section: str) -> dict[str, dict[str, Any]]:
    """Key -> its JSON schema; of [distill], over all kinds. `""` is the place above all sections."""
    if not section:
        properties = Recipe.model_json_schema()["properties"]
        return {name: properties[name] for name in TOP}
    if section != "distill":
        return MODELS[section].model_json_schema()["properties"]
    merged: dict[str, dict[str, Any]] = {}
    for kind in KINDS.values():
        for name, value in kind.model_json_schema()["properties"].items():
            merged.setdefault(name, value)
    described = {"default": "kd", "description": merged["kind"]["description"]}
    return {**merged, "kind": {"enum": list(KINDS), "type": "string", **described}}


def optional(section: str, key: str) -> bool:
    """Whether the key may be unset, written `none`."""
    return any(option.get("type") == "null" for option in schema(section)[key].get("anyOf", ()))


def expected(section: str, key: str) -> str:
    """What the key may hold, in words: 'a whole number of at least 1, or none'."""
    known = schema(section)[key]
    options = [option for option in known.get("anyOf", [known]) if option.get("type") != "null"]
    words = " or ".join(map(_words, options))
    return f"{words}, or none" if optional(section, key) else words


def _words(option: dict[str, Any]) -> str:
    if "enum" in option:
        return "one of " + ", ".join(option["enum"])
    kind = option["type"]
    if kind == "boolean":
        return "true or false"
    if kind == "string":
        return "a string"
    name = "a whole number" if kind == "integer" else "a number"
    low, above = option.get("minimum"), option.get("exclusiveMinimum")
    high, below = option.get("maximum"), option.get("exclusiveMaximum")
    if high is not None:
        return f"{name} from {low} to {high}"
    if below is not None:
        return f"{name} from {low} to below {below}"
    if above is not None:
        return f"{name} above {above}"
    return f"{name} of at least {low}" if low is not None else name


def file_schema() -> dict[str, Any]:
    """JSON schema of a recipe *file*: every key optional, `none` for TOML's missing null, `extends` besides."""
    top = {"extends": {"type": "string", "description": "a recipe's name, or a file beside this one"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ghost recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": top | _for_toml("") | {name: _section_schema(name) for name in MODELS},
    }


def _section_schema(name: str) -> dict[str, Any]:
    about = (DistillBase if name == "distill" else MODELS[name]).__doc__ or ""
    return {
        "type": "object",
        "description": about,
        "additionalProperties": False,
        "properties": _for_toml(name),
    }


def _for_toml(section: str) -> dict[str, dict[str, Any]]:
    properties = {}
    for name, known in schema(section).items():
        plain = {key: value for key, value in known.items() if key not in ("title", "default")}
        if optional(section, name):
            plain["anyOf"] = [o if o.get("type") != "null" else {"const": "none"} for o in known["anyOf"]]
        if known.get("default") is not None:
            plain["default"] = known["default"]
        elif "default" in known:
            plain["default"] = "none"
        properties[name] = plain
    return properties
