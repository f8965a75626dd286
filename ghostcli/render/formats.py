"""Grids and tables written out: text for a terminal, Markdown, LaTeX, CSV and JSON.

Invariant: JSON and CSV hold every number to all its digits, the others what a person reads.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ghostcli.compare.control import Control
from ghostcli.compare.cost import Cost, of_arm
from ghostcli.compare.stats import Difference
from ghostcli.compare.tables import Row, Table
from ghostcli.errors import printable
from ghostcli.render.text_table import ALL, Grid, lacking

if TYPE_CHECKING:
    from rich.table import Table as RichTable

WIDTH = 100
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "Δ": r"$\Delta$",
    "→": r"$\to$", "×": r"$\times$", "–": "--", "·": r"$\cdot$", "†": r"$^\dagger$", "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$", "−": "$-$",
    **{sign: f"$^{{{letter}}}$" for sign, letter in zip("ᵃᵇᶜᵈᵉᶠᵍ¹²³⁴⁵⁶⁷⁸⁹", "abcdefg123456789", strict=True)},
}  # fmt: skip


def text(grids: Iterable[Grid], width: int = WIDTH, colour: bool = False) -> str:
    """Rich tables, `width` columns wide."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from ghostcli.render.layout import fitted

    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, highlight=False, no_color=not colour)
    grids = [_printable(made) for made in grids]
    for made in grids:
        table = _rich(*fitted(made, width))
        console.print(Text(made.title, "bold"))
        console.print(table if made.rows else Text("(no rows)"))
        for note in made.notes:
            console.print(Padding(Text(note, "dim"), (0, 0, 0, 1)))
        if made.commands:
            console.print(Text(" To fill the empty rows:", "dim"))
            for name, command in made.commands:
                aside = f"   # {name}" if name == ALL else ""
                console.print(Text(f"   {command}", "cyan") + Text(aside, "dim"), soft_wrap=True)
        console.print()
    for note in shared(grids):
        console.print(Text(note, "dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _printable(made: Grid) -> Grid:
    """What came from files, a finding's message or a folder's name, cannot drive the terminal."""

    def clean(text: str) -> str:
        return "\n".join(map(printable, text.split("\n")))

    return replace(
        made,
        title=clean(made.title),
        rows=tuple(tuple(map(clean, row)) for row in made.rows),
        notes=tuple(map(clean, made.notes)),
        lacking=tuple(replace(lack, name=clean(lack.name), remedy=clean(lack.remedy)) for lack in made.lacking),
    )


def _rich(made: Grid, space: int, widths: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    from ghostcli.render.layout import WRAPPING

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, space, 0, 0), show_edge=False)
    for (head, justify), width in zip(made.columns, widths, strict=True):
        table.add_column(head, justify=justify, no_wrap=head not in WRAPPING, overflow="fold", width=width)
    for i, row in enumerate(made.rows):
        if i in made.parts:
            table.add_section()
        table.add_row(*(Text(cell, _colour(cell)) for cell in row))
    return table


def shared(grids: Sequence[Grid]) -> list[str]:
    """What is said once, below all grids."""
    return [*lacking(grids), *dict.fromkeys(note for made in grids for note in made.general)]


def _colour(cell: str) -> str:
    return {"better": "green", "worse": "red", "–": "dim"}.get(cell, "")


def markdown(grids: Iterable[Grid]) -> str:
    """GitHub's tables, the footnotes as a list."""
    out: list[str] = []
    grids = [_printable(made) for made in grids]
    for made in grids:
        out += [f"**{made.title}**".replace("\n", "**\n\n**"), ""]
        out.append("| " + " | ".join(head for head, _ in made.columns) + " |")
        out.append("|" + "|".join("---:" if justify == "right" else "---" for _, justify in made.columns) + "|")
        out += ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in made.rows]
        out.append("")
        out += [f"- {_markdown(note)}" for note in made.notes]
        out += [f"- {_markdown(name)}: `{command}`" for name, command in made.commands]
        out.append("")
    out += [f"{_markdown(note)}\n" for note in shared(grids)]
    return "\n".join(out)


def _markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>").replace("*", "\\*")


