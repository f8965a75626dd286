"""Several runs as a page: what teaching changed, at what cost, and every run behind every number.

Invariant: its tables are those of `ghost table`, with the same cells, verdicts and reasons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ghostcli.comparison.admission import Admitted
from ghostcli.comparison.cost import Cost
from ghostcli.comparison.groups import Cohort, RunGroup, cohorts, grouped
from ghostcli.comparison.rows import Row, Table
from ghostcli.comparison.tables import placed
from ghostcli.display import clock
from ghostcli.paper import label
from ghostcli.records.record import RunRecord
from ghostcli.render import facts, gather, sentence, text_table
from ghostcli.render.notes import lacking
from ghostcli.render.text_table import TextTable
from ghostcli.report import charts
from ghostcli.report.charts import Chart

#: So many panels of learning curves are drawn; the rest would hide what matters.
MOST_PANELS = 24


def page(
    records: Sequence[RunRecord], admitted: Admitted, shown: Sequence[Table], known: dict[str, Cost]
) -> dict[str, Any]:
    """What the template shows. `shown`: the judged tables of these records; `known`: what each finished run cost."""
    all_cohorts = cohorts(admitted.runs, admitted.failed)
    groups = [(cohort, group) for cohort in all_cohorts for group in cohort.groups]
    anchors = {run.id: f"group-{i}" for i, (_, group) in enumerate(groups) for run in group.runs}
    filled = [table for table in shown if table.filled]
    tables = [text_table.results(table) for table in filled]
    return {
        "counts": Counter(run.status for run in records).most_common(),
        "sentences": _sentences(row for table in filled for row in table.filled),
        "parts": [_part(table, text, anchors) for table, text in zip(filled, tables, strict=True)],
        "general": list(dict.fromkeys(note for text in tables for note in (*text.general, *lacking(text.lacking)))),
        "fronts": list(_fronts(all_cohorts, known)),
        "curves": list(_curves(all_cohorts)),
        "groups": [_group(f"group-{i}", cohort, group) for i, (cohort, group) in enumerate(groups)],
        "unfinished": [_progress(run) for run in records if run.status in ("running", "interrupted")],
        "left_out": _left_out(admitted, shown),
    }


def _sentences(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(verdict, who, what is said), each comparison once, what was shown first."""
    by_pair = {
        (row.group.ids, row.baseline.ids): (row.verdict, sentence.subject(row), text)
        for row in rows
        if (text := sentence.verdict(row))
    }
    order = list(sentence.VERDICTS)
    return sorted(by_pair.values(), key=lambda one: order.index(one[0]))


def _part(table: Table, text: TextTable, anchors: dict[str, str]) -> dict[str, Any]:
    """A table, the anchor behind each of its rows (or ''), and its forest plot: each comparison in words and drawn."""
    links = [anchors.get(ids[0], "") if ids else "" for ids in text.behind]
    plotted, said = [], []
    for row in table.filled:
        for line, _ in row.comparisons:
            own = line is row
            printed = row.printed.delta if own and row.printed else None
            name = row.name if own else "minus its control" if row.delta else f"{row.name} minus its control"
            difference = text_table.interval(line.delta)
            plotted.append((line.delta, line.verdict, printed, f"{name}: {difference}"))
            said.append((name, difference, line.verdict or "–", anchors.get(line.group.runs[0].id, "")))
    *drawn, axis = charts.forest(plotted, table.options.margin)
    forest = [(*words, svg) for words, svg in zip(said, drawn, strict=True)]
    return {"table": text, "links": links, "forest": forest, "axis": axis, "margin": table.options.margin}


def _fronts(all_cohorts: Sequence[Cohort], known: dict[str, Cost]) -> Iterable[Chart]:
    """Accuracy against parameters and against hours."""
    cohort = gather.most_groups(all_cohorts)
    if cohort is None:
        return
    about = f"{cohort.families}: {cohort.describe()}"
    for hours, name in ((False, "Accuracy against size"), (True, "Accuracy against training time")):
        points = gather.points(cohort, known, hours)
        if all(math.isfinite(point.accuracy) for point in points):
            yield charts.front(f"{name} ({about})", points, gather.AXES[hours])


def _curves(all_cohorts: Sequence[Cohort]) -> Iterable[Chart]:
    for panel, curves in list(gather.panels(gather.curves(all_cohorts)).items())[:MOST_PANELS]:
        note = "Mean over seeds; the band is their range." if any(curve.range for curve in curves) else ""
        yield charts.lines(panel.replace("\n", " · "), curves, "test accuracy (%)", zoom=True, note=note)


def _group(anchor: str, cohort: Cohort, group: RunGroup) -> dict[str, Any]:
    """A run group with its runs: of each the facts that its line shows, and those that a click shows."""
    name = label(group.student)
    details = []
    for i, run in enumerate(group.runs):
        result = run.result
        line = (
            f"seed {result.seed}",
            f"test accuracy (%) {result.accuracy.selected:.2f}",
            f"epochs {result.epochs}",
            f"time {clock(result.train_seconds + result.teacher_seconds)}",
            f"device {result.environment.device}",
        )
        details.append({"anchor": f"{anchor}-{i}", "id": run.id, "line": line, "facts": facts.page(run)})
    return {
        "anchor": anchor,
        "title": f"{name} taught by {gather.taught_by(group)}" if group.teachers else f"{name} alone",
        "summary": f"{text_table.accuracy(group.summary(), group)} %, {cohort.families}: {cohort.describe()}",
        "details": details,
    }


def _progress(run: RunRecord) -> dict[str, Any]:
    seen, accuracies, chart = facts.overview(run), gather.accuracies([run]), None
    if accuracies is not None:
        chart = charts.lines(f"{run.id} so far", [gather.Curve("", "test", accuracies)], "test accuracy (%)")
    share = min(1.0, seen["epoch"] / seen["epochs"]) if seen["epochs"] else 0.0
    note = f"epoch {seen['epoch']} of {seen['epochs'] or '?'}"
    return {"id": run.id, "status": run.status, "share": share, "note": note, "chart": chart}


def _left_out(admitted: Admitted, tables: Sequence[Table]) -> list[tuple[str, list[str]]]:
    """Reason -> runs that are in no row, over all tables."""
    in_rows = placed(tables)
    outs = (*admitted.left_out, *(out for table in tables for out in table.left_out))
    reasons = grouped((out for out in outs if out.run not in in_rows), lambda out: out.reason)
    return [(reason, list(dict.fromkeys(out.run for out in same))) for reason, same in sorted(reasons.items())]
