"""The paper's printed tables: reads paper.toml into frozen values.

Invariant: rows have the paper's order and numbers. A known error in a number is described in a note; the number itself
is not corrected.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pydantic import TypeAdapter

from ghostcli.errors import one_of

#: The families of recipes, in the order of the tables.
FAMILIES: tuple[str, ...] = ("paper", "published", "ghost", "smoke")


@dataclass(frozen=True)
class Logged:
    """The values in the authors' logs, if they differ from the printed ones."""

    accuracy: float
    delta: float


@dataclass(frozen=True)
class PaperRow:
    """One printed row. `delta`: the difference from the printed baseline; None in Table I."""

    table: str
    strategy: str
    student: str
    accuracy: float
    published: str
    teachers: tuple[str, ...] = ()
    delta: float | None = None
    note: str | None = None
    logged: Logged | None = None

    @property
    def parameters(self) -> int:
        """Parameters of the train form with 10 classes, counted."""
        return paper().models[self.student].parameters

    def recipe(self, family: str) -> str:
        """The name of a family's recipe for this row."""
        return self.published if family == "published" else family


@dataclass(frozen=True)
class PaperTable:
    name: str
    title: str
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class Model:
    """A network of Table I; `printed_parameters` in millions."""

    label: str
    parameters: int
    printed_parameters: float


@dataclass(frozen=True)
class Source:
    """The protocol of all printed numbers."""

    data: str
    epochs: int
    train_images: int
    kind: str
    alpha: float
    temperature: float

    @property
    def budget(self) -> int:
        return self.epochs * self.train_images


@dataclass(frozen=True)
class Paper:
    source: Source
    models: dict[str, Model]
    tables: tuple[PaperTable, ...]
    notes: dict[str, str]

    def table(self, name: str) -> PaperTable:
        """The table with this name. UsageError if there is none."""
        tables = {table.name: table for table in self.tables}
        return tables[one_of("table", name, tuple(tables))]

    @property
    def rows(self) -> tuple[PaperRow, ...]:
        return tuple(row for table in self.tables for row in table.rows)


@cache
def paper() -> Paper:
    content = tomllib.loads(resources.files("ghostcli.paper").joinpath("paper.toml").read_text("utf-8"))
    for table in content["tables"]:
        for row in table["rows"]:
            row |= {"table": table["name"], "strategy": table["strategy"]}
    return TypeAdapter(Paper).validate_python(content)


def label(name: str) -> str:
    """A network's name in the tables: `GN-S 1.3x`, `ResNet-18`, `timm/x`."""
    known = paper().models.get(name)
    if known:
        return known.label
    family, colon, width = name.partition(":")
    return f"GN-{family[-1].upper()} {width}x" if colon and family in ("gns", "gnd") else name


def joined(teachers: tuple[str, ...] | list[str], strategy: str) -> str:
    """The teachers in one phrase: a chain with arrows, first to last; other teachers with plus signs."""
    return (" → " if strategy in ("chain", "dense") else " + ").join(label(name) for name in teachers)
