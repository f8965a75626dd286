"""The footnotes of tables. Invariant: every mark in a cell has a footnote; every footnote explains something shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ghostcli.comparison.groups import grouped
from ghostcli.comparison.rows import Line, Row, Table
from ghostcli.comparison.stats import RUNS_ONLY
from ghostcli.comparison.tables import MOST_FAILED, failed
from ghostcli.comparison.verdicts import UNDECIDED
from ghostcli.paper import paper
from ghostcli.recipe.models import FEW_STEPS

LETTERS, DIGITS = "ᵃᵇᶜᵈᵉᶠᵍ", "¹²³⁴⁵⁶⁷⁸⁹"
SINGLE, MIXED = "†", "‡"
#: Reasons of left-out runs that get a line of their own, those with the most runs; and runs that a line names.
REASONS = 20
NAMED = 4
VISIBLE = 0.005  # points; what two digits show


@dataclass(frozen=True)
class Lack:
    """A missing comparison: a `phrase` with a place for the row's `name`, and the `remedy`."""

    phrase: str
    name: str
    remedy: str


@dataclass(frozen=True)
class Marks:
    """Footnote marks of a table: letters for notes on printed rows, digits for findings of the teaching check."""

    printed: dict[str, str]
    findings: dict[tuple[str, str], str]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Marks:
        rows = list(rows)
        printed = dict.fromkeys(row.printed.note for row in rows if row.printed and row.printed.note)
        findings = dict.fromkeys((finding.code, finding.message) for row in rows for finding in row.findings)
        return cls(_marks(printed, LETTERS), _marks(findings, DIGITS))

    def of_printed(self, row: Row) -> str:
        return self.printed.get(row.printed.note or "", "") if row.printed else ""

    def of_ours(self, row: Row) -> str:
        single = SINGLE if row.ours and row.ours.n == 1 else ""
        findings = (self.findings[finding.code, finding.message] for finding in row.findings)
        return single + MIXED * bool(row.mixed) + "".join(findings)


def _marks(keys: Iterable[Any], signs: str) -> dict[Any, str]:
    return {key: signs[i] if i < len(signs) else f"({i + 1})" for i, key in enumerate(keys)}


def footnotes(tables: Sequence[Table], marks: Marks) -> Iterable[str]:
    """The meanings of the marks."""
    for note, mark in marks.printed.items():
        yield f"{mark} {paper().notes[note]}"
    for (code, message), mark in marks.findings.items():
        yield f"{mark} Check, {code}: {message}"
    mixed = (row for table in tables for row in table.rows if row.mixed)
    for facts, rows in grouped(mixed, lambda row: row.mixed).items():
        names = dict.fromkeys(row.name for row in rows)
        yield f"{MIXED} The runs compared differ in {', '.join(facts)}: {'; '.join(names)}."


def remarks(table: Table) -> Iterable[str]:
    """Other notes on the rows of this table, each once."""
    return dict.fromkeys(_remarks(table))


def _remarks(table: Table) -> Iterable[str]:
    rows, metric = table.filled, table.options.metric
    for row in rows:
        for line, other in row.comparisons:
            name, delta = row.name if line is row else f"{row.name} minus its control", line.delta
            if delta.welch is not None and delta.p is not None and (delta.welch < 0.05) != (delta.p < 0.05):
                yield f"Welch's test disagrees on {name} (p = {delta.welch:.3f}, not {delta.p:.3f})."
            if abs(delta.mean - (row.ours.mean - other.summary(metric).mean)) > VISIBLE:
                yield (
                    f"Δ of {name} is a mean over teachers, which have unequal numbers of seeds: it is not the "
                    "difference of the accuracies, which are means over seeds."
                )
            if failed(row.group, other):
                yield (
                    f"No verdict for {name}: more than {MOST_FAILED:.0%} of the seeds of one side became non-finite, "
                    "so the others are a biased selection."
                )
        for group in (row.group, *(other for _, other in row.comparisons)):
            if group.missing:
                job, seeds = group.runs[0].id.rpartition("/")[0], ", ".join(map(str, group.missing))
                yield (
                    f"The plan of {job} is not complete. Planned seeds without a result: {seeds}. "
                    "Until then a verdict depends on when the table is read."
                )
        if row.looks:
            before = ", ".join(f"{n} and {m}" for n, m in row.looks)
            yield (
                f"Seeds were added to {row.name} after a table was read ({before} runs then, {len(row.group.runs)} and "
                f"{len(row.baseline.runs)} now). Adding seeds until there is a verdict makes more than 5 % of verdicts "
                "wrong: decide their number first (`--seeds N`), or repeat the study with new seeds."
            )
    if not table.full_budget:
        source = paper().source
        yield (
            f"Not the paper's budget ({source.train_images:,} images × {source.epochs} epochs): compare these rows "
            "with each other, not with the printed numbers."
        )
        steps = min((row.group.steps for row in rows), default=FEW_STEPS)
        if steps < FEW_STEPS:
            yield f"Only {steps} steps per run: the networks are barely trained, so no row shows an effect of teaching."
    yield from _left_out(table)


