"""A table as cells of text, with its footnotes; the same for text, Markdown and LaTeX.

Invariant: every mark in a cell has its footnote, and no footnote stands without a mark or a cell it explains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ghostcli.report.cost import Cost, of_arm
from ghostcli.report.paper import FEW_STEPS, joined, label, paper
from ghostcli.report.stats import Difference, Summary
from ghostcli.report.tables import Row, Table

EMPTY = "–"
LETTERS, DIGITS = "ᵃᵇᶜᵈᵉᶠᵍ", "¹²³⁴⁵⁶⁷⁸⁹"
SINGLE = "†"
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "=", "not distinguished": "·"}
FOUND = 4
ALL = "all of them"


@dataclass(frozen=True)
class Grid:
    """`columns` are (head, left|right); `rows` hold a string a column; `groups` are row numbers that begin a part."""

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
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
        columns.append(("Strategy", "left", _strategy))
    else:
        columns.append(("M par.", "right", lambda row: parameters(row.parameters)))
    if taught and not one_set:
        columns.append(("Teachers", "left", lambda row: joined(row.teachers, row.strategy) or EMPTY))
    if also:
        columns.append(("Protocol", "left", _protocol))
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
            _name(row),
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
        cells.append((_name(row), _number(row.arm.ece, 100), _number(row.arm.mean("nll")), agrees or EMPTY))
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
            cells.append((_name(lines[0], short=True) + "\n\n  less its control" * held, text, *ours))
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
    return Grid(title, columns, tuple(cells), tuple(said), general, parts=tuple(parts[1:]))


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
            yield f"Welch's test disagrees on {_name(row)} (p = {row.delta.welch:.3f} against {row.delta.p:.3f})."
    for row in rows:
        if row.missing_baseline:
            yield f"No baseline for {_name(row)}: {row.missing_baseline}"
    yield from _controls(rows)
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
            f"{SINGLE} One seed: no spread. Its interval takes the other arm's spread where that has more seeds, "
            "else it covers the choice of test images only."
            + " There is none at a best epoch that is not the run's result."
            * best
        )
    if any(row.delta for row in rows):
        how = _how_wide(rows)
        yield (
            f"Δ ours: against the untaught student of the same protocol, {how}; every seed has the same teachers. "
            "Verdicts: p < 5 % after Holm over the table's comparisons; equivalent: the whole interval "
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


def _controls(rows: Sequence[Row]) -> Iterable[str]:
    """What a gain was not yet held against."""
    for row in rows:
        against = row.control
        if against is None or (against.ours is None and row.verdict != "better"):
            continue
        soft = (
            "" if against.measured is None else f"its targets are as soft as labels smoothed by {against.measured:g}, "
        )
        if against.ours is None:
            yield f"No control for {_name(row)}: {soft}`{against.command}` makes it"
        elif not against.matched:
            yield f"The control of {_name(row)} is not matched: {soft}`{against.command}` makes that one"


def _how_wide(rows: Sequence[Row]) -> str:
    tests = {row.delta.test for row in rows if row.delta}
    both, seeds = "95 % interval over seeds and test images (two-level bootstrap)", "over seeds alone (Welch)"
    if not tests & {"Welch", None}:
        return both
    if tests <= {"Welch", None}:
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
    empty = [(_name(row), row.command) for row in table.rows if row.ours is None and row.command]
    yield from empty
    if len(empty) > 1 and table.full_budget and not table.mixed:
        yield ALL, f"ghost reproduce {table.name} --family {table.family}"


def _name(row: Row, short: bool = False) -> str:
    if not row.taught:
        return label(row.student)
    phrase = joined(row.teachers, row.strategy)
    if short:
        phrase = {"chain": "chain", "ensemble": "ensemble"}.get(row.strategy, phrase)
    return f"{label(row.student)} < {phrase}"


def _strategy(row: Row) -> str:
    return f"{row.strategy} {row.arm.setting}".rstrip()


def _protocol(row: Row) -> str:
    about = row.arm.about
    order = "" if about.get("shuffled", True) else ", unshuffled"
    soft = f", smoothed {row.arm.smoothing:g}" if row.arm.smoothing else ""
    return f"{about['family']}: {about['data']},\n{about['train_images']:,} × {about['epochs']}{order}{soft}"


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
    return points(delta.mean) + (f" [{delta.low:+.2f}, {delta.high:+.2f}]" if delta.low is not None else "")


def _number(value: float | None, scale: float = 1) -> str:
    return EMPTY if value is None else f"{scale * value:.3g}"
