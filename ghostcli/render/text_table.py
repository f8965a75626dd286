"""A table as cells of text, for text, Markdown and LaTeX.

Invariant: a column is identified by its key. Nothing depends on the words of a heading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ghostcli.comparison.cost import Cost, of_group
from ghostcli.comparison.groups import RunGroup
from ghostcli.comparison.labels import protocol
from ghostcli.comparison.rows import Line, Row, Table
from ghostcli.comparison.stats import Difference, Summary
from ghostcli.paper import joined, label
from ghostcli.render import notes
from ghostcli.render.notes import SINGLE, Lack, Marks

EMPTY = "–"
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "=", "not distinguished": "·"}
ALL = "all of them"


@dataclass(frozen=True)
class Column:
    """`wrap`: the minimum width of a column that may wrap; 0 for a column that may not."""

    key: str
    heading: str
    justify: str = "right"
    wrap: int = 0


@dataclass(frozen=True)
class TextTable:
    """`rows`: column key -> cell; a missing cell is blank. `parts`: numbers of the rows that start a new part.
    `behind`: the ids of the runs behind each row, where that is known.

    `notes` are footnotes of this table, `general` those that several tables share. `commands`: (row's name, command).
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, str], ...]
    notes: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    lacking: tuple[Lack, ...] = ()
    parts: tuple[int, ...] = ()
    behind: tuple[tuple[str, ...], ...] = ()


STUDENT = Column("student", "Student", "left")
STRATEGY = Column("strategy", "Strategy", "left", wrap=8)
PARAMETERS = Column("parameters", "M par.")
TEACHERS = Column("teachers", "Teachers", "left", wrap=14)
PROTOCOL = Column("protocol", "Protocol", "left", wrap=16)
PRINTED = Column("printed", "Printed")
PRINTED_DELTA = Column("printed_delta", "Δ")
OURS = Column("ours", "Ours")
DELTA = Column("delta", "Δ ours [95 %]")
FINDS = Column("finds", "Finds")
VERDICT = Column("verdict", "Verdict", "left")
RUN = Column("run", "Run", "left", wrap=30)
DIFFERS = Column("differs", "Differs in", "left", wrap=16)


def results(table: Table) -> TextTable:
    """The table of results."""
    marks = Marks.of(table.rows)
    taught = any(row.taught for row in table.rows)
    one_set = len({row.teachers for row in table.rows}) == 1
    also = not any(row.printed for row in table.rows)
    columns = [STUDENT, STRATEGY if also else PARAMETERS]
    columns += [TEACHERS] * (taught and not one_set)
    columns += [PROTOCOL] if also else [PRINTED, *[PRINTED_DELTA] * taught]
    verdicts = [
        DELTA,
        *[FINDS] * any(line.finds is not None for row in table.rows for line in row.lines),
        _verdict_column(table),
    ]
    columns += [OURS, *(verdicts if taught else [])]
    if any(row.differs is not None for row in table.rows):
        columns, one_set = [RUN, DIFFERS, OURS, *verdicts], False
    teachers = f"\nTeachers: {joined(table.rows[0].teachers, table.rows[0].strategy)}" if taught and one_set else ""
    control_key = TEACHERS.key if TEACHERS in columns else STUDENT.key
    lines = [line for row in table.rows for line in _lines(row, marks, control_key)]
    return TextTable(
        heading(table) + teachers,
        tuple(columns),
        tuple(cells for cells, _ in lines),
        (*notes.footnotes([table], marks), *notes.remarks(table)),
        tuple(notes.general([table])),
        tuple(empty_commands(table)),
        tuple(notes.lacks(table)),
        behind=tuple(tuple(run.id for run in group.runs) if group else () for _, group in lines),
    )


