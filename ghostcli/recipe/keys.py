"""The keys of a recipe and their allowed values, derived from the models.

Invariant: the models are the only source. The loader, its error messages and the JSON schema know each new field.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from ghostcli.recipe.models import Recipe, Section

#: Section -> its model. If it has variants: the model of the default variant.
MODELS: dict[str, type[Section]] = {
    name: type(field.default) for name, field in Recipe.model_fields.items() if isinstance(field.default, Section)
}


@dataclass(frozen=True)
class Variants:
    """A section with one model per value of its key `chooser`. `shared`: the keys of all variants."""

    chooser: str
    models: dict[str, type[Section]]
    default: str
    shared: frozenset[str]


def _variants(section: str) -> Variants | None:
    field = Recipe.model_fields[section]
    if not field.discriminator:
        return None
    models = {
        get_args(model.model_fields[field.discriminator].annotation)[0]: model for model in get_args(field.annotation)
    }
    base = next(iter(models.values())).__base__
    return Variants(
        field.discriminator, models, getattr(field.default, field.discriminator), frozenset(base.model_fields)
    )


#: Sections with variants: the keys of [distill] depend on `kind`, those of [optim] on `name`.
VARIANTS: dict[str, Variants] = {name: variants for name in MODELS if (variants := _variants(name))}

#: Keys that stand above all sections.
TOP: tuple[str, ...] = tuple(name for name in Recipe.model_fields if name not in MODELS)


def _models(section: str) -> Iterable[type[Section]]:
    return VARIANTS[section].models.values() if section in VARIANTS else [MODELS[section]]


#: Section -> its keys, those of every variant.
FIELDS: dict[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(key for model in _models(name) for key in model.model_fields)) for name in MODELS
}

#: Every key by its whole name.
PATHS: tuple[str, ...] = TOP + tuple(f"{section}.{key}" for section, keys in FIELDS.items() for key in keys)


@cache
def schema(section: str) -> dict[str, dict[str, Any]]:
    """Key -> its JSON schema, over all variants. `""` is the place above all sections."""
    if not section:
        properties = Recipe.model_json_schema()["properties"]
        return {name: properties[name] for name in TOP}
    merged: dict[str, dict[str, Any]] = {}
    for model in _models(section):
        for name, value in model.model_json_schema()["properties"].items():
            merged.setdefault(name, value)
    if variants := VARIANTS.get(section):
        about = {"default": variants.default, "description": merged[variants.chooser]["description"]}
        merged[variants.chooser] = {"enum": list(variants.models), "type": "string", **about}
    return merged


def optional(section: str, key: str) -> bool:
    """Whether the key can be unset, written `none`."""
    return any(option.get("type") == "null" for option in schema(section)[key].get("anyOf", ()))


def expected(section: str, key: str) -> str:
    """The allowed values of a key, in words: 'a whole number of at least 1, or none'."""
    known = schema(section)[key]
    options = [option for option in known.get("anyOf", [known]) if option.get("type") != "null"]
    words = " or ".join(map(_words, options))
    return f"{words}, or none" if optional(section, key) else words


@dataclass(frozen=True)
class Key:
    """What a key is: its allowed values in words, its default (None: unset) and its purpose.

    Where only some variants of a section have the key, the purpose names them, and those with another default.
    """

    name: str
    allowed: str
    default: Any
    purpose: str


def explained() -> list[Key]:
    """Every key, in the order of a recipe file."""
    made = []
    for path in PATHS:
        section, _, key = path.rpartition(".")
        known = schema(section)[key]
        default, purpose = known.get("default"), known.get("description", "")
        if (variants := VARIANTS.get(section)) and key not in {variants.chooser, *variants.shared}:
            own = {name: m.model_fields[key].default for name, m in variants.models.items() if key in m.model_fields}
            others = [f"; {name}'s default is {value}" for name, value in own.items() if value != default]
            purpose = f"{', '.join(own)}: {purpose}{''.join(others)}"
        made.append(Key(path, expected(section, key), default, purpose))
    return made


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
    model = MODELS[name].__base__ if name in VARIANTS else MODELS[name]
    return {
        "type": "object",
        "description": model.__doc__ or "",
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
