"""From a name, a file and overrides to a resolved recipe, with the origin of every value.

Invariant: for any input the result is a `Resolved`, or one UsageError with all mistakes and their places. There is no
other exception.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ghostcli.errors import UsageError
from ghostcli.recipe import files, keys
from ghostcli.recipe.errors import Problems, place, shorten, shown_value, unknown_key
from ghostcli.recipe.lines import Path as KeyPath
from ghostcli.recipe.lines import key_lines
from ghostcli.recipe.models import Conflict, Recipe

OVERRIDE = "--set"
DEFAULT = "default"


@dataclass(frozen=True)
class Resolved:
    """A recipe with all defaults filled in.

    `provenance` maps each key to the source of its value: `recipes/paper/base.toml:7`, `--set`, a flag or `default`.
    """

    recipe: Recipe
    name: str
    provenance: Mapping[str, str]


@dataclass(frozen=True)
class _Layer:
    """The content of one file, or of all overrides: a tree, and the line of each key."""

    file: str
    tree: dict[str, Any]
    lines: dict[KeyPath, int]
    flags: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, *path: str) -> tuple[str, int | None]:
        """The file (or flag) and line of a key; the line of its section if the key's line is unknown."""
        return self.flags.get(path, self.file), self.lines.get(path) or self.lines.get(path[:1])


def load(name_or_path: str, overrides: Sequence[str] = (), flags: Sequence[tuple[str, str]] = ()) -> Resolved:
    """Resolve a shipped recipe's name, a .toml file, or a run's recipe.json, under `key.path=value` overrides.

    Later layers win, key by key. The order is: the parent (`extends`), the file, `flags` (pairs of flag
    name and override), `overrides` in their order.
    """
    problems = Problems()
    source, layers, whole = _files(name_or_path, problems)
    layers.append(_overrides([*flags, *((OVERRIDE, text) for text in overrides)], problems))
    merged = _Merged(problems)
    for layer in layers:
        merged.add(layer)
    recipe = merged.validated(whole)
    problems.raise_any()
    assert source is not None and recipe is not None
    provenance = {}
    for path in _paths(recipe):
        origin = merged.origin.get(path)
        provenance[".".join(path)] = place(*origin) if origin else DEFAULT
    return Resolved(recipe, source.name, provenance)


def _paths(recipe: Recipe) -> list[KeyPath]:
    sections = {name: type(getattr(recipe, name)).model_fields for name in keys.MODELS}
    return [(name,) for name in keys.TOP] + [(name, key) for name, fields in sections.items() for key in fields]


def _files(name: str, problems: Problems) -> tuple[files.Source | None, list[_Layer], bool]:
    """The recipe's source, its layers (most distant parent first), and whether all layers were read."""
    layers: list[_Layer] = []
    line: list[files.Source] = []
    try:
        source = files.find(name)
    except UsageError as error:
        file, _, text = str(error).partition(": ")
        problems.add(file, None, text)
        return None, layers, False
    while True:
        line.append(source)
        is_json = source.path.suffix.lower() == ".json"
        try:
            text = files.read(source)
            tree = files.parse(text, is_json)
        except files.Unreadable as error:
            problems.add(source.label, error.line, error.text)
            return line[0], layers, False
        layer = _Layer(source.label, tree, {} if is_json else key_lines(text))
        layers.insert(0, layer)
        if "extends" not in tree:
            return line[0], layers, True
        parent = tree.pop("extends")
        at = layer.where("extends")
        if is_json:
            problems.add(*at, "extends: a recipe in JSON has all keys itself; write this one in TOML")
            return line[0], layers, False
        if not isinstance(parent, str):
            problems.add(*at, f"extends: needs one recipe's name or file, as a string; got {shown_value(parent)}")
            return line[0], layers, False
        try:
            source = files.find_parent(parent, source)
        except UsageError as error:
            problems.add(*at, f"extends: {error}")
            return line[0], layers, False
        met = [known.path.resolve() for known in line]
        if source.path.resolve() in met:
            circle = [known.label for known in line[met.index(source.path.resolve()) :]] + [source.label]
            problems.add(*at, f"extends: a recipe cannot extend itself: {' -> '.join(circle)}")
            return line[0], layers, False


def _overrides(overrides: Sequence[tuple[str, str]], problems: Problems) -> _Layer:
    tree: dict[str, Any] = {}
    flags: dict[KeyPath, str] = {}
    for flag, override in overrides:
        path, equals, text = override.partition("=")
        name, _, key = path.strip().partition(".")
        value = _value(text)
        problem = None
        if not equals or not name or path.strip().endswith("."):
            problem = f"{shorten(override)}: needs key=value, as in -s train.epochs=20"
        elif name == "extends":
            problem = "extends: stands in files only; choose a recipe with --recipe"
        elif key:
            section = tree.get(name)
            tree[name] = {**(section if isinstance(section, dict) else {}), key: value}
            flags[name, key] = flag
        elif name not in keys.MODELS:
            tree[name] = value
        elif isinstance(value, dict):
            tree[name] = tree.get(name, {}) | value
        else:
            problem = _no_section(name, value)
        if problem:
            problems.add(flag, None, problem)
    return _Layer(OVERRIDE, tree, {}, flags)