def _lines(row: Row, marks: Marks, control_key: str) -> Iterable[tuple[dict[str, str], RunGroup | None]]:
    """The cells of a row and of its control, each with their runs."""
    cells = {
        STUDENT.key: label(row.student),
        PARAMETERS.key: f"{row.parameters / 1e6:.3f}",
        TEACHERS.key: joined(row.teachers, row.strategy) or EMPTY,
        OURS.key: accuracy(row.ours, row.group) + marks.of_ours(row),
        **_comparison(row),
    }
    if row.printed:
        cells[PRINTED.key] = f"{row.printed.accuracy:.2f}{marks.of_printed(row)}"
        cells[PRINTED_DELTA.key] = points(row.printed.delta)
    elif row.group:
        cells[STRATEGY.key], cells[PROTOCOL.key] = row.group.how, protocol(row.group)
        cells[RUN.key], cells[DIFFERS.key] = row.name, differences(row.differs)
    yield cells, row.group
    if (control := row.control) and control.group:
        ours = accuracy(control.ours, control.group) + SINGLE * (control.ours.n == 1)
        yield {control_key: "control: blind", OURS.key: ours}, control.group
        yield {control_key: "taught minus control", **_comparison(control)}, None


def differences(found: dict[str, tuple[Any, Any]] | None) -> str:
    """What differs from the baseline, each on a line: `train.ema: 0.0 → 0.98`."""
    return EMPTY if found is None else "\n".join(f"{key}: {a} → {b}" for key, (a, b) in found.items()) or "nothing"


def _comparison(line: Line) -> dict[str, str]:
    """The cells of a comparison, of a row with its baseline or with its control."""
    return {
        DELTA.key: interval(line.delta),
        FINDS.key: EMPTY if line.finds is None else f"≥ {line.finds:.2f}",
        VERDICT.key: line.verdict or EMPTY,
    }


def _verdict_column(table: Table) -> Column:
    """The heading names the teachers' scope, if all seeds of every row had the same teachers."""
    groups = [row.group for row in table.rows if row.comparisons]
    if not groups or not all(group.one_teacher for group in groups):
        return VERDICT
    one = all(len(group.about.teachers) == 1 for group in groups)
    return replace(VERDICT, heading="Verdict for\nthis teacher" if one else "Verdict for\nthese teachers")


def heading(table: Table) -> str:
    name = "" if table.family == "any" else f"Table {table.name}. "
    description = table.cohort.describe() if table.cohort else "no runs yet"
    family = "" if table.family == "any" else f" · {table.family}: {description}"
    return f"{name}{table.title}{family}"


def cost(table: Table, known: dict[str, Cost]) -> TextTable:
    """Training hours of the rows that have runs."""
    costs = [(row.name, of_group(row.group, known)) for row in table.filled]
    rows = tuple(
        {
            "run": name,
            "own": _number(cost.own),
            "amortised": _number(cost.amortised),
            "full": _number(cost.full) + ("" if cost.whole else "*"),
            "trainings": f"{cost.trainings:g}",
        }
        for name, cost in costs
    )
    general = [
        "Hours of training on one device, without evaluation, mean over seeds. Own: the run with its teachers' "
        "logits, live or into their tables; entries that an earlier run or `ghost teach fill` made are not counted "
        "again. Shared: each teacher's hours are divided among the finished runs it taught. Full: all hours of its "
        "teachers, as if this were their only student."
    ]
    if not all(cost.whole for _, cost in costs):
        general.append("* The record of a teacher is missing, and its hours with it.")
    numbers = (Column("own", "Own"), Column("amortised", "Shared"), Column("full", "Full"))
    columns = (RUN, *numbers, Column("trainings", "Trainings"))
    return TextTable(f"{heading(table)}: cost", columns, rows, general=tuple(general))


def calibration(table: Table) -> TextTable:
    """Calibration, and agreement with the teachers, of the rows that have runs."""
    rows = tuple(
        {
            "run": row.name,
            "ece": _number(row.group.ece, 100),
            "nll": _number(row.group.nll),
            "agreement": ", ".join(f"{label(name)} {share:.1f}" for name, share in row.group.agreement.items())
            or EMPTY,
        }
        for row in table.filled
    )
    columns = (RUN, Column("ece", "ECE (%)"), Column("nll", "NLL"))
    columns += (Column("agreement", "Agrees with (%)", "left", wrap=20),)
    general = (
        "ECE (15 bins) and NLL on the test images, without temperature scaling. Agreement: the same first choice. All "
        "three are of the epoch that is a run's result, also where the accuracies are of another epoch.",
    )
    return TextTable(f"{heading(table)}: calibration", columns, rows, general=general)


