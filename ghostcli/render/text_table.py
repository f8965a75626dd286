"""A table as cells of text, with its footnotes; the same for text, Markdown and LaTeX.

Invariant: every mark in a cell has its footnote, and no footnote stands without a mark or a cell it explains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ghostcli.compare.cost import Cost, of_arm
from ghostcli.compare.labels import protocol
from ghostcli.compare.stats import RUNS_ONLY, Difference, Summary
from ghostcli.compare.tables import Row, Table
from ghostcli.compare.verdicts import UNDECIDED
from ghostcli.paper import joined, label, paper
from ghostcli.recipe.models import FEW_STEPS

EMPTY = "–"
LETTERS, DIGITS = "ᵃᵇᶜᵈᵉᶠᵍ", "¹²³⁴⁵⁶⁷⁸⁹"
SINGLE = "†"
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "=", "not distinguished": "·"}
FOUND = 4
ALL = "all of them"


@dataclass(frozen=True)
class Lack:
    """What a row is not held against: `phrase` with the names in it, and `remedy` for all rows that it mends."""

    phrase: str
    name: str
    remedy: str


@dataclass(frozen=True)
class Grid:
    """`columns` are (head, left|right); `rows` hold a string a column; `groups` are row numbers that begin a part."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    lacking: tuple[Lack, ...] = ()
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Marks:
    """Footnote marks of a table: printed rows by letter, findings of the teaching check by number."""

    printed: dict[str, str]
    findings: dict[str, str]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Marks:
        rows = list(rows)
        notes = dict.fromkeys(row.printed.note for row in rows if row.printed and row.printed.note)
        codes = dict.fromkeys(found.code for row in rows for found in row.findings)
        return cls(_numbered(notes, LETTERS), _numbered(codes, DIGITS))

    def of_printed(self, row: Row) -> str:
        return self.printed.get(row.printed.note or "", "") if row.printed else ""

    def of_ours(self, row: Row) -> str:
        single = SINGLE if row.ours and row.ours.n == 1 else ""
        return single + "".join(self.findings[found.code] for found in row.findings)


def _numbered(keys: Iterable[str], signs: str) -> dict[str, str]:
    return {key: signs[i] if i < len(signs) else f"({i + 1})" for i, key in enumerate(keys)}


def grid(table: Table) -> Grid:
    """The table proper."""
    marks = Marks.of(table.rows)
    columns: list[tuple[str, str, Callable[[Row], str]]] = [("Student", "left", lambda row: label(row.student))]
    taught = any(row.taught for row in table.rows)
    one_set = len({row.teachers for row in table.rows}) == 1
    also = not any(row.printed for row in table.rows)
    if also:
        columns.append(("Strategy", "left", lambda row: row.arm.how))
    else:
        columns.append(("M par.", "right", lambda row: parameters(row.parameters)))
    if taught and not one_set:
        columns.append(("Teachers", "left", lambda row: joined(row.teachers, row.strategy) or EMPTY))
    if also:
        columns.append(("Protocol", "left", lambda row: protocol(row.arm)))
    else:
        columns.append(("Printed", "right", lambda row: f"{row.printed.accuracy:.2f}{marks.of_printed(row)}"))
        if taught:
            columns.append(("Δ", "right", lambda row: points(row.printed.delta)))
    columns.append(("Ours", "right", lambda row: accuracy(row.ours) + marks.of_ours(row)))
    if taught:
        columns.append(("Δ ours [95 %]", "right", lambda row: interval(row.delta)))
        columns.append(("Verdict", "left", lambda row: row.verdict or EMPTY))
    teachers = f"\nTeachers: {joined(table.rows[0].teachers, table.rows[0].strategy)}" if taught and one_set else ""
    return Grid(
        heading(table) + teachers,
        tuple((head, justify) for head, justify, _ in columns),
        tuple(line for row in table.rows for line in _lines(row, columns)),
        (*footnotes([table], marks), *remarks(table)),
        tuple(general_notes([table])),
        tuple(empty_commands(table)),
        tuple(lacks(table)),
    )


Columns = Sequence[tuple[str, str, Callable[[Row], str]]]


