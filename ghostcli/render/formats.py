"""Text tables for a terminal, as Markdown and as LaTeX. Invariant: all three have the same cells."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ghostcli.errors import printable
from ghostcli.render.layout import fitted
from ghostcli.render.notes import lacking
from ghostcli.render.text_table import ALL, EMPTY, TextTable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

WIDTH = 100
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "Δ": r"$\Delta$",
    "→": r"$\to$", "×": r"$\times$", "–": "--", "·": r"$\cdot$", "†": r"$^\dagger$", "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$", "−": "$-$", "‡": r"$^\ddagger$", "≥": r"$\geq$",
    "≤": r"$\leq$", "≈": r"$\approx$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$",
    "σ": r"$\sigma$", "τ": r"$\tau$", "µ": r"$\mu$", "μ": r"$\mu$", "…": r"\dots{}", "—": "---", "“": "``", "”": "''",
    "‘": "`", "’": "'", "°": r"$^\circ$", "\u00a0": "~",
    **{sign: f"$^{{{letter}}}$" for sign, letter in zip("ᵃᵇᶜᵈᵉᶠᵍ¹²³⁴⁵⁶⁷⁸⁹", "abcdefg123456789", strict=True)},
}  # fmt: skip


def text(tables: Iterable[TextTable], width: int = WIDTH, colour: bool = False) -> str:
    """For a terminal, `width` columns wide."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, highlight=False, no_color=not colour)
    tables = [_printable(table) for table in tables]
    for table in tables:
        console.print(Text(table.title, "bold"))
        if table.rows:
            shown, space, widths = fitted(table, width)
            console.width = max(width, sum(widths) + (space + 1) * len(widths))  # no number is cut: lines wrap
            console.print(_rich(shown, space, widths))
            console.width = width
        else:
            console.print(Text("(no rows)"))
        for note in table.notes:
            console.print(Padding(Text(note, "dim"), (0, 0, 0, 1)))
        if table.commands:
            console.print(Text(" To fill the empty rows:", "dim"))
            for name, command in table.commands:
                aside = f"   # {name}" if name == ALL else ""
                console.print(Text(f"   {command}", "cyan") + Text(aside, "dim"), soft_wrap=True)
        console.print()
    for note in shared(tables):
        console.print(Text(note, "dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _printable(table: TextTable) -> TextTable:
    """Escape control characters, so text from files (findings, folder names) cannot send commands to the terminal."""

    def clean(text: str) -> str:
        return "\n".join(map(printable, text.split("\n")))

    return replace(
        table,
        title=clean(table.title),
        rows=tuple({key: clean(cell) for key, cell in row.items()} for row in table.rows),
        notes=tuple(map(clean, table.notes)),
        lacking=tuple(replace(lack, name=clean(lack.name), remedy=clean(lack.remedy)) for lack in table.lacking),
    )


def _rich(table: TextTable, space: int, widths: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    rich_table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, space, 0, 0), show_edge=False)
    for column, width in zip(table.columns, widths, strict=True):
        wraps = bool(column.wrap)
        rich_table.add_column(column.heading, justify=column.justify, no_wrap=not wraps, overflow="fold", width=width)
    for i, row in enumerate(table.rows):
        if i in table.parts:
            rich_table.add_section()
        rich_table.add_row(*(Text(cell, _colour(cell)) for cell in _cells(table, row)))
    return rich_table


def _cells(table: TextTable, row: dict[str, str]) -> list[str]:
    return [row.get(column.key, "") for column in table.columns]


def shared(tables: Sequence[TextTable]) -> list[str]:
    """The notes below all tables, each once."""
    lacks = (lack for table in tables for lack in table.lacking)
    return [*lacking(lacks), *dict.fromkeys(note for table in tables for note in table.general)]


def _colour(cell: str) -> str:
    return {"better": "green", "worse": "red", EMPTY: "dim"}.get(cell, "")


def markdown(tables: Iterable[TextTable]) -> str:
    """GitHub's Markdown: tables, with footnotes as a list."""
    out: list[str] = []
    tables = [_printable(table) for table in tables]
    for table in tables:
        out += [f"**{table.title}**".replace("\n", "**\n\n**"), ""]
        out.append("| " + " | ".join(_markdown(column.heading) for column in table.columns) + " |")
        out.append("|" + "|".join("---:" if column.justify == "right" else "---" for column in table.columns) + "|")
        out += ["| " + " | ".join(map(_markdown, _cells(table, row))) + " |" for row in table.rows]
        out.append("")
        out += [f"- {_markdown(note)}" for note in table.notes]
        out += [f"- {_markdown(name)}: `{command}`" for name, command in table.commands]
        out.append("")
    out += [f"{_markdown(note)}\n" for note in shared(tables)]
    return "\n".join(out)


def _markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>").replace("*", "\\*")


def latex(tables: Iterable[TextTable]) -> str:
    """A `table` with booktabs rules for each (packages booktabs, amssymb)."""
    out: list[str] = []
    for table in map(_printable, tables):
        align = "".join("r" if column.justify == "right" else "l" for column in table.columns)
        out += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"]
        out += [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
        out += [" & ".join(_latex(column.heading) for column in table.columns) + r" \\", r"\midrule"]
        for i, row in enumerate(table.rows):
            out += [r"\midrule"] * (i in table.parts)
            out.append(" & ".join(map(_latex, _cells(table, row))) + r" \\")
        out += [r"\bottomrule", r"\end{tabular}"]
        notes = (*table.notes, *shared([table]))
        out += [r"\par\smallskip{\footnotesize " + _latex(note) + r"\par}" for note in notes]
        out += [f"% {name}: {command}" for name, command in table.commands]
        out += [r"\end{table}", ""]
    return "\n".join(out)


def _latex(cell: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in cell.replace("\n", " "))
