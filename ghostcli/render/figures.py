"""Figures of a study: learning curves, accuracy against width and cost, differences with their intervals.

Invariant: each function takes plain values or tables and returns a matplotlib `Figure`; no global state of
matplotlib is touched, and only `save` writes.
"""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostcli.comparison.groups import Cohort, RunGroup
from ghostcli.comparison.rows import Row, Table
from ghostcli.comparison.stats import Difference, Summary
from ghostcli.comparison.verdicts import UNDECIDED
from ghostcli.errors import UsageError, printable
from ghostcli.paper import label, paper
from ghostcli.render import gather
from ghostcli.render.gather import Curve, Point
from ghostcli.render.text_table import differences

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
def curves(found: Sequence[Curve]) -> Figure:
    """Learning curves, one panel per title: mean and range over seeds. The baseline is grey."""
    from matplotlib.ticker import MaxNLocator

    _needs(found, "learning curves need a run with at least one finished epoch")
    panels = gather.panels(found)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = canvas(rows, columns, (max(6.4, 3.4 * columns), 3.4 * rows))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, own) in zip(axes.flat, panels.items(), strict=False):
        colours = itertools.cycle(PALETTE)
        for curve in own:
            _draw(axis, curve, GREY if curve.baseline else next(colours))
        # Without the first tenth of the training: otherwise the differences at the end would be too small.
        low = min(curve.lowest(after=0.1) for curve in own)
        high = max(float(curve.values.max()) for curve in own)
        last = max(len(curve.mean) for curve in own)
        axis.set_ylim(low - 1, high + 0.04 * (high - low) + 0.1)
        axis.set_xlim(*((0, last * 1.02) if last > 1 else (0.5, 1.5)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_title("\n".join(textwrap.fill(line, PANEL) for line in title.split("\n")))
        axis.set_xlabel("Epoch")
        axis.legend(loc="lower right", fontsize=7, handlelength=1.4, borderaxespad=0.2)
    for row in axes:
        row[0].set_ylabel("Test accuracy (%)")
    return figure


def _draw(axis: Axes, curve: Curve, colour: str) -> None:
    epochs = range(1, len(curve.mean) + 1)
    style = "--" if curve.baseline else "-"
    marker = "o" if len(epochs) == 1 else None
    axis.plot(epochs, curve.mean, style, color=colour, marker=marker, label=f"{curve.name}, {curve.mean[-1]:.2f}")
    if curve.range:
        axis.fill_between(epochs, *curve.range, color=colour, alpha=0.18, linewidth=0)


@styled
def width(tables: Sequence[Table]) -> Figure:
    """Fig. 1 of the paper: accuracy of GN-S against its width, printed and for each family, also at other widths."""
    figure, [[axes]] = canvas()
    printed = {_width(row.student): row.accuracy for row in paper().table("I").rows if row.student.startswith("gns:")}
    name = "printed (one seed, best epoch)"
    axes.plot(*zip(*printed.items(), strict=True), "--", color="black", marker="o", mfc="white", label=name)
    widths = set(printed)
    for i, (families, summaries) in enumerate(_by_families(tables).items()):
        x = [_width(student) for student in summaries]
        widths |= set(x)
        mean = [ours.mean for ours in summaries.values()]
        spread = [ours.sd or 0 for ours in summaries.values()]
        seeds = sorted({ours.n for ours in summaries.values()})
        n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        name = f"{families}, {n} {'seed' if n == '1' else 'seeds'}"
        axes.errorbar(x, mean, spread, color=PALETTE[i], marker=MARKERS[i + 1], capsize=3, label=name)
    axes.set_xlabel("Width multiplier")
    axes.set_ylabel("Test accuracy (%)")
    axes.set_title("GhostNetV3-Small without a teacher")
    axes.set_xticks(sorted(widths))
    axes.legend(loc="lower right")
    return figure


def _by_families(tables: Sequence[Table]) -> dict[str, dict[str, Summary]]:
    """The untaught GN-S of the tables' cohorts. The key names all families with the same runs."""
    by_runs: dict[tuple[str, ...], tuple[list[str], dict[str, Summary]]] = {}
    for table in tables:
        own = untaught_small(table.cohort) if table.cohort else {}
        ours = {student: group.summary(table.options.metric) for student, group in own.items()}
        if ours:
            key = tuple(run.id for group in own.values() for run in group.runs)
            by_runs.setdefault(key, ([], ours))[0].append(table.family)
    return {" and ".join(families): ours for families, ours in by_runs.values()}


def untaught_small(cohort: Cohort) -> dict[str, RunGroup]:
    """The GN-S of a cohort without a teacher, by rising width."""
    small = {student: groups[0] for student, groups in cohort.untaught.items() if student.startswith("gns:")}
    return {student: small[student] for student in sorted(small, key=_width)}


def _width(student: str) -> float:
    return float(student.partition(":")[2])


def cost_axis(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5; a narrow one has them at equal steps."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    class Numbers(LogLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            ticks = super().tick_values(vmin, vmax)
            few = sum(vmin <= value <= vmax for value in ticks) < 3
            return MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(vmin, vmax) if few else ticks

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
    best = gather.pareto(points)
    steps = [point.cost for point in best], [point.accuracy for point in best]
    axes.step(*steps, where="post", color=LIGHT, linewidth=5, zorder=1, label="front")
    series = list(dict.fromkeys(point.series for point in points))
    for name, colour, marker in zip(series, itertools.cycle(PALETTE), itertools.cycle(MARKERS), strict=False):
        own = [(point.cost, point.accuracy, point.error or 0) for point in points if point.series == name]
        style = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 2}
        axes.errorbar(*zip(*own, strict=True), label=name or None, **style)
    above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    for point in {point.name: point for point in best}.values():  # of one name the best
        axes.annotate(point.name, (point.cost, point.accuracy), fontsize=7.5, **above)
    axes.margins(0.08, 0.12)
    axes.set_title(title)
    axes.set_xlabel(cost)
    axes.set_ylabel("Test accuracy (%)")
    axes.legend(loc="lower right", fontsize=8)
    return figure


@styled
def forest(tables: Sequence[Table]) -> Figure:
    """Differences with 95 % intervals, one panel per table and family. Printed differences are hollow diamonds."""
    table_rows = [
        (table, [row for row in table.rows if row.comparisons or (row.taught and row.printed)]) for table in tables
    ]
    table_rows = [(table, rows) for table, rows in table_rows if any(row.comparisons for row in rows)]
    _needs(table_rows, "a forest plot needs a taught run and its baseline; `ghost table` says which commands make them")
    counts = [len(rows) for _, rows in table_rows]
    chosen = any(row.differs for _, rows in table_rows for row in rows)  # then the title names the baseline
    size = (7.0, 0.9 + sum((0.6 if chosen else 0.27) * n + 0.62 for n in counts))
    ratios = {"height_ratios": [n + 1.2 for n in counts]}
    figure, axes = canvas(len(table_rows), 1, size, sharex=True, gridspec_kw=ratios)
    colours = {"better": PALETTE[2], "worse": PALETTE[1], "equivalent": PALETTE[0], UNDECIDED: GREY, None: GREY}
    for panel, (table, rows) in zip(axes[:, 0], table_rows, strict=True):
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
        title = f"Table {table.name} · {table.family}"
        panel.set_title(table.title.partition(":")[0] if table.family == "any" else title)
    against = "" if chosen else f" against {tables[0].baseline}"
    axes[-1, 0].set_xlabel(f"Δ accuracy{against} (points)")
    _forest_legend(figure, colours, [row for _, rows in table_rows for row in rows], tables[0].options.margin)
    return figure


def _delta(panel: Axes, delta: Difference, y: float, colour: str, hollow: bool = False) -> None:
    """A difference and its interval; hollow and thin if it is from a control."""
    if delta.low is not None:
        width = 1.0 if hollow else 2.0
        panel.plot([delta.low, delta.high], [y, y], color=colour, linewidth=width, zorder=2, solid_capstyle="butt")
    panel.plot(delta.mean, y, "o", color=colour, mfc="white" if hollow else colour, ms=4 if hollow else 5, zorder=4)


def _forest_legend(figure: Figure, colours: dict[str | None, str], rows: Sequence[Row], margin: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    verdicts = {line.verdict for row in rows for line in row.lines}
    named = [(verdict, colour) for verdict, colour in colours.items() if verdict and verdict in verdicts]
    handles: list[Any] = [
        Line2D([], [], color=colour, marker="o", linewidth=2, label=verdict) for verdict, colour in named
    ]
    hollow = {"mfc": "white", "xdata": [], "ydata": []}
    if any(row.printed for row in rows):
        handles.append(Line2D(linestyle="none", marker="D", mec="black", markersize=4.5, label="printed", **hollow))
    if any(len(row.lines) > 1 for row in rows):
        name = "minus its control"
        handles.append(Line2D(color=GREY, marker="o", markersize=4, linewidth=1, label=name, **hollow))
    handles.append(Patch(color="#E6E6E6", label=f"within ±{margin:g}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)


def _caption(row: Row) -> str:
    """The name of a row and its number of runs; of a row that the user chose also what differs from the baseline."""
    if row.differs:
        changes = textwrap.fill(differences(row.differs).replace("\n", ", "), 36, max_lines=2, placeholder=" ...")
        return f"{row.name} ({row.ours.n})\n{changes}"
    short = row.printed and row.strategy in ("chain", "ensemble") and not (row.group and row.group.setting)
    name = f"{label(row.student)} < {row.strategy}" if short else row.name
    return f"{name} ({row.ours.n})" if row.ours else name


def _needs(values: Sequence[Any], message: str) -> None:
    if not values:
        raise UsageError(message)