def _lines(row: Row, columns: Columns) -> Iterable[tuple[str, ...]]:
    """A row's cells, and below them the control's where it was run."""
    yield tuple(cell(row) for _, _, cell in columns)
    against = row.control
    if against and against.ours:
        heads = [head for head, _, _ in columns]
        said = {
            "Teachers" if "Teachers" in heads else "Student": f"control, smoothed {against.smoothing:g}",
            "Ours": accuracy(against.ours) + SINGLE * (against.ours.n == 1),
            "Δ ours [95 %]": interval(against.delta),
            "Verdict": against.verdict or EMPTY,
        }
        yield tuple(said.get(head, "") for head in heads)


def heading(table: Table) -> str:
    name = "Also run" if table.name == "also run" else f"Table {table.name}"
    made = table.group.describe() if table.group else "no runs yet"
    family = "" if table.family == "any" else f" · {table.family}: {made}"
    return f"{name}. {table.title}{family}"


def cost_grid(table: Table, known: dict[str, Cost]) -> Grid:
    """Training hours of the rows that have runs."""
    rows = table.filled
    found = [of_arm(row.arm, known) for row in rows]
    cells = [
        (
            row.name,
            _number(cost.own),
            _number(cost.amortised),
            _number(cost.full) + ("" if cost.whole else "*"),
            f"{cost.trainings:g}",
        )
        for row, cost in zip(rows, found, strict=True)
    ]
    said = [
        "Hours of training on one device, evaluation left out, a seed's mean. Own: with what the run had its teachers "
        "say, live or into their tables; what an earlier run or `ghost teach fill` put there is not counted again. "
        "Shared: with each teacher's hours divided among the finished runs it taught. Full: with all of them, as if "
        "this were its only student."
    ]
    if not all(cost.whole for cost in found):
        said.append("* a teacher's record is gone, and its hours with it.")
    columns = (("Run", "left"), ("Own", "right"), ("Shared", "right"), ("Full", "right"), ("Trainings", "right"))
    return Grid(f"{heading(table)}: cost", columns, tuple(cells), general=tuple(said))


def more_grid(table: Table) -> Grid:
    """Calibration, and agreement with the teachers, of the rows that have runs."""
    cells = []
    for row in table.filled:
        together = row.arm.agreement
        agrees = ", ".join(f"{label(name)} {percent:.1f}" for name, percent in together.items())
        cells.append((row.name, _number(row.arm.ece, 100), _number(row.arm.mean("nll")), agrees or EMPTY))
    columns = (("Run", "left"), ("ECE (%)", "right"), ("NLL", "right"), ("Agrees with (%)", "left"))
    said = (
        "ECE in 15 bins and NLL on the test images, the temperature left alone; agreement of first choices there. "
        "All are of a run's own result, whatever epoch the accuracies are of.",
    )
    return Grid(f"{heading(table)}: calibration", columns, tuple(cells), general=said)


def side_by_side(by_family: dict[str, Sequence[Table]]) -> Grid:
    """Printed numbers and each family's, row by row: does it reproduce, what was the confound worth, does it help?"""
    marks = Marks.of(row for tables in by_family.values() for table in tables for row in table.rows)
    cells, parts = [], []
    for tables in zip(*by_family.values(), strict=True):
        parts.append(len(cells))
        for lines in zip(*(table.rows for table in tables), strict=True):
            printed = lines[0].printed
            text = f"{printed.accuracy:.2f}{marks.of_printed(lines[0])}"
            text += f"\n{points(printed.delta)}" if printed.delta is not None else ""
            ours = (accuracy(row.ours) + marks.of_ours(row) + _deltas(row) for row in lines)
            held = any(row.control and row.control.ours for row in lines)
            cells.append((_short(lines[0]) + "\n\n  less its control" * held, text, *ours))
    said = list(footnotes([table for tables in by_family.values() for table in tables], marks))
    for family, tables in by_family.items():
        budgets = dict.fromkeys(table.group.describe() for table in tables if table.group)
        said.append(f"{family}: {'; '.join(budgets) or 'no runs yet'}.")
        if verdicts := _counted([row for table in tables for row in table.rows]):
            said.append(f"Teaching under {family}: {verdicts}.")
        smoothed = {row.control.smoothing for table in tables for row in table.rows if row.control and row.control.ours}
        if smoothed:
            said.append(f"Controls under {family}: labels smoothed by {', '.join(f'{e:g}' for e in sorted(smoothed))}.")
    said += dict.fromkeys(note for tables in by_family.values() for table in tables for note in remarks(table))
    columns = (("Student", "left"), ("Printed", "right"), *((family, "right") for family in by_family))
    names = ", ".join(by_family)
    signs = "  ".join(f"{sign} {name}" for name, sign in SIGNS.items())
    general = (*general_notes([table for tables in by_family.values() for table in tables]), signs)
    title = f"Printed, and ours by protocol: {names}"
    lack = tuple(lack for tables in by_family.values() for table in tables for lack in lacks(table))
    return Grid(title, columns, tuple(cells), tuple(said), general, lacking=lack, parts=tuple(parts[1:]))


