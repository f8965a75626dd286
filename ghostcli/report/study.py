"""Several runs as a page: what teaching changed, at what cost, and every run behind every number.

Invariant: its tables are those of `ghost table`, with the same cells, verdicts and reasons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ghostcli.compare.admission import Admitted
from ghostcli.compare.cost import Cost
from ghostcli.compare.groups import Cohort, RunGroup, cohorts
from ghostcli.compare.rows import Line, Row, Table
from ghostcli.compare.tables import placed
from ghostcli.display import clock
from ghostcli.paper import label
from ghostcli.records.record import RunRecord
from ghostcli.render import facts, gather, sentence, text_table
from ghostcli.render.notes import lacking
from ghostcli.render.text_table import TextTable
from ghostcli.report import charts
from ghostcli.report.charts import Chart, Forest, Series

#: So many panels of learning curves are drawn; the rest would hide what matters.
MOST_PANELS = 24


@dataclass(frozen=True)
class ForestRow:
    name: str
    svg: Markup
    difference: str
    verdict: str
    anchor: str


@dataclass(frozen=True)
class Part:
    """A table with its forest plot, where a row of it was compared. `links`: the anchor behind each row, or ''."""

    table: TextTable
    links: tuple[str, ...]
    forest: tuple[ForestRow, ...]
    axis: Markup | None
    margin: float


@dataclass(frozen=True)
class Detail:
    """A run in the list of runs: `cells` in the order of RUN_HEADINGS, `facts` what a click shows."""

    anchor: str
    id: str
    cells: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


RUN_HEADINGS = ("seed", "test accuracy (%)", "epochs", "time", "device")


@dataclass(frozen=True)
class Group:
    anchor: str
    title: str
    summary: str
    details: tuple[Detail, ...]


@dataclass(frozen=True)
class Unfinished:
    id: str
    status: str
    share: float
    note: str
    chart: Chart | None


@dataclass(frozen=True)
class StudyPage:
    counts: tuple[tuple[str, int], ...]
    sentences: tuple[tuple[str, str, str], ...]
    parts: tuple[Part, ...]
    general: tuple[str, ...]
    fronts: tuple[Chart, ...]
    curves: tuple[Chart, ...]
    groups: tuple[Group, ...]
    unfinished: tuple[Unfinished, ...]
    left_out: tuple[tuple[str, tuple[str, ...]], ...]


def page(records: Sequence[RunRecord], admitted: Admitted, shown: Sequence[Table], known: dict[str, Cost]) -> StudyPage:
    """`shown`: the judged tables of these records; `known`: what each finished run cost."""
    found = cohorts(admitted.runs, admitted.failed)
    groups = [(cohort, group) for cohort in found for group in cohort.groups]
    anchors = {run.id: f"group-{i}" for i, (_, group) in enumerate(groups) for run in group.runs}
    filled = [table for table in shown if table.filled]
    tables = [text_table.results(table) for table in filled]
    rows = [row for table in filled for row in table.filled]
    return StudyPage(
        counts=tuple(Counter(run.status for run in records).most_common()),
        sentences=tuple(_sentences(rows)),
        parts=tuple(_part(table, text, anchors) for table, text in zip(filled, tables, strict=True)),
        general=tuple(dict.fromkeys(note for text in tables for note in (*text.general, *lacking(text.lacking)))),
        fronts=tuple(_fronts(found, known)),
        curves=tuple(_curves(found)),
        groups=tuple(_group(f"group-{i}", cohort, group) for i, (cohort, group) in enumerate(groups)),
        unfinished=tuple(_unfinished(run) for run in records if run.status in ("running", "interrupted")),
        left_out=_left_out(admitted, shown),
    )


def _sentences(rows: Iterable[Row]) -> Iterable[tuple[str, str, str]]:
    """(verdict, who, what is said), each comparison once, what was shown first."""
    found = {
        (row.group.ids, row.baseline.ids): (row.verdict or "", sentence.subject(row), said)
        for row in rows
        if (said := sentence.verdict(row))
    }
    order = list(sentence.VERDICTS)
    return sorted(found.values(), key=lambda one: order.index(one[0]))


def _part(table: Table, text: TextTable, anchors: dict[str, str]) -> Part:
    links = tuple(anchors.get(ids[0], "") if ids else "" for ids in text.behind)
    compared = [row for row in table.filled if row.delta is not None]
    if not compared:
        return Part(text, links, (), None, table.options.margin)
    printed = [row.printed.delta for row in compared if row.printed and row.printed.delta is not None]
    scale = Forest.of([line.delta for row in compared for line in row.lines], table.options.margin, printed)

    def drawn(line: Line, name: str, own: float | None = None) -> ForestRow:
        said = text_table.interval(line.delta)
        svg = scale.row(line.delta, line.verdict, own, f"{name}: {said}")
        return ForestRow(name, svg, said, line.verdict or "–", anchors.get(line.group.runs[0].id, ""))

    rows = []
    for row in compared:
        rows.append(drawn(row, row.name, row.printed.delta if row.printed else None))
        rows += [drawn(control, "minus its control") for control in row.lines[1:]]
    return Part(text, links, tuple(rows), scale.axis(), table.options.margin)


def _fronts(found: Sequence[Cohort], known: dict[str, Cost]) -> Iterable[Chart]:
    """Accuracy against parameters and against hours. Accuracies on other images or budgets share no axis."""
    cohort = max(found, key=lambda one: (len(one.groups), one.budget), default=None)
    if cohort is None:
        return
    about = f"{cohort.families}: {cohort.describe()}"
    for hours, name in ((False, "Accuracy against size"), (True, "Accuracy against training time")):
        points = gather.points(cohort, known, hours)
        if all(math.isfinite(point.accuracy) for point in points):
            yield charts.front(f"{name} ({about})", points, gather.AXES[hours])


def _curves(found: Sequence[Cohort]) -> Iterable[Chart]:
    curves = gather.curves(found)
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    for panel in panels[:MOST_PANELS]:
        own = sorted(
            (curve for curve in curves if curve.panel == panel), key=lambda curve: -curve.accuracy[:, -1].mean()
        )
        lines = []
        for curve in own:
            band = {}
            if len(curve.accuracy) > 1:
                band = {"low": curve.accuracy.min(axis=0).tolist(), "high": curve.accuracy.max(axis=0).tolist()}
            lines.append(Series(curve.name, curve.accuracy.mean(axis=0).tolist(), base=curve.baseline, **band))
        note = "Mean over seeds; the band is their range." if any(line.low for line in lines) else ""
        yield charts.lines(panel.replace("\n", " · "), lines, "test accuracy (%)", zoom=True, note=note)


def _group(anchor: str, cohort: Cohort, group: RunGroup) -> Group:
    name = label(group.student)
    title = f"{name} taught by {gather.taught_by(group)}" if group.teachers else f"{name} alone"
    details = tuple(_detail(f"{anchor}-{i}", run) for i, run in enumerate(group.runs))
    summary = f"{text_table.accuracy(group.summary(), group)} %, {cohort.families}: {cohort.describe()}"
    return Group(anchor, title, summary, details)


def _detail(anchor: str, run: RunRecord) -> Detail:
    result = run.result
    cells = (
        str(result.seed),
        f"{result.accuracy.selected:.2f}",
        str(result.epochs),
        clock(result.train_seconds + result.teacher_seconds),
        result.environment.device,
    )
    return Detail(anchor, run.id, cells, tuple(facts.page(run)))


def _unfinished(run: RunRecord) -> Unfinished:
    seen = facts.overview(run)
    accuracies = gather.accuracies([run])
    chart = None
    if accuracies is not None:
        chart = charts.lines(f"{run.id} so far", [Series("test", accuracies[0].tolist())], "test accuracy (%)")
    share = seen["epoch"] / seen["epochs"] if seen["epochs"] else 0.0
    note = f"epoch {seen['epoch']} of {seen['epochs'] or '?'}"
    return Unfinished(run.id, run.status, min(1.0, share), note, chart)


def _left_out(admitted: Admitted, shown: Sequence[Table]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Reason -> runs that are in no row, over all tables."""
    every = [*admitted.left_out, *(out for table in shown for out in table.left_out)]
    shown_runs = placed(shown)
    reasons: dict[str, dict[str, None]] = {}
    for out in every:
        if out.run not in shown_runs:
            reasons.setdefault(out.reason, {})[out.run] = None
    return tuple((reason, tuple(runs)) for reason, runs in sorted(reasons.items()))
