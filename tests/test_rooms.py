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