def _counted(rows: Sequence[Row]) -> str:
    """How many rows have which verdict, and how many of the better ones a control too."""
    counts = {name: sum(row.verdict == name for row in rows) for name in SIGNS}
    said = {name: f"{n} {name}" for name, n in counts.items() if n}
    held = [row.control.verdict for row in rows if row.verdict == "better" and row.control and row.control.verdict]
    if held:
        said["better"] += f" ({held.count('better')} of them better than their control)"
    return ", ".join(said.values())


def _deltas(row: Row) -> str:
    """The deltas below an accuracy: against the baseline, and against the control where it was run."""
    if row.delta is None:
        return ""
    against = row.control
    text = f"\n{interval(row.delta)} {SIGNS.get(row.verdict or '', '')}".rstrip()
    if against and against.delta:
        text += f"\n{interval(against.delta)} {SIGNS.get(against.verdict or '', '')}".rstrip()
    return text


def footnotes(tables: Sequence[Table], marks: Marks) -> Iterable[str]:
    """What the marks mean."""
    for note, mark in marks.printed.items():
        yield f"{mark} {paper().notes[note]}"
    findings = [found for table in tables for row in table.rows for found in row.findings]
    for code, mark in marks.findings.items():
        yield f"{mark} Check, {code}: {next(found.message for found in findings if found.code == code)}"


def remarks(table: Table) -> Iterable[str]:
    """What must be known about this table's rows besides."""
    rows = table.filled
    for row in rows:
        if _welch_disagrees(row):
            yield f"Welch's test disagrees on {row.name} (p = {row.delta.welch:.3f} against {row.delta.p:.3f})."
    if table.mixed and rows:
        yield "Mixed: runs of different protocols and recipes are pooled, as asked; a Δ may be theirs, not teaching's."
    elif not table.full_budget:
        source = paper().source
        yield (
            f"Not the paper's budget ({source.train_images:,} images × {source.epochs} epochs): compare these rows "
            "with one another, not with the printed ones."
        )
        steps = min((row.arm.steps for row in rows if row.arm.steps), default=FEW_STEPS)
        if steps < FEW_STEPS:
            yield f"{steps} steps a run teach next to nothing: what is alike here is alike untrained."
    yield from _left_out(table)


def general_notes(tables: Sequence[Table]) -> Iterable[str]:
    """How the numbers were made: said once below several tables."""
    rows = [row for table in tables for row in table.filled]
    best = tables[0].metric == "best"
    ours = [row.ours for row in rows] + [row.control.ours for row in rows if row.control and row.control.ours]
    if any(made.n > 1 for made in ours):
        yield "Ours: mean ± standard deviation over seeds (how many)."
    if any(made.n == 1 for made in ours):
        yield (
            f"{SINGLE} One seed: no spread, so no verdict."
            + " There is none at a best epoch that is not the run's result." * best
        )
    if any(delta.of_two_networks for row in rows for delta in _all_deltas(row)):
        yield (
            f"{SINGLE} at a Δ: a side has one run. Its interval is these networks' on test images alone, and two "
            f"seeds of one job part as far, so it has no verdict but `{UNDECIDED}`. A verdict needs seeds: "
            f"`--seed 0 --seed 1 --seed 2` with the command that trains, `--seeds 3` with `ghost reproduce`."
        )
    if any(row.delta for row in rows):
        how = _how_wide(rows)
        yield (
            f"Δ ours: against the untaught student of the same protocol, {how}; every seed has the same teachers. "
            "Verdicts: p < 5 % after correction over the table's comparisons; equivalent: two one-sided tests "
            f"within ±{tables[0].margin:g}."
        )
    if any(row.control and row.control.ours for row in rows):
        yield (
            "Control: untaught, on labels smoothed by that share, which softens as a teacher does and tells nothing "
            "of the image. Its Δ is the row above minus the control; a gain that comes of teaching beats it too."
        )
    if any(row.taught for row in rows) and tables[0].equal_budget:
        yield (
            "Equal budgets: the baseline saw as many training images as the row's run and all the trainings below it "
            "together, whatever the size of the networks."
        )
    if rows and best:
        yield "Optimistic: each accuracy is the best epoch's, chosen on the test set, as in the paper."