def latex(grids: Iterable[Grid]) -> str:
    """A `table` with booktabs rules for each (packages booktabs, amssymb)."""
    out: list[str] = []
    for made in map(_printable, grids):
        align = "".join("r" if justify == "right" else "l" for _, justify in made.columns)
        out += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(made.title)}}}"]
        out += [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
        out += [" & ".join(_latex(head) for head, _ in made.columns) + r" \\", r"\midrule"]
        for i, row in enumerate(made.rows):
            out += [r"\midrule"] * (i in made.parts)
            out.append(" & ".join(map(_latex, row)) + r" \\")
        out += [r"\bottomrule", r"\end{tabular}"]
        out += [r"\par\smallskip{\footnotesize " + _latex(note) + r"\par}" for note in (*made.notes, *shared([made]))]
        out += [f"% {name}: {command}" for name, command in made.commands]
        out += [r"\end{table}", ""]
    return "\n".join(out)


def _latex(cell: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in cell.replace("\n", " "))


def objects(table: Table, known: dict[str, Cost] | None = None, more: bool = False) -> dict[str, Any]:
    """A table as data: the contract's keys, and ours besides."""
    about = table.group.about if table.group else None
    return {
        "table": table.name,
        "title": table.title,
        "family": table.family,
        "protocol": about.protocol if about and not table.mixed else None,
        "data": about.data if about else None,
        "epochs": about.epochs if about else None,
        "train_images": about.train_images if about else None,
        "metric": table.metric,
        "margin": table.margin,
        "mixed": table.mixed,
        "departures": table.group.departs if table.group and not table.mixed else {},
        "rows": [_object(row, known, more) for row in table.rows],
        "left_out": [asdict(out) for out in table.left_out],
    }


def _object(row: Row, known: dict[str, Cost] | None, more: bool) -> dict[str, Any]:
    from ghostcli.paper import paper

    printed, arm, delta = row.printed, row.arm, row.delta
    found: dict[str, Any] = {
        "student": row.student,
        "strategy": row.strategy,
        "teachers": list(row.teachers),
        "parameters": row.parameters,
        "paper": printed.accuracy if printed else None,
        "paper_delta": printed.delta if printed else None,
        "paper_logged": asdict(printed.logged) if printed and printed.logged else None,
        "ours": _rounded(asdict(row.ours)) if row.ours else None,
        "delta": _delta(delta),
        "verdict": row.verdict,
        "p_value": delta.p if delta else None,
        "p_adjusted": row.p_adjusted,
        "p_welch": delta.welch if delta else None,
        "test": delta.test if delta else None,
        "interval_covers": delta.covers if delta else None,
        "control": _control(row.control) if row.control else None,
        "note": paper().notes[printed.note] if printed and printed.note else None,
        "check": [asdict(finding) for finding in row.findings],
        "runs": [run.id for run in arm.runs] if arm else [],
        "command": row.command,
    }
    if not printed and arm:
        found |= {
            key: getattr(arm.about, key) for key in ("family", "data", "epochs", "train_images", "protocol", "kind")
        }
        found["departures"] = arm.departs
    if known is not None:
        found["hours"] = asdict(of_arm(arm, known)) if arm else None
    if more:
        found |= {
            "ece": arm.ece if arm else None,
            "nll": arm.mean("nll") if arm else None,
            "agreement": arm.agreement if arm else None,
        }
    return found


def _control(control: Control) -> dict[str, Any]:
    delta = control.delta
    return {
        "smoothing": control.smoothing,
        "measured": control.measured,
        "ours": _rounded(asdict(control.ours)) if control.ours else None,
        "delta": _delta(delta),
        "verdict": control.verdict,
        "p_value": delta.p if delta else None,
        "p_adjusted": control.p_adjusted,
        "interval_covers": delta.covers if delta else None,
        "runs": [run.id for run in control.arm.runs] if control.arm else [],
        "command": control.command,
    }


def _delta(delta: Difference | None) -> dict[str, Any] | None:
    return _rounded({"mean": delta.mean, "low": delta.low, "high": delta.high}) if delta else None


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Accuracies without the noise of their last binary digits."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def side_by_side(by_family: dict[str, Sequence[Table]]) -> dict[str, Any]:
    """The three-column table as data; `ours`, `delta` and `verdict` of a row itself are the paper family's."""
    rows = []
    for tables in zip(*by_family.values(), strict=True):
        for lines in zip(*(table.rows for table in tables), strict=True):
            found = dict(zip(by_family, (_object(line, None, False) for line in lines), strict=True))
            row = found["paper"]
            keep = ("ours", "delta", "verdict", "p_value", "p_adjusted", "control", "check", "runs", "command")
            rows.append(
                row | {"table": tables[0].name, "families": {f: {k: o[k] for k in keep} for f, o in found.items()}}
            )
    budgets = {f: sorted({t.group.describe() for t in tables if t.group}) for f, tables in by_family.items()}
    return {"table": "main", "families": list(by_family), "budgets": budgets, "rows": rows}


def comma_separated(found: Sequence[dict[str, Any]]) -> str:
    """One line a row over all tables; nested values are flattened with underscores, lists joined with spaces."""
    lines = [
        _flat({"table": item["table"], "family": item.get("family", "")} | row)
        for item in found
        for row in item["rows"]
    ]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    # A cell that is empty in one row may be nested in another: the bare name then says nothing.
    columns = [key for key in columns if not any(other.startswith(f"{key}_") for other in columns) or _said(key, lines)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _said(key: str, lines: Sequence[dict[str, Any]]) -> bool:
    return any(line.get(key) not in (None, "") for line in lines)


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