def _no_section(name: str, value: Any) -> str:
    return f"{name}: is a section, with keys such as {name}.{keys.FIELDS[name][0]}; got {shown_value(value)}"


BARE = re.compile(r"[+-]?(\d+\.|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _value(text: str) -> Any:
    """`text` as a TOML value. Text that is not TOML is a string, but for `.1` and `1.`, which are numbers elsewhere."""
    if len(text) > files.MOST_COLUMNS:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return float(text) if BARE.fullmatch(text.strip()) else text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


class _Merged:
    """The merged layers: known keys in `tree`, and in `origin` the place where each was last set."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.tree: dict[str, Any] = {}
        self.origin: dict[KeyPath, tuple[str, int | None]] = {}
        self.file = OVERRIDE

    def add(self, layer: _Layer) -> None:
        self.file = layer.file
        for name, value in layer.tree.items():
            if name in keys.TOP:
                self._set(layer, (name,), value)
            elif name not in keys.MODELS:
                self._refuse_unknown(layer, "", name, value)
            elif not isinstance(value, dict):
                self.problems.add(*layer.where(name), _no_section(name, value))
            else:
                if name in keys.VARIANTS and keys.VARIANTS[name].chooser in value:
                    self._change_variant(name, value[keys.VARIANTS[name].chooser])
                for key, item in value.items():
                    if key in keys.FIELDS[name]:
                        self._set(layer, (name, key), item)
                    else:
                        self._refuse_unknown(layer, name, key, item)

    def _refuse_unknown(self, layer: _Layer, section: str, key: str, value: Any) -> None:
        path = (section, key) if section else (key,)
        text = "" if self.problems.full else unknown_key(section, key, isinstance(value, dict))
        self.problems.add(*layer.where(*path), text)

    def _set(self, layer: _Layer, path: KeyPath, value: Any) -> None:
        section = path[0] if len(path) == 2 else ""
        if value == "none" and keys.optional(section, path[-1]):
            value = None
        holder = self.tree.setdefault(section, {}) if section else self.tree
        holder[path[-1]] = value
        self.origin[path] = layer.where(*path)

    def _change_variant(self, section: str, chosen: Any) -> None:
        """Drop the keys of the old variant: the new one lacks them or gives them another meaning (`weight`)."""
        variants, old = keys.VARIANTS[section], self.tree.get(section, {})
        if old.get(variants.chooser, variants.default) == chosen:
            return
        for key in [key for key in old if key not in variants.shared | {variants.chooser}]:
            del old[key], self.origin[section, key]

    def validated(self, whole: bool) -> Recipe | None:
        """The recipe, or None after recording its mistakes.

        If not `whole`, a layer is missing, so conflicts between keys are not checked.
        """
        tree = dict(self.tree)
        for section in keys.VARIANTS:
            tree[section] = self._of_variant(section, tree.get(section, {}), whole)
        try:
            return Recipe.model_validate(tree)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                self._note(detail, tree, whole)
            return None

    def _of_variant(self, section: str, values: dict[str, Any], whole: bool) -> dict[str, Any]:
        """A section with its variant filled in, without keys of other variants, which are recorded as mistakes."""
        variants = keys.VARIANTS[section]
        chosen = values.get(variants.chooser, variants.default)
        if not isinstance(chosen, str) or chosen not in variants.models:
            self._refuse((section, variants.chooser), chosen)
            return {variants.chooser: variants.default}
        variant_values = {variants.chooser: chosen}
        for key, value in values.items():
            if key in variants.models[chosen].model_fields:
                variant_values[key] = value
            elif whole:
                owners = " or ".join(name for name, model in variants.models.items() if key in model.model_fields)
                chooser = f"{section}.{variants.chooser}"
                text = f"{section}.{key}: belongs to {chooser} {owners}, and the {variants.chooser} here is {chosen}"
                self.problems.add(*self._place((section, key)), text)
        return variant_values

    def _note(self, detail: Any, tree: dict[str, Any], whole: bool) -> None:
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Conflict):
            for names, text in cause.found if whole else ():
                self.problems.add(*self._place(*(tuple(name.split(".")) for name in names)), f"{names[0]}: {text}")
            return
        path = tuple(str(part) for part in detail["loc"])
        path = path[:1] + path[-1:] if len(path) > 1 else path  # ("distill", "kd", "alpha"): the variant is no key
        value = tree[path[0]] if len(path) == 1 else tree[path[0]][path[1]]
        self._refuse(path, value, None if cause is None else str(cause))

    def _refuse(self, path: KeyPath, value: Any, why: str | None = None) -> None:
        section = path[0] if len(path) == 2 else ""
        why = why or f"needs {keys.expected(section, path[-1])}"
        hint, _, meant = why.partition("; ")
        text = f"{'.'.join(path)}: {hint}; got {shown_value(value)}" + (f"; {meant}" if meant else "")
        self.problems.add(*self._place(path), text)

    def _place(self, *paths: KeyPath) -> tuple[str, int | None]:
        """The place of the first of `paths` that was set; if none was set, the recipe's own file."""
        return next((self.origin[path] for path in paths if path in self.origin), (self.file, None))