def lacks(table: Table) -> Iterable[Lack]:
    """The comparisons that cannot be made, and those that a gain was not yet held against, with what makes them."""
    rows = table.filled
    for row in rows:
        if row.missing_baseline:
            yield Lack("No baseline for {}", row.name, row.missing_baseline)
    for row in rows:
        against = row.control
        if against is None or (against.ours is None and row.verdict != "better"):
            continue
        soft = "" if against.measured is None else f"targets as soft as labels smoothed by {against.measured:g}, "
        if against.ours is None:
            yield Lack("No control for {}", row.name, f"{soft}`{against.command}` makes it")
        elif not against.matched:
            yield Lack("Not matched, the control of {}", row.name, f"{soft}`{against.command}` makes that one")


def lacking(grids: Iterable[Grid]) -> Iterable[str]:
    """Each remedy once, with all the rows that it is for."""
    names: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for made in grids:
        for lack in made.lacking:
            names[lack.phrase, lack.remedy][lack.name] = None
    for (phrase, remedy), found in names.items():
        yield f"{phrase.format('; '.join(found))}: {remedy}"


def _all_deltas(row: Row) -> list[Difference]:
    found = (row.delta, row.control.delta if row.control else None)
    return [delta for delta in found if delta]


def _how_wide(rows: Sequence[Row]) -> str:
    tests = {row.delta.test for row in rows if row.delta}
    both, seeds = "95 % interval over seeds and test images (two levels)", "over seeds alone"
    if not tests & {RUNS_ONLY, None}:
        return both
    if tests <= {RUNS_ONLY, None}:
        return f"95 % interval {seeds}, since no predictions are of these accuracies"
    return f"{both}, {seeds} where no predictions are of these accuracies"


def _welch_disagrees(row: Row) -> bool:
    delta = row.delta
    return bool(delta and delta.welch is not None and delta.p is not None and (delta.welch < 0.05) != (delta.p < 0.05))


def _left_out(table: Table) -> Iterable[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for out in table.left_out:
        by_reason[out.reason].append(out.run)
    for reason, runs in by_reason.items():
        some = ", ".join(runs[:FOUND]) + (", ..." if len(runs) > FOUND else "")
        yield f"Left out, {reason}: {len(runs)} ({some})"


def empty_commands(table: Table) -> Iterable[tuple[str, str]]:
    """What to type for each empty row."""
    empty = [(row.name, row.command) for row in table.rows if row.ours is None and row.command]
    yield from empty
    if len(empty) > 1 and table.full_budget and not table.mixed:
        yield ALL, table.whole


def _short(row: Row) -> str:
    """A row's student and teachers where the table's number says of which strategy it is."""
    phrase = {"chain": "chain", "ensemble": "ensemble"}.get(row.strategy, joined(row.teachers, row.strategy))
    return f"{label(row.student)} < {phrase}" if row.taught else label(row.student)


def parameters(count: int | None) -> str:
    """In millions."""
    return EMPTY if count is None else f"{count / 1e6:.3f}"


def points(delta: float | None) -> str:
    return EMPTY if delta is None else f"{delta:+.2f}"


def accuracy(ours: Summary | None) -> str:
    if ours is None:
        return EMPTY
    return f"{ours.mean:.2f}" + (f" ± {ours.sd:.2f} ({ours.n})" if ours.sd is not None else "")


def interval(delta: Difference | None) -> str:
    if delta is None:
        return EMPTY
    within = f" [{delta.low:+.2f}, {delta.high:+.2f}]" if delta.low is not None else ""
    return points(delta.mean) + within + SINGLE * delta.of_two_networks


def _number(value: float | None, scale: float = 1) -> str:
    return EMPTY if value is None else f"{scale * value:.3g}"
