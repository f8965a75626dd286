"""Any tree of values, any text and any overrides either resolve or are refused with located lines."""

from __future__ import annotations

import datetime
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ghostcli.errors import UsageError
from ghostcli.recipe import Resolved, canonical, digest, load
from ghostcli.recipe.keys import FIELDS, PATHS, VARIANTS, schema
from ghostcli.recipe.lines import key_lines
from ghostcli.recipe.models import Recipe
from ghostcli.recipe.toml import dumps

WORDS = [*FIELDS, "extends", "family", "summary", *{key for keys in FIELDS.values() for key in keys}]
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", autouse=True)
def _folder() -> Iterator[None]:
    """One working folder for the module: hypothesis calls a test function many times within one fixture."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        yield


# --- what may stand in a file ----------------------------------------------------------------------------------

scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(-3, 400),
    st.floats(),
    st.floats(0, 1),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(["none", "kd", "dkd", "at", "paper", "ghost/kd", "random", "digits", "folder:x", "mine.toml"]),
    st.dates(datetime.date(1, 1, 1)),
)


def tables(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    word = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8"), max_size=8)
    return st.dictionaries(word, inner, max_size=4)


values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | tables(inner), max_leaves=6)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    """A tree that is nearly a recipe: true sections with true keys, now and then something else."""
    tree: dict[str, Any] = draw(st.just({}) | tables(values))
    for section in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=4, unique=True)):
        chosen = draw(st.lists(st.sampled_from(FIELDS[section]), max_size=4, unique=True))
        tree[section] = {key: draw(fitting(schema(section)[key]) | values) for key in chosen}
    return tree


def fitting(known: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the key's schema admits (as a rule: a string need not be a data set)."""
    if "anyOf" in known:
        return st.one_of([st.just("none") if o.get("type") == "null" else fitting(o) for o in known["anyOf"]])
    if "enum" in known:
        return st.sampled_from(known["enum"])
    low = known.get("minimum", known.get("exclusiveMinimum", 0))
    high = known.get("maximum", known.get("exclusiveMaximum", 1000))
    match known["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(low, high)
        case "number":
            edges = {"exclude_min": "exclusiveMinimum" in known, "exclude_max": "exclusiveMaximum" in known}
            return st.floats(low, high, **edges)
    return st.sampled_from(["cifar10", "digits", "folder:there"])


def spelled(value: Any) -> str:
    """TOML for a value, inline: the test's own writer."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return (
                '"'
                + "".join(f"\\U{ord(c):08x}" if ord(c) < 48 or ord(c) > 122 or c == "\\" else c for c in value)
                + '"'
            )
        case dict():
            return "{" + ", ".join(f"{spelled(k)} = {spelled(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(spelled, value)) + "]"
        case datetime.date():
            return value.isoformat()
    return repr(value)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str, ...], int], dict[str, Any]]:
    """A tree, its TOML (each section as a header, dotted keys or an inline table), and each key's line."""
    tree = draw(sections())
    lines: list[str] = []
    at: dict[tuple[str, ...], int] = {}

    def put(line: str, *paths: tuple[str, ...]) -> None:
        lines.extend(["# x = {"] * draw(st.integers(0, 2)))
        lines.append(line + draw(st.sampled_from(["", " # [y]", "\t"])))
        for path in paths:
            at.setdefault(path, len(lines))

    later = []
    for name, value in tree.items():
        if not isinstance(value, dict):
            put(f"{spelled(name)} = {spelled(value)}", (name,))
        else:
            later.append(name)
    headers = []
    for name in later:
        match draw(st.sampled_from(["header", "dotted", "inline"])):
            case "inline":
                put(f"{spelled(name)} = {spelled(tree[name])}", (name,), *((name, key) for key in tree[name]))
            case "dotted" if tree[name]:
                for key, value in tree[name].items():
                    put(f"{spelled(name)} . {spelled(key)} = {spelled(value)}", (name,), (name, key))
            case _:
                headers.append(name)
    for name in headers:
        put(f"[ {spelled(name)} ]", (name,))
        for key, value in tree[name].items():
            put(f"{spelled(key)} = {spelled(value)}", (name, key))
    return "\n".join(lines), at, tree


# --- what must hold ----------------------------------------------------------------------------------------------


def attempt(name: str, overrides: list[str] | None = None) -> Resolved | list[str]:
    """A resolved recipe, or the lines of a refusal. Any other exception fails the test."""
    try:
        return load(name, overrides or [])
    except UsageError as error:
        return str(error).split("\n")


def assert_located(found: Resolved | list[str], files: dict[str, str]) -> None:
    """Each line of a refusal begins with one of `files`, at a line that it has, and is fit for a terminal."""
    if isinstance(found, Resolved):
        assert isinstance(found.recipe, Recipe)
        assert set(found.provenance) <= set(PATHS)
        return
    assert found and found[0] and len(found) <= 21
    for line in found:
        assert line.isprintable() and len(line) < 500
        if line.startswith("... and "):
            continue
        file = next((file for file in files if line.startswith(file)), None)
        assert file is not None, line
        if number := re.match(r":(\d+): ", line[len(file) :]):
            assert 1 <= int(number[1]) <= files[file].count("\n") + 1, line


@quick
@given(documents())
def test_any_tree_resolves_or_is_refused_where_it_errs(document: tuple[str, Any, dict[str, Any]]) -> None:
    text, lines, tree = document
    Path("mine.toml").write_text(text, encoding="utf-8")
    assert_located(found := attempt("mine.toml"), {"mine.toml": text})
    if isinstance(found, list):
        told = {int(number) for number in re.findall(r"^mine\.toml:(\d+): ", "\n".join(found), re.MULTILINE)}
        assert told <= set(lines.values()), "a line on which no key stands is no place of a mistake"
    elif "extends" not in tree:
        for section, said in tree.items():
            for key, value in said.items() if isinstance(said, dict) else ():
                expected = None if value == "none" and (section, key) != ("augment", "flip") else value
                assert getattr(getattr(found.recipe, section), key) == expected
                assert found.provenance[f"{section}.{key}"] == f"mine.toml:{lines[section, key]}"


@quick
@given(documents())
def test_lines_are_those_the_keys_were_written_on(document: tuple[str, Any, Any]) -> None:
    text, lines, _ = document
    assert key_lines(text) == lines


@quick
@given(sections(), sections())
def test_any_parent_and_child(parent: dict[str, Any], child: dict[str, Any]) -> None:
    files = {}
    for name, tree in (("parent.toml", parent), ("child.toml", {**child, "extends": "parent.toml"})):
        files[name] = "\n".join(f"{spelled(key)} = {spelled(value)}" for key, value in tree.items())
        Path(name).write_text(files[name], encoding="utf-8")
    assert_located(attempt("child.toml"), files)


@quick
@given(sections() | values, st.booleans())
def test_any_json(tree: Any, wrapped: bool) -> None:
    text = json.dumps({"recipe": tree} if wrapped else tree, default=str)
    Path("recipe.json").write_text(text)
    assert_located(attempt("recipe.json"), {"recipe.json": text})


@quick
@given(st.binary(max_size=60) | st.text(st.sampled_from("[]{}=\"'.,#\n ab1e-:_\\"), max_size=40).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    Path("mine.toml").write_bytes(content)
    Path("mine.json").write_bytes(content)
    text = content.decode(errors="replace")
    assert_located(attempt("mine.toml"), {"mine.toml": text})
    assert_located(attempt("mine.json"), {"mine.json": text})


@quick
@given(st.data())
def test_a_shipped_recipe_with_any_slip_of_the_pen(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["paper/base", "ghost/dkd", "smoke/demo"]))
    text = (Path(__file__).parent.parent / "recipes" / f"{name}.toml").read_text()
    at = data.draw(st.integers(0, len(text) - 1))
    slip = data.draw(st.text(st.sampled_from("[]{}=\"'.,#\n x7"), max_size=2))
    text = text[:at] + slip + text[at + data.draw(st.integers(0, 3)) :]
    Path("mine.toml").write_text(text)
    assert_located(attempt("mine.toml"), {"mine.toml": text})


override = st.one_of(
    st.text(max_size=20),
    st.tuples(st.sampled_from([*PATHS, *FIELDS]), st.text(max_size=12)).map("=".join),
    st.tuples(st.sampled_from([*PATHS, *FIELDS]), values.map(spelled)).map("=".join),
)


@quick
@given(st.lists(override, max_size=4))
def test_any_overrides(overrides: list[str]) -> None:
    assert_located(attempt("paper", overrides), {"--set": "", "recipes/": ""})


@quick
@given(
    st.text(max_size=20) | st.sampled_from(["paper/", "../x", "ghost//kd", "a/b/c", "."]),
    st.sampled_from(["", ".toml", ".json"]),
)
def test_any_name(name: str, suffix: str) -> None:
    found = attempt(name + suffix)
    assert isinstance(found, Resolved) or (len(found) == 1 and found[0].isprintable() and ": " in found[0])


# --- round trips and the digest ------------------------------------------------------------------------------------


@st.composite
def valid(draw: st.DrawFn) -> Resolved:
    """`paper` under overrides that each hold; those that contradict one another are drawn again."""
    chosen = {section: draw(st.sampled_from(list(found.models))) for section, found in VARIANTS.items()}
    said = [f"{section}.{VARIANTS[section].chooser}={name}" for section, name in chosen.items()]

    def stands(path: str) -> bool:
        section, _, key = path.rpartition(".")
        if section not in VARIANTS:
            return bool(section)
        found = VARIANTS[section]
        return key != found.chooser and path != "distill.source" and key in found.models[chosen[section]].model_fields

    for path in draw(st.lists(st.sampled_from([path for path in PATHS if stands(path)]), max_size=6, unique=True)):
        section, _, key = path.partition(".")
        said.append(f"{path}={spelled(draw(fitting(schema(section)[key])))}")
    found = attempt("paper", said)
    assume(isinstance(found, Resolved))
    assert isinstance(found, Resolved)
    return found


@quick
@given(valid())
def test_a_resolved_recipe_put_in_again_is_the_same_work(asked: Resolved) -> None:
    Path("recipe.json").write_text(json.dumps({"recipe": asked.recipe.model_dump(mode="json")}))
    Path("shown.toml").write_text(dumps(asked.recipe, asked.provenance))
    for name in ("recipe.json", "shown.toml"):
        again = load(name).recipe
        assert again == asked.recipe
        assert digest(canonical(again)) == digest(canonical(asked.recipe))


@quick
@given(valid(), valid())
def test_digests_agree_exactly_where_the_recipes_do(one: Resolved, other: Resolved) -> None:
    a, b = canonical(one.recipe), canonical(other.recipe)
    assert (digest(a) == digest(b)) == (a == b)
