"""Tables as data: JSON and CSV. Invariant: numbers are not rounded for display. Other programs rely on the keys."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ghostcli.comparison.cost import Cost, of_group
from ghostcli.comparison.rows import Control, Line, Row, Table
from ghostcli.paper import paper

#: The protocol of a row, if the table has rows of several protocols.
PROTOCOL = ("family", "data", "epochs", "train_images", "protocol", "kind")


def objects(table: Table, known: dict[str, Cost] | None = None, more: bool = False) -> dict[str, Any]:
    """A table as JSON values."""
    about = table.cohort.about if table.cohort else None
    return {
        "table": table.name,
        "title": table.title,
        "family": table.family,
        "protocol": about.protocol if about else None,
        "data": about.data if about else None,
        "epochs": about.epochs if about else None,
        "train_images": about.train_images if about else None,
        "metric": table.options.metric,
        "margin": table.options.margin,
        "config_diff": table.cohort.changes if table.cohort else {},
        "rows": [row_object(row, known, more, table.options.metric) for row in table.rows],
        "left_out": [asdict(out) for out in table.left_out],
    }


def row_object(
    row: Row, known: dict[str, Cost] | None = None, more: bool = False, metric: str = "selected"
) -> dict[str, Any]:
    """A row as data. `known`: what each run cost, where hours are wanted; `more`: calibration and agreement too.

    `accuracies` are those of `runs` by `metric`, in percent.
    """
    printed, group, delta = row.printed, row.group, row.delta
    values: dict[str, Any] = {
        "student": row.student,
        "strategy": row.strategy,
        "teachers": list(row.teachers),
        "parameters": row.parameters,
        "paper": printed.accuracy if printed else None,
        "paper_delta": printed.delta if printed else None,
        "paper_logged": asdict(printed.logged) if printed and printed.logged else None,
        **_line(row),
        "p_welch": delta.welch if delta else None,
        "test": delta.test if delta else None,
        "interval_covers": delta.covers if delta else None,
        "control": _control(row.control) if row.control else None,
        "note": paper().notes[printed.note] if printed and printed.note else None,
        "check": [{"code": finding.code, "message": finding.message} for finding in row.findings],
        "runs": [run.id for run in group.runs] if group else [],
        "accuracies": group.accuracy(metric).tolist() if group else [],
        "failed": [run.id for run in group.failed] if group else [],
        "environment_differs": list(row.mixed),
        "teacher_trainings": group.teacher_count if group and row.taught else None,
        "seeds_missing": list(group.missing) if group else [],
        "same_teacher": group.one_teacher if group and row.taught else None,
        "command": row.command,
    }
    if not printed and group:
        values |= {key: getattr(group.about, key) for key in PROTOCOL}
        values["config_diff"] = group.changes
    if row.differs is not None:
        values["differs"] = {key: list(pair) for key, pair in row.differs.items()}
    if known is not None:
        values["hours"] = asdict(of_group(group, known)) if group else None
    if more:
        values |= {key: getattr(group, key) if group else None for key in ("ece", "nll", "agreement")}
    return values


def _line(line: Line) -> dict[str, Any]:
    """What a row and its control have in common."""
    delta = line.delta
    return {
        "ours": _round(asdict(line.ours)) if line.ours else None,
        "delta": _round({"mean": delta.mean, "low": delta.low, "high": delta.high}) if delta else None,
        "verdict": line.verdict,
        "finds": line.finds,
        "p_value": delta.p if delta else None,
        "p_adjusted": line.p_adjusted,
    }


def _control(control: Control) -> dict[str, Any]:
    return {
        **_line(control),
        "interval_covers": control.delta.covers if control.delta else None,
        "runs": [run.id for run in control.group.runs] if control.group else [],
        "command": control.command,
    }


def _round(values: dict[str, Any]) -> dict[str, Any]:
    """Accuracies without floating-point noise in the last digits."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def side_by_side(by_family: dict[str, Sequence[Table]]) -> dict[str, Any]:
    """The table by families as JSON values. `ours`, `delta` and `verdict` of a row are those of the family `paper`."""
    rows = []
    for tables in zip(*by_family.values(), strict=True):
        metric = tables[0].options.metric
        for lines in zip(*(table.rows for table in tables), strict=True):
            entries = dict(zip(by_family, (row_object(line, metric=metric) for line in lines), strict=True))
            row = entries["paper"]
            keep = ("ours", "delta", "verdict", "p_value", "p_adjusted", "control", "check", "runs", "accuracies")
            keep += ("command",)
            rows.append(
                row | {"table": tables[0].name, "families": {f: {k: o[k] for k in keep} for f, o in entries.items()}}
            )
    budgets = {f: sorted({t.cohort.describe() for t in tables if t.cohort}) for f, tables in by_family.items()}
    return {"table": "main", "families": list(by_family), "budgets": budgets, "rows": rows}


def comma_separated(found: Sequence[dict[str, Any]]) -> str:
    """One line per row of all tables. Nested keys are joined with underscores, lists with spaces."""
    lines = [
        _flat({"table": item["table"], "family": item.get("family", "")} | row)
        for item in found
        for row in item["rows"]
    ]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    # A value can be empty in one row and nested in another. Then the column of the bare name is empty and left out.
    filled = {key for line in lines for key, value in line.items() if value not in (None, "")}
    columns = [key for key in columns if key in filled or not any(other.startswith(f"{key}_") for other in columns)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}_")
        elif isinstance(item, list):
            flat[f"{prefix}{key}"] = " ".join(
                str(part.get("code", part)) if isinstance(part, dict) else str(part) for part in item
            )
        else:
            flat[f"{prefix}{key}"] = item
    return flat