def side_by_side(by_family: dict[str, Sequence[Table]]) -> TextTable:
    """The printed numbers and those of each family, row by row."""
    every = [table for tables in by_family.values() for table in tables]
    marks = Marks.of(row for table in every for row in table.rows)
    rows: list[dict[str, str]] = []
    parts = []
    for tables in zip(*by_family.values(), strict=True):
        parts.append(len(rows))
        for lines in zip(*(table.rows for table in tables), strict=True):
            printed = lines[0].printed
            text = f"{printed.accuracy:.2f}{marks.of_printed(lines[0])}"
            text += f"\n{points(printed.delta)}" if printed.delta is not None else ""
            control = "\n\n  minus its control" * any(len(row.lines) > 1 for row in lines)
            cells = {STUDENT.key: _short(lines[0]) + control, PRINTED.key: text}
            for family, row in zip(by_family, lines, strict=True):
                cells[family] = accuracy(row.ours, row.group) + marks.of_ours(row) + _deltas(row)
            rows.append(cells)
    remarks = list(notes.footnotes(every, marks))
    for family, tables in by_family.items():
        protocols = dict.fromkeys(table.cohort.describe() for table in tables if table.cohort)
        remarks.append(f"{family}: {'; '.join(protocols) or 'no runs yet'}.")
        if verdicts := _count_verdicts([row for table in tables for row in table.rows]):
            remarks.append(f"Teaching under {family}: {verdicts}.")
    remarks += dict.fromkeys(note for table in every for note in notes.remarks(table))
    columns = (STUDENT, PRINTED, *(Column(family, family) for family in by_family))
    signs = "  ".join(f"{sign} {name}" for name, sign in SIGNS.items())
    return TextTable(
        f"Printed, and ours by protocol: {', '.join(by_family)}",
        columns,
        tuple(rows),
        tuple(remarks),
        (*notes.general(every), signs),
        lacking=tuple(lack for table in every for lack in notes.lacks(table)),
        parts=tuple(parts[1:]),
    )


def _count_verdicts(rows: Sequence[Row]) -> str:
    """The number of rows by verdict, and how many of the better rows are also better than their control."""
    counts = {name: sum(row.verdict == name for row in rows) for name in SIGNS}
    phrases = {name: f"{n} {name}" for name, n in counts.items() if n}
    controls = [row.control.verdict for row in rows if row.verdict == "better" and row.control and row.control.verdict]
    if controls:
        phrases["better"] += f" ({controls.count('better')} of them better than their control)"
    return ", ".join(phrases.values())


def _deltas(row: Row) -> str:
    """The differences below an accuracy: from the baseline, and from the control if there is one."""
    if not row.comparisons:
        return ""
    return "".join(f"\n{interval(line.delta)} {SIGNS.get(line.verdict or '', '')}".rstrip() for line in row.lines)


def empty_commands(table: Table) -> Iterable[tuple[str, str]]:
    """The command for each empty row."""
    empty = [(row.name, row.command) for row in table.rows if row.ours is None and row.command]
    yield from empty
    if len(empty) > 1 and table.full_budget:
        yield ALL, table.command


def _short(row: Row) -> str:
    """A row's student and teachers. For a chain or ensemble: the strategy instead of the teachers."""
    phrase = row.strategy if row.strategy in ("chain", "ensemble") else joined(row.teachers, row.strategy)
    return f"{label(row.student)} < {phrase}" if row.taught else label(row.student)


def points(delta: float | None) -> str:
    return EMPTY if delta is None else f"{delta:+.2f}"


def accuracy(ours: Summary | None, group: RunGroup | None) -> str:
    """`91.20 ± 0.10 (3)`; the numbers of several teachers and of failed seeds are shown beside n."""
    if ours is None or group is None:
        return EMPTY
    lost = f", {group.teacher_count} teachers" if group.teacher_count > 1 else ""
    lost += f", {len(group.failed)} failed" if group.failed else ""
    spread = f" ± {ours.sd:.2f} ({ours.n}{lost})" if ours.sd is not None else f" (1{lost})" if lost else ""
    return f"{ours.mean:.2f}{spread}"


def interval(delta: Difference | None) -> str:
    if delta is None:
        return EMPTY
    within = f" [{delta.low:+.2f}, {delta.high:+.2f}]" if delta.low is not None else ""
    return points(delta.mean) + within + SINGLE * delta.of_two_networks


def _number(value: float | None, scale: float = 1) -> str:
    return EMPTY if value is None else f"{scale * value:.3g}"
