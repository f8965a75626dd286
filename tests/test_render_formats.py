"""`ghost table` in every format, through the command itself."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import crash
import pytest
import typer
from report_runs import CHAIN, study, write_run
from typer.testing import CliRunner, Result

from ghostcli.cli.table import _tables, table
from ghostcli.comparison import commands
from ghostcli.comparison.admission import admit
from ghostcli.comparison.rows import Options, Table
from ghostcli.comparison.tables import every, judged
from ghostcli.errors import UsageError
from ghostcli.paper import label, paper
from ghostcli.records import record
from ghostcli.render import formats, sentence, text_table
from ghostcli.render.text_table import Column, TextTable

STUDIES = Path(__file__).parent.parent / "runs" / "studies"
app = typer.Typer()
app.command()(table)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs"))


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def said(*arguments: object) -> str:
    result = ask(*arguments)
    assert result.exit_code == 0
    return result.stdout


def data(*arguments: object) -> Any:
    return json.loads(said(*arguments, "--json"))


def judged_tables(which: str, runs: Path, family: str | None) -> tuple[Table, ...]:
    return judged(_tables(which, admit(record.scan(runs)), family, Options()))


def test_json_has_the_contracts_keys(runs: Path) -> None:
    found = data("III", "--runs", runs, "--family", "paper")
    assert found["table"] == "III"
    assert [row["student"] for row in found["rows"]] == ["gns:1.0", "gns:1.3", "gns:1.6", "gnd:1.0"]
    first, empty = found["rows"][0], found["rows"][1]
    assert first["teachers"] == list(CHAIN)
    assert (first["paper"], first["paper_delta"], first["verdict"]) == (90.6, -0.77, "worse")
    assert set(first["ours"]) == {"mean", "sd", "n"}
    assert sum(first["accuracies"]) / len(first["runs"]) == pytest.approx(first["ours"]["mean"])
    assert len(first["accuracies"]) == len(first["runs"]) == first["ours"]["n"] > 1
    best = data("III", "--runs", runs, "--family", "paper", "--paper-metric")["rows"][0]
    assert sum(best["accuracies"]) / best["ours"]["n"] == pytest.approx(best["ours"]["mean"])
    assert set(first["delta"]) == {"mean", "low", "high"}
    assert first["delta"]["low"] < first["delta"]["mean"] < first["delta"]["high"]
    assert (empty["ours"], empty["delta"], empty["verdict"]) == (None, None, None)
    assert empty["command"] == f"ghost assist-chain resnet50 resnet34 resnet18 --student gns:1.3 --runs {runs}"


def test_json_is_a_list_only_where_there_are_several(runs: Path, tmp_path: Path) -> None:
    several = data("III", "--runs", runs)
    assert [item["family"] for item in several] == ["paper", "published"]
    assert isinstance(data("III", "--runs", tmp_path), dict)
    everything = data("--runs", runs)
    assert [item["table"] for item in everything] == ["I", "II", "III", "IV"] * 2 + ["also run"]
    assert [item["table"] for item in data("all", "--runs", tmp_path)] == ["I", "II", "III", "IV"]


def test_json_of_the_swapped_rows_has_both_numbers(tmp_path: Path) -> None:
    first = data("IV", "--runs", tmp_path)["rows"][0]
    assert (first["paper"], first["paper_logged"]) == (90.51, {"accuracy": 90.83, "delta": -0.54})


def test_the_four_protocols_side_by_side(runs: Path) -> None:
    found = data("main", "--runs", runs)
    rows = {(row["table"], row["student"]): row for row in found["rows"]}
    assert len(found["rows"]) == len(paper().rows)
    chain = rows["III", "gns:1.0"]
    assert set(chain["families"]) == {"published", "paper", "ghost"}
    assert chain["families"]["ghost"]["ours"] is None
    assert chain["families"]["published"]["ours"]["n"] == 1
    assert chain["ours"] == chain["families"]["paper"]["ours"]
    text = said("main", "--runs", runs)
    assert "Teaching under paper: 2 better, 1 worse, 1 not distinguished." in text
    assert "▼ worse" in text


def test_text_is_readable_at_a_hundred_columns(runs: Path) -> None:
    for which in ("all", "main"):
        text = said(which, "--runs", runs, "--cost", "--more")
        tabular = [line for line in text.splitlines() if not line.startswith("   ghost ")]
        assert max(map(len, tabular)) <= 100
    assert "91.50 ± 0.10 (3)" in text


def test_text_of_an_empty_table_says_what_fills_it(tmp_path: Path) -> None:
    text = said("II", "--runs", tmp_path)
    for row in paper().table("II").rows:
        assert f"{row.accuracy:.2f}" in text
        assert f"   {commands.of_row(row, 'paper', None, tmp_path)}\n" in text
    assert f"ghost reproduce II --family paper --runs {tmp_path}" in text


@pytest.mark.parametrize("which", ["I", "II", "III", "also"])
def test_narrow_terminals_break_no_word_and_lose_no_delta(which: str, runs: Path) -> None:
    shown = judged_tables(which, runs, "paper")
    for width in (60, 80, 140):
        text = formats.text([text_table.results(made) for made in shown], width)
        lines = [line for line in text.splitlines() if not line.startswith("   ghost ")]
        assert max(map(len, lines)) <= width
        for row in (row for made in shown for row in made.filled):
            assert f"{row.ours.mean:.2f}" in text
            assert all(label(name) in text for name in row.teachers)
            assert row.delta is None or f"[{row.delta.low:+.2f}, {row.delta.high:+.2f}]" in text
            assert (row.verdict or "").split(" ")[-1] in text


def test_the_protocols_side_by_side_fit_sixty_columns(runs: Path) -> None:
    shown = judged_tables("main", runs, None)
    made = text_table.side_by_side({f: [t for t in shown if t.family == f] for f in ("published", "paper", "ghost")})
    text = formats.text([made], 60)
    assert max(map(len, text.splitlines())) <= 60
    for each in shown:
        for row in each.filled:
            assert row.delta is None or f"[{row.delta.low:+.2f}, {row.delta.high:+.2f}]" in text


def test_one_run_on_each_side_is_marked_at_its_delta(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=90.0)
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), accuracy=80.0)
    text = said("II", "--runs", tmp_path)
    line = next(line for line in text.splitlines() if "VGG13" in line and "-10.00 [" in line)
    assert "]†" in line
    assert "seed noise alone can cause this gap, so it is not distinguished" in " ".join(text.split())
    assert "`--seed 0 --seed 1 --seed 2`" in " ".join(text.split())
    assert "worse" not in text


def test_one_run_is_called_the_same_in_tables_and_sentences(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", accuracy=90.0)
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), accuracy=80.0)
    [row] = judged_tables("II", tmp_path, "paper")[0].filled
    assert row.verdict == "not distinguished"
    assert sentence.verdict(row) == "not distinguished, because one side has one run (difference -10.00 points)"
    assert "no verdict" not in said("II", "--runs", tmp_path)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_number_is_cut_however_long_the_other_cells_are(tmp_path, width):
    """A path and a checksum have no place to break a line at."""
    start = {"start": "run/gns-0.3-plain-1a2b3c4d/s0", "start_sha256": "ab" * 32}
    for seed in range(3):
        common = {"seed": seed, "epochs": 3, "data": "folder:/home/ada/" + "pictures" * 12}
        write_run(tmp_path, "gns:0.3", accuracy=71.0 + seed, sections={"model": start}, **common)
        write_run(tmp_path, "gns:0.3", "kd", ("gns:0.7",), accuracy=83.0 + seed, sections={"model": start}, **common)
    tables = [text_table.results(t) for t in judged(every(admit(record.scan(tmp_path)))) if t.filled]
    text = " ".join(formats.text(tables, width).split())
    for number in ("72.00", "84.00", "+12.00", "better"):
        assert number in text
    lines = formats.text(tables, width).splitlines()
    assert max(map(len, lines[: lines.index("")])) <= width, "the table itself; commands below it may be longer"


@pytest.mark.parametrize("width", [40, 60, 64])
def test_no_number_of_a_committed_study_is_cut(width: int) -> None:
    shown = judged(every(admit(record.scan(crash.ROOT / "runs/studies/cifar10"))))
    text = " ".join(formats.text([text_table.results(made) for made in shown if made.filled], width).split())
    for row in (row for made in shown for row in made.filled):
        for delta in filter(None, (row.delta, row.control and row.control.delta)):
            assert f"[{delta.low:+.2f}, {delta.high:+.2f}]" in text, text
    assert "minus control" in text


def test_without_a_name_only_the_tables_with_own_runs_are_printed(tmp_path: Path) -> None:
    def titles(*arguments: object) -> list[str]:
        lines = said(*arguments, "--runs", tmp_path).splitlines()
        return [found[0] for line in lines if (found := re.match(r"Table [IV]+(?=\.)|Your runs(?= that)", line))]

    every = ["Table I", "Table II", "Table III", "Table IV"]
    assert titles() == titles("all") == every
    write_run(tmp_path, "gns:0.3", data="digits")
    assert titles() == ["Your runs"]
    assert titles("all") == [*every, "Your runs"]
    note = f"No runs yet: tables I, II, III, IV. `ghost table all --runs {tmp_path}` prints them too."
    assert note in " ".join(said("--runs", tmp_path).split())
    write_run(tmp_path, "gns:1.0", status="interrupted")  # its reason stands below table I
    assert titles() == ["Your runs", "Table I"]
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",))
    assert titles() == ["Table II", "Your runs", "Table I"]


def test_table_four_says_that_it_is_swapped(tmp_path: Path) -> None:
    for form in ("text", "markdown", "latex"):
        assert "swapped" in said("IV", "--runs", tmp_path, "--format", form)


def test_marks_have_their_notes(runs: Path) -> None:
    text = said("III", "--runs", runs, "--family", "published")
    assert "†¹²" in text
    assert "† One run" in text
    assert "¹ Check, near-one-hot" in text
    assert "² Check, unshuffled" in text
    assert "Left out, non-finite: 1" in said("II", "--runs", runs, "--family", "paper")


def test_a_finding_is_told_with_the_teacher_that_it_is_about(tmp_path: Path) -> None:
    for teacher, percent in (("vgg13", 9.4), ("resnet50", 18.8)):
        message = f"{teacher}: teacher accuracy {percent} % is not above chance"
        finding = {"code": "no-better-than-chance", "level": "warn", "message": message}
        write_run(tmp_path, "gns:1.0", "kd", (teacher,), check=[finding])
    text = said("II", "--runs", tmp_path)
    rows = {teacher: line for line in text.splitlines()[::-1] for teacher in ("VGG13", "ResNet-50") if teacher in line}
    for message in ("vgg13: teacher accuracy 9.4 %", "resnet50: teacher accuracy 18.8 %"):
        [mark] = re.findall(f"(.) Check, no-better-than-chance: {message}", text)
        teacher = "VGG13" if "vgg13" in message else "ResNet-50"
        assert f"†{mark}" in rows[teacher]


def test_a_small_budget_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, epochs=2, limit=2000, train_images=2000)
    text = said("I", "--runs", tmp_path)
    assert "cifar10, 2,000 images × 2 epochs" in text
    assert "Not the paper's budget" in text
    assert "Only 16 steps per run" in text

    write_run(tmp_path, epochs=20, limit=2000, train_images=2000)
    assert "steps per run" not in said("I", "--runs", tmp_path)


def test_the_papers_metric_is_called_optimistic(runs: Path) -> None:
    assert "Optimistic" in said("I", "--runs", runs, "--paper-metric")
    assert "Optimistic" not in said("I", "--runs", runs)


def test_markdown_is_a_table(runs: Path) -> None:
    text = said("II", "--runs", runs, "--family", "paper", "--format", "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8
    assert len({line.count("|") for line in lines}) == 1
    assert "GN-S 1.0x &lt; ResNet-18: `ghost distill resnet18 --student gns:1.0 --runs " in text


def test_latex_is_plain_and_balanced(runs: Path) -> None:
    text = said("II", "--runs", runs, "--family", "paper", "--format", "latex")
    printed = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert printed.isascii()
    assert printed.count("{") == printed.count("}")
    assert printed.count(r"\begin{table}") == printed.count(r"\end{table}") == 1
    rows = [line for line in printed.splitlines() if line.startswith("GN-")]
    assert len(rows) == 8
    assert all(line.count("&") == 8 and line.endswith(r"\\") for line in rows)
    assert r"$^{a}$" in printed
    assert r"95 \%" in printed


@pytest.mark.parametrize("study", sorted(path.name for path in STUDIES.iterdir()))
def test_the_latex_of_every_study_is_ascii(study: str) -> None:
    """pdflatex stops at other signs: an α, as in `kd T=4 α=0.1`, was one."""
    lines = said("all", "--runs", STUDIES / study, "--format", "latex").splitlines()
    assert [line for line in lines if not line.isascii() and not line.startswith("%")] == []


def test_latex_escapes_what_a_name_may_hold() -> None:
    made = TextTable("a_b", (Column("x", "X"),), ({"x": "50 % & ~{}\\"},))
    assert r"50 \% \& \textasciitilde{}\{\}\textbackslash{} \\" in formats.latex([made])


def test_csv_has_a_line_a_row_and_full_digits(runs: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(said("all", "--runs", runs, "--format", "csv"))))
    assert len(lines) == 2 * len(paper().rows) + 2
    own = {x["table"]: x for x in lines if (x["family"], x["student"]) == ("paper", "gns:1.0") and x["table"] != "II"}
    first, baseline = own["III"], own["I"]
    assert first["teachers"] == "resnet50 resnet34 resnet18"
    assert float(first["delta_mean"]) == pytest.approx(
        float(first["ours_mean"]) - float(baseline["ours_mean"]), abs=1e-5
    )
    assert first["verdict"] == "worse"
    empty = next(x for x in lines if (x["table"], x["student"]) == ("III", "gns:1.6"))
    assert (empty["ours_mean"], empty["verdict"]) == ("", "")
    assert len(list(csv.DictReader(io.StringIO(said("main", "--runs", runs, "--format", "csv"))))) == 3 * 30


def test_cost_and_more(runs: Path) -> None:
    row = data("II", "--runs", runs, "--family", "paper", "--cost", "--more")["rows"][1]
    assert row["hours"]["full"] == 2.0
    assert row["hours"]["trainings"] == 2
    assert 0 < row["ece"] < 0.1
    assert (row["nll"], row["agreement"]) == (pytest.approx(0.31), {"resnet50": 93.0})
    text = said("II", "--runs", runs, "--family", "paper", "--cost", "--more")
    assert "Shared" in text
    assert "Agrees with" in text
    assert "hours" not in data("II", "--runs", runs, "--family", "paper")["rows"][1]


def test_what_a_file_says_cannot_drive_the_terminal(tmp_path: Path) -> None:
    finding = {"code": "x", "level": "warn", "message": "\x1b[2Jgone"}
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), check=[finding])
    for form in ("text", "markdown", "latex", "json"):
        assert "\x1b" not in said("II", "--runs", tmp_path, "--format", form)


def test_the_margin_is_what_is_called_equivalent(runs: Path) -> None:
    verdicts = [data("II", "--runs", runs, "--family", "paper", "--margin", m)["rows"][2]["verdict"] for m in (0.1, 2)]
    assert verdicts == ["not distinguished", "equivalent"]


def test_also_alone(runs: Path, tmp_path: Path) -> None:
    assert len(data("also", "--runs", runs)["rows"]) == 2
    with pytest.raises(UsageError, match="every run fills a row"):
        ask("also", "--runs", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["V"], "table 'V' does not exist; there are I, II, III, IV, all, main, also"),
        (["I", "--family", "papers"], "--family 'papers' does not exist"),
        (["I", "--format", "html"], "--format 'html' does not exist"),
        (["I", "--margin", "-1"], "--margin -1"),
        (["I", "--margin", "nan"], "--margin nan"),
        (["I", "--plot", "figure.bmp"], r"must end in \.png"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        ask(*arguments, "--runs", tmp_path)


def test_nothing_is_printed_before_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        table("I", runs=tmp_path, plot=tmp_path / "figure.bmp")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("which", ["I", "II", "main"])
def test_plots_beside_the_table(which: str, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "figure.png"
    said(which, "--runs", runs, "--plot", file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_reading_needs_no_torch_and_asking_no_scipy() -> None:
    code = (
        "import sys, ghostcli.cli.table, ghostcli.cli.plot, ghostcli.render.formats, ghostcli.render.text_table,"
        "ghostcli.render.pictures; "
        "print([name for name in ('torch', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
