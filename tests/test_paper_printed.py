"""paper.toml against the printed tables and against itself."""

from __future__ import annotations

import re

import oracles
import pytest

from ghostcli.comparison import commands
from ghostcli.errors import UsageError
from ghostcli.paper import FAMILIES, joined, label, paper
from ghostcli.recipe.load import load
from ghostcli.zoo.names import canonical

BASELINES = {row.student: row.accuracy for row in paper().table("I").rows}


def test_every_number_is_the_printed_one() -> None:
    tables = oracles.printed_tables()
    plain = {"DensNet161": "densenet161"}
    for table in paper().tables:
        assert len(table.rows) == len(tables[table.name])
        for row, cells in zip(table.rows, tables[table.name], strict=True):
            if table.name == "I":
                name, width, millions, accuracy = cells
                name = plain.get(name, name.lower())
                student = f"{name.replace('-', '')}:{width[:-1]}" if width.endswith("x") else name
                assert paper().models[row.student].printed_parameters == float(millions)
            else:
                student = re.sub(r"gn-([sd]) \((.+)x\)", r"gn\1:\2", cells[0].lower())
                accuracy = cells[-2]
                assert row.delta == float(cells[-1])
            assert (row.student, row.accuracy) == (student, float(accuracy))
            if table.name == "II":
                teacher = re.sub(r"gn-([sd]) \((.+)x\)", r"gn\1:\2", cells[1].lower())
                assert row.teachers == (teacher,)


def test_deltas_are_differences_of_the_printed_accuracies() -> None:
    for row in paper().rows:
        if row.delta is None:
            assert row.table == "I"
        else:
            assert row.accuracy - BASELINES[row.student] == pytest.approx(row.delta, abs=0.0051)
            if row.logged:
                assert row.logged.accuracy - BASELINES[row.student] == pytest.approx(row.logged.delta, abs=0.0051)


def test_table_four_is_swapped_beside_not_in_the_rows() -> None:
    rows = {row.student: row for row in paper().table("IV").rows}
    assert (rows["gns:1.0"].accuracy, rows["gnd:1.0"].accuracy) == (90.51, 90.83)
    assert (rows["gns:1.0"].logged.accuracy, rows["gnd:1.0"].logged.accuracy) == (90.83, 90.51)
    assert "swapped" in paper().notes[rows["gns:1.0"].note]


def test_counts_agree_with_the_printed_millions() -> None:
    for model in paper().models.values():
        assert model.parameters / 1e6 == pytest.approx(model.printed_parameters, abs=0.0012)


def test_names_notes_and_recipes_exist() -> None:
    for row in paper().rows:
        assert canonical(row.student) == row.student
        assert all(name in paper().models for name in (row.student, *row.teachers))
        assert row.note is None or row.note in paper().notes
        assert load(row.published).recipe.family == "published"
    for family in FAMILIES:
        assert load(family).recipe.family == family


def test_the_published_recipes_have_the_confounds_that_the_notes_tell_of() -> None:
    for row in paper().rows:
        if row.teachers:
            distill = load(row.published).recipe.distill
            note = paper().notes[row.note]
            assert distill.shuffle == ("not shuffled" not in note)
            assert (distill.view == "patch") == ("patch" in note)


def test_commands() -> None:
    rows = {(row.table, row.student, row.teachers): row for row in paper().rows}
    assert commands.of_row(rows["I", "gns:1.3", ()], "paper", None) == "ghost train-teacher gns:1.3"
    row = rows["III", "gnd:1.0", ("resnet50", "resnet34", "resnet18")]
    assert commands.of_row(row, "published", None) == (
        "ghost assist-chain resnet50 resnet34 resnet18 --student gnd:1.0 --recipe published/chain-gnd"
    )
    row = rows["II", "gns:1.0", ("gns:2.8",)]
    assert commands.of_row(row, "ghost", None) == "ghost distill gns:2.8 --student gns:1.0 --recipe ghost"


def test_labels() -> None:
    assert label("gns:0.5") == "GN-S 0.5x"
    assert label("gnd:1.3") == "GN-D 1.3x"
    assert label("timm/resnet10t") == "timm/resnet10t"
    assert joined(("resnet50", "resnet18"), "chain") == "ResNet-50 → ResNet-18"
    assert joined(("resnet50", "vgg13"), "ensemble") == "ResNet-50 + VGG13"


def test_a_table_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(UsageError, match="I, II, III, IV"):
        paper().table("V")
