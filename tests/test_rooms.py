"""The house's first rule, that data flows one way: no room leans on another that leans on it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ghostcli

HOUSE = Path(ghostcli.__file__).parent


def imported(source: str) -> set[str]:
    """The rooms that a file names, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "ghostcli":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ghostcli."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ghostcli.")}
    return {name for name in found if (HOUSE / name).is_dir() or (HOUSE / f"{name}.py").exists()}


def test_no_room_leans_on_one_that_leans_on_it():
    rooms: dict[str, set[str]] = {}
    for file in HOUSE.rglob("*.py"):
        name = file.relative_to(HOUSE).parts[0].removesuffix(".py")
        if name not in ("__init__", "__main__"):
            rooms.setdefault(name, set()).update(imported(file.read_text()) - {name})
    assert {"distill", "records", "zoo"} < rooms["engine"] and "torch" not in rooms["engine"]  # it does see imports
    try:
        tuple(TopologicalSorter(rooms).static_order())
    except CycleError as error:
        pytest.fail(f"these rooms lean on each other: {' <- '.join(error.args[1])}")


def modules_imported(file: Path, known: set[str]) -> set[str]:
    """The modules of the house that a file imports when it is imported itself (not those inside its functions)."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ghostcli"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in known} or {str(node.module)}
    return found & known


def test_no_module_leans_on_one_that_leans_on_it():
    files = {}
    for file in HOUSE.rglob("*.py"):
        parts = file.relative_to(HOUSE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    modules = {name: modules_imported(file, set(files)) - {name} for name, file in files.items()}
    assert "ghostcli.plan" in modules["ghostcli.run.launch"]
    try:
        tuple(TopologicalSorter(modules).static_order())
    except CycleError as error:
        pytest.fail(f"these modules lean on each other: {' <- '.join(error.args[1])}")