def general(tables: Sequence[Table]) -> Iterable[str]:
    """How the numbers were computed: notes that several tables share."""
    options = tables[0].options
    rows = [row for table in tables for row in table.filled]
    lines = [line for row in rows for line in row.lines]
    if any(line.ours.n > 1 for line in lines):
        yield "Ours: mean ± standard deviation over seeds (number of seeds)."
    if any(line.ours.n == 1 for line in lines):
        yield f"{SINGLE} One run: no standard deviation, so a comparison with it is {UNDECIDED}."
    if any(line.delta and line.delta.of_two_networks for line in lines):
        yield (
            f"{SINGLE} at a Δ: one run on a side: seed noise alone can cause this gap, so it is {UNDECIDED}. "
            "An interval covers test images only, for these networks. More seeds can distinguish it: "
            "`--seed 0 --seed 1 --seed 2` with a training command, `--seeds 3` with `ghost reproduce`."
        )
    comparisons = [(row, line, other) for row in rows for line, other in row.comparisons]
    if comparisons:
        what = "the taught row minus its control"
        if any(row.delta for row in rows):
            what = f"the row minus its baseline ({tables[0].baseline})"
        yield (
            f"Δ ours: {what}, {_how_wide(line for _, line, _ in comparisons)}. "
            "Verdicts: p < 5 % after one correction over all comparisons of this answer; equivalent: two one-sided "
            f"tests within ±{options.margin:g}."
        )
    if any(line.finds is not None for line in lines):
        yield (
            "Finds: the smallest true difference that this design calls better or worse with 80 % probability, given "
            f"its own spreads. `{UNDECIDED}` can miss smaller differences."
        )
    compared = [group for row, _, other in comparisons for group in (row.group, other)]
    if any(group.one_teacher for group in compared):
        yield (
            "Verdicts are for this teacher: all seeds of a row had the same teacher networks. The interval does not "
            "include the variation between trainings of the teacher."
        )
    if several := sorted({group.teacher_count for group in compared if group.teacher_count > 1}):
        counts = " or ".join(map(str, several))
        yield (
            f"Verdicts of rows with {counts} teachers hold for other trainings of the teacher too: the runs of each "
            "teacher are averaged, and the spread of these means is in the interval."
        )
    if len(lines) > len(rows):
        yield (
            "Control: the same training, but each image gets the teachers' logits for another image of its class "
            "(distill.blind=true). If a gain comes from the teachers' knowledge of the images, the taught row is "
            "better than its control too."
        )
    if any(row.taught for row in rows) and options.equal_budget:
        yield (
            "Equal budgets: the baseline saw as many training images as the row's run and the trainings of all its "
            "teachers in total. The sizes of the networks are not counted."
        )
    if sum(row.printed is None and row.differs is None for row in rows) > 1:
        yield "`ghost compare RUN RUN...` compares any of these trainings with each other."
    if rows and options.metric == "best":
        yield "Optimistic: each accuracy is of the best epoch, chosen on the test set, as in the paper."


def lacks(table: Table) -> Iterable[Lack]:
    """The missing comparisons and their remedies. A control is missing only if the row's verdict is better."""
    for row in table.filled:
        if row.missing_baseline:
            yield Lack("No baseline for {}", row.name, row.missing_baseline)
    for row in table.filled:
        if row.verdict == "better" and row.control and row.control.group is None:
            yield Lack("No control for {}", row.name, f"`{row.control.command}` makes it")


def lacking(found: Iterable[Lack]) -> Iterable[str]:
    """Each remedy once, with all its rows."""
    for (phrase, remedy), same in grouped(found, lambda lack: (lack.phrase, lack.remedy)).items():
        names = dict.fromkeys(lack.name for lack in same)
        yield f"{phrase.format('; '.join(names))}: {remedy}"


def _how_wide(lines: Iterable[Line]) -> str:
    tests = {line.delta.test for line in lines if line.delta.low is not None}
    both, seeds = "95 % interval over seeds and test images (two levels)", "over seeds only"
    if not tests:
        return "without an interval, because there are no predictions for these accuracies"
    if RUNS_ONLY not in tests:
        return both
    if tests == {RUNS_ONLY}:
        return f"95 % interval {seeds}, because there are no predictions for these accuracies"
    return f"{both}, or {seeds} if there are no predictions for the accuracies"


def _left_out(table: Table) -> Iterable[str]:
    by_reason = grouped(table.left_out, lambda out: out.reason)
    reasons = sorted(by_reason, key=lambda reason: -len(by_reason[reason]))[:REASONS]
    for reason, outs in by_reason.items():
        if reason in reasons:
            some = ", ".join(out.run for out in outs[:NAMED]) + ", ..." * (len(outs) > NAMED)
            yield f"Left out, {reason}: {len(outs)} ({some})"
    if others := len(by_reason) - len(reasons):
        count = len(table.left_out) - sum(len(by_reason[reason]) for reason in reasons)
        yield f"Left out, {others} other reasons: {count} runs (--format json names each)"
