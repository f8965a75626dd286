"""Figures of a study: learning curves, accuracy against width and cost, differences with their intervals.

Invariant: each function takes plain values or tables and returns a matplotlib `Figure`; no global state of
matplotlib is touched, and only `save` writes.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghostcli.compare.groups import RunGroup
from ghostcli.compare.rows import Row, Table
from ghostcli.compare.stats import Difference, Summary
from ghostcli.compare.tables import ALSO
from ghostcli.errors import UsageError, printable
from ghostcli.paper import label, paper
from ghostcli.render.gather import Curve, Point, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The palette of Okabe and Ito: distinct for all kinds of colour vision and in grey. Black is for the printed numbers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
MARKERS = "osD^vP*X"
GREY, LIGHT = "#7F7F7F", "#D9D9D9"
PANEL = 44  # maximum letters in a line of a panel's title
SUFFIXES = (".png", ".pdf", ".svg")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "svg.hashsalt": "ghost",
    "pdf.fonttype": 42,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """`draw` with our style. matplotlib reads its settings while it draws, not when it saves."""

    @functools.wraps(draw)
    def drawn(*args: Any, **options: Any) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


def canvas(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0), **options: Any
) -> tuple[Figure, Any]:
    """A figure of `size` inches, and its axes as an array [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def require_suffix(file: Path, flag: str = "") -> None:
    """UsageError, which names the flag, if a figure cannot have this file name."""
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{flag}{printable(file)}: its name must end in {', '.join(SUFFIXES)}")


def save(figure: Figure, file: Path) -> Path:
    """Write PNG (200 dots per inch), PDF or SVG by suffix. UsageError for another suffix or if writing fails."""
    import matplotlib

    require_suffix(file)
    # No date in the file, so the same records give the same file.
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(file.suffix.lower())
    try:
        with matplotlib.rc_context(STYLE):
            figure.savefig(file, dpi=200, metadata=undated)
    except OSError as error:
        raise UsageError(f"{printable(file)}: cannot be written ({error.strerror or error})") from error
    return file


@styled
def curves(found: Sequence[Curve], what: str = "Test accuracy (%)") -> Figure:
    """Learning curves, one panel per title: mean and range over seeds. The baseline is grey."""
    _needs(found, "learning curves need a run with at least one finished epoch")
    titles = list(dict.fromkeys(curve.panel for curve in found))
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = canvas(rows, columns, (max(6.4, 3.4 * columns), 3.4 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes.flat, titles, strict=False):
        own = sorted((c for c in found if c.panel == title), key=lambda c: -c.accuracy[:, -1].mean())
        colours = iter(PALETTE * len(own))
        for curve in own:
            _draw(axis, curve, GREY if curve.baseline else next(colours))
        # The y axis leaves out the first tenth of the training. Otherwise the differences at the end would be too
        # small.
        low = min(c.accuracy.mean(axis=0)[min(c.accuracy.shape[1] - 1, c.accuracy.shape[1] // 10)] for c in own)
        high = max(float(c.accuracy.max()) for c in own)
        axis.set_ylim(low - 1, high + 0.04 * (high - low) + 0.1)
        axis.set_axis_on()
        axis.set_title("\n".join(textwrap.fill(line, PANEL) for line in title.split("\n")))
        axis.set_xlabel("Epoch")
        axis.legend(loc="lower right", fontsize=7, handlelength=1.4, borderaxespad=0.2)
        _whole_epochs(axis, max(c.accuracy.shape[1] for c in own))
    for row in axes:
        row[0].set_ylabel(what)
    return figure


def _draw(axis: Axes, curve: Curve, colour: str) -> None:
    epochs = np.arange(1, curve.accuracy.shape[1] + 1)
    mean = curve.accuracy.mean(axis=0)
    style = "--" if curve.baseline else "-"
    marker = "o" if len(epochs) == 1 else None
    axis.plot(epochs, mean, style, color=colour, marker=marker, label=f"{curve.name}, {mean[-1]:.2f}")
    if len(curve.accuracy) > 1:
        low, high = curve.accuracy.min(axis=0), curve.accuracy.max(axis=0)
        axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _whole_epochs(axis: Axes, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlim(*((0, last * 1.02) if last > 1 else (0.5, 1.5)))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


@styled
def width(tables: Sequence[Table]) -> Figure:
    """Fig. 1 of the paper: accuracy of GN-S against its width, printed and for each family.

    It also shows widths that the paper does not have.
    """
    figure, [[axes]] = canvas()
    printed = [(_width(row.student), row.accuracy) for row in paper().table("I").rows if row.student.startswith("gns:")]
    axes.plot(
        *zip(*printed, strict=True),
        "--",
        color="black",
        marker="o",
        mfc="white",
        label="printed (one seed, best epoch)",
    )
    drawn: set[float] = set()
    for i, (families, found) in enumerate(_by_families(tables).items()):
        x = [_width(group.student) for group, _ in found]
        drawn |= set(x)
        mean = [ours.mean for _, ours in found]
        spread = [ours.sd or 0 for _, ours in found]
        seeds = sorted({ours.n for _, ours in found})
        n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        name = f"{families}, {n} {'seed' if n == '1' else 'seeds'}"
        axes.errorbar(x, mean, spread, color=PALETTE[i], marker=MARKERS[i + 1], capsize=3, label=name)
    axes.set_xlabel("Width multiplier")
    axes.set_ylabel("Test accuracy (%)")
    axes.set_title("GhostNetV3-Small without a teacher")
    axes.set_xticks(sorted({x for x, _ in printed} | drawn))
    axes.legend(loc="lower right")
    return figure


def _by_families(tables: Sequence[Table]) -> dict[str, list[tuple[RunGroup, Summary]]]:
    """The untaught GN-S of the tables' cohorts, by width. The key names all families with the same runs."""
    families: dict[tuple[str, ...], list[str]] = {}
    found: dict[tuple[str, ...], list[tuple[RunGroup, Summary]]] = {}
    for table in tables:
        own = {row.student: row.group for row in table.filled if row.student.startswith("gns:")}
        for group in table.cohort.groups if table.cohort else ():
            if untaught_small(group):
                own.setdefault(group.student, table.cohort.baselines[group.student])
        groups = [own[student] for student in sorted(own, key=_width)]
        key = tuple(run.id for group in groups for run in group.runs)
        if key:
            families.setdefault(key, []).append(table.family)
            found.setdefault(key, [(group, group.summary(table.options.metric)) for group in groups])
    return {" and ".join(families[key]): groups for key, groups in found.items()}


def untaught_small(group: RunGroup) -> bool:
    """Whether it is a GN-S of any width without a teacher."""
    return not group.teachers and group.student.startswith("gns:")


def _width(student: str) -> float:
    return float(student.partition(":")[2])


def cost_axis(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5; a narrow one has them at equal steps."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    class Numbers(LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            found = super().tick_values(vmin, vmax)
            few = sum(vmin <= value <= vmax for value in found) < 3
            return MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(vmin, vmax) if few else found

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(Numbers(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


@styled
def front(points: Sequence[Point], cost: str = "Parameters, train form (millions)", title: str = "") -> Figure:
    """Accuracy against cost (log axis) by series, with the Pareto front."""
    _needs(points, "a front needs at least one finished run")
    figure, [[axes]] = canvas(size=(6.8, 4.4))
    if all(point.cost > 0 for point in points):
        cost_axis(axes)
    best = pareto(points)
    axes.step(
        [p.cost for p in best],
        [p.accuracy for p in best],
        where="post",
        color=LIGHT,
        linewidth=5,
        zorder=1,
        label="front",
    )
    for i, series in enumerate(dict.fromkeys(point.series for point in points)):
        own = [point for point in points if point.series == series]
        errors = [point.error or 0 for point in own]
        style = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": "none",
            "capsize": 2,
        }
        axes.errorbar([p.cost for p in own], [p.accuracy for p in own], errors, label=series or None, **style)
    named: set[str] = set()
    for point in sorted(best, key=lambda point: -point.accuracy):
        if point.name not in named:
            axes.annotate(
                point.name,
                (point.cost, point.accuracy),
                (0, 6),
                textcoords="offset points",
                fontsize=7.5,
                ha="center",
                va="bottom",
            )
        named.add(point.name)
    axes.margins(0.08, 0.12)
    axes.set_title(title)
    axes.set_xlabel(cost)
    axes.set_ylabel("Test accuracy (%)")
    axes.legend(loc="lower right", fontsize=8)
    return figure


@styled
def forest(tables: Sequence[Table]) -> Figure:
    """Differences with 95 % intervals, one panel per table and family. Printed differences are hollow diamonds."""
    shown = [(table, [row for row in table.rows if row.taught and (row.delta or row.printed)]) for table in tables]
    shown = [(table, rows) for table, rows in shown if any(row.delta for row in rows)]
    _needs(shown, "a forest plot needs a taught run and its baseline; `ghost table` says which commands make them")
    counts = [len(rows) for _, rows in shown]
    size = (7.0, 0.9 + sum(0.27 * n + 0.62 for n in counts))
    ratios = {"height_ratios": [n + 1.2 for n in counts]}
    figure, axes = canvas(len(shown), 1, size, sharex=True, gridspec_kw=ratios)
    colours = {
        "better": PALETTE[2],
        "worse": PALETTE[1],
        "equivalent": PALETTE[0],
        "not distinguished": GREY,
        None: GREY,
    }
    for panel, (table, rows) in zip(axes[:, 0], shown, strict=True):
        panel.axvspan(-table.options.margin, table.options.margin, color="#F0F0F0", zorder=0, linewidth=0)
        panel.axvline(0, color="black", linewidth=0.8, zorder=1)
        for y, row in enumerate(rows):
            if row.printed and row.printed.delta is not None:
                panel.plot(row.printed.delta, y, "D", mfc="white", mec="black", markersize=4.5, zorder=3)
            if row.delta:
                _delta(panel, row.delta, y, colours[row.verdict])
            if row.control and row.control.delta:
                _delta(panel, row.control.delta, y + 0.3, colours[row.control.verdict], hollow=True)
        panel.set_yticks(range(len(rows)), [_caption(row) for row in rows])
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
        family = "" if table.family == "any" else f" · {table.family}"
        panel.set_title(f"Table {table.name}{family}" if table.name != ALSO else "Also run")
    axes[-1, 0].set_xlabel("Δ accuracy against the untaught student (points)")
    verdicts = {line.verdict for _, rows in shown for row in rows for line in row.lines}
    _forest_legend(figure, colours, verdicts, shown)
    return figure


def _delta(panel: Axes, delta: Difference, y: float, colour: str, hollow: bool = False) -> None:
    """A difference and its interval; hollow and thin if it is from a control."""
    if delta.low is not None:
        width = 1.0 if hollow else 2.0
        panel.plot([delta.low, delta.high], [y, y], color=colour, linewidth=width, zorder=2, solid_capstyle="butt")
    panel.plot(delta.mean, y, "o", color=colour, mfc="white" if hollow else colour, ms=4 if hollow else 5, zorder=4)


def _forest_legend(figure: Figure, colours: dict[Any, str], verdicts: set[Any], shown: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=colour, marker="o", linewidth=2, label=verdict)
        for verdict, colour in colours.items()
        if verdict in verdicts and verdict is not None
    ]
    if any(row.printed for _, rows in shown for row in rows):
        handles.append(
            Line2D([], [], linestyle="none", marker="D", mfc="white", mec="black", markersize=4.5, label="printed")
        )
    if any(len(row.lines) > 1 for _, rows in shown for row in rows):
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", markersize=4, linewidth=1, label="minus its control")
        )
    handles.append(Patch(color="#E6E6E6", label=f"within ±{shown[0][0].options.margin:g}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)


def _caption(row: Row) -> str:
    short = row.printed and row.strategy in ("chain", "ensemble") and not (row.group and row.group.setting)
    name = f"{label(row.student)} < {row.strategy}" if short else row.name
    return f"{name} ({row.ours.n})" if row.ours else name


def _needs(values: Sequence[Any], message: str) -> None:
    if not values:
        raise UsageError(message)
