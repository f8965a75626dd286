"""The report's charts, as SVG. The page's script adds what answers the mouse; without it every chart still shows.

Invariant: a chart's colours are classes of the page's style sheet, so that one chart serves light, dark and print.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ghostcli.comparison.calibration import calibration, ece
from ghostcli.comparison.stats import Difference
from ghostcli.render.gather import Curve, Point, pareto
from ghostcli.report.svg import element, log_ticks, points, scale, ticks

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 38
#: Colours of the style sheet; more series begin again.
COLOURS = 7
#: The most points of a line: more would be invisible, and make the file large.
MOST_POINTS = 240
MANY_CLASSES = 20
#: Positive values whose largest is so many times the smallest get a logarithmic axis.
WIDE = 300


@dataclass(frozen=True)
class Chart:
    """`legend`: (class of the colour, text) of each series."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


def lines(
    title: str, found: Sequence[Curve], what: str, zoom: bool = False, wide: bool = False, note: str = ""
) -> Chart:
    """Values by epoch: the mean of each curve, and the range of its runs as a band. Baselines are grey and dashed.

    With `zoom` the first tenth of a training does not set the lower end of the scale. With `wide` the axis is
    logarithmic if one line would hide all others: the loss of a new network can be huge.
    """
    epochs = max(len(curve.mean) for curve in found)
    low = min(curve.lowest(after=0.1 if zoom else 0.0) for curve in found)
    high = max(float(curve.values.max()) for curve in found)
    if log := wide and low > 0 and high / low > WIDE:
        low, high, what = low / 1.1, high * 1.1, f"{what}, logarithmic"
    else:
        margin = 0.05 * (high - low) or 0.1 * abs(high) or 0.5
        low, high = low - margin, high + margin
    x, y = scale(1, max(epochs, 2), LEFT, WIDTH - RIGHT), scale(low, high, HEIGHT - BOTTOM, TOP, log)
    drawn, legend, colours = [], [], itertools.cycle(f"s{i}" for i in range(COLOURS))
    for curve in found:
        colour, mean = "base" if curve.baseline else next(colours), curve.mean.tolist()
        legend.append((colour, f"{curve.name}, {mean[-1]:.4g}"))
        at = sorted({round(i) for i in np.linspace(0, len(mean) - 1, min(len(mean), MOST_POINTS))})
        xs, ys = [x(i + 1) for i in at], [y(mean[i]) for i in at]
        if curve.range is not None:
            lower, upper = (edge.tolist() for edge in curve.range)
            edge = points([*xs, *xs[::-1]], [*(y(lower[i]) for i in at), *(y(upper[i]) for i in at[::-1])])
            drawn.append(element("polygon", points=edge, class_=f"band {colour}"))
        read = {
            "data_name": curve.name,
            "data_epochs": " ".join(str(i + 1) for i in at),
            "data_values": " ".join(f"{mean[i]:.4g}" for i in at),
        }
        if len(at) == 1:
            drawn.append(element("circle", cx=xs[0], cy=ys[0], r=3, class_=f"line dot {colour}", **read))
        else:
            drawn.append(element("polyline", points=points(xs, ys), class_=f"line {colour}", **read))
    box = {"x": LEFT, "y": TOP, "width": WIDTH - LEFT - RIGHT, "height": HEIGHT - TOP - BOTTOM}
    inside = element("svg", *drawn, viewBox="{x} {y} {width} {height}".format(**box), **box)  # clips what is outside
    marks = [int(tick) for tick in ticks(1, max(epochs, 2)) if tick == int(tick)]
    numbers = log_ticks(low, high) if log else ticks(low, high)
    frame = _frame(x, y, [1] if epochs == 1 else marks, numbers, "epoch", what)
    ruler = element("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="ruler")
    return Chart(title, _svg(title, frame, inside, ruler, class_="chart lines"), tuple(legend), note)


def _svg(title: str, *children: Markup, width: float = WIDTH, height: float = HEIGHT, class_: str = "chart") -> Markup:
    return element("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_=class_)


def _frame(x, y, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> Markup:
    """Grid, numbers and titles of two axes."""
    parts = []
    for value in y_ticks:
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid"))
        parts.append(element("text", f"{value:g}", x=LEFT - 6, y=y(value) + 4, text_anchor="end"))
    for value in x_ticks:
        parts.append(element("line", x1=x(value), x2=x(value), y1=TOP, y2=HEIGHT - BOTTOM, class_="grid"))
        parts.append(element("text", f"{value:g}", x=x(value), y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    turned = f"rotate(-90 12 {middle:g})"
    parts.append(element("text", y_label, x=12, y=middle, text_anchor="middle", transform=turned))
    return element("g", *parts)


def front(title: str, found: Sequence[Point], what: str) -> Chart:
    """Accuracy against cost by method, and the front: what nothing cheaper beats."""
    cheap, dear = min(point.cost for point in found), max(point.cost for point in found)
    if log := 0 < cheap < dear:
        edge = (dear / cheap) ** 0.06
        left, right = cheap / edge, dear * edge
    else:
        left, right = cheap - 1, dear + 1
    low = min(point.accuracy - (point.error or 0) for point in found)
    high = max(point.accuracy + (point.error or 0) for point in found)
    margin = 0.1 * (high - low) or 0.5
    low, high = low - margin, high + margin
    x, y = scale(left, right, LEFT, WIDTH - RIGHT, log), scale(low, high, HEIGHT - BOTTOM, TOP)
    best = pareto(found)
    steps = [(x(best[0].cost), y(best[0].accuracy))]
    for before, after in itertools.pairwise(best):
        steps += [(x(after.cost), y(before.accuracy)), (x(after.cost), y(after.accuracy))]
    steps.append((WIDTH - RIGHT, y(best[-1].accuracy)))
    parts = [element("polyline", points=points(*zip(*steps, strict=True)), class_="front")]
    methods = list(dict.fromkeys(point.series for point in found))
    for point in found:
        colour = f"s{methods.index(point.series) % COLOURS}"
        cx, cy, error = x(point.cost), y(point.accuracy), point.error or 0
        text = f"{point.name}, {point.series}: {point.accuracy:.2f} %" + (f" ± {error:.2f}" if error else "")
        reach = {"y1": y(point.accuracy - error), "y2": y(point.accuracy + error)}
        parts.append(element("line", x1=cx, x2=cx, **reach, class_=f"whisker {colour}"))
        tip = f"{text} at {point.cost:.3g}"
        parts.append(element("circle", cx=cx, cy=cy, r=4.5, class_=f"dot {colour}", data_tip=tip))
    for point in {point.name: point for point in best}.values():  # of one name the best
        place = min(max(x(point.cost), LEFT + 30), WIDTH - RIGHT - 30)
        parts.append(element("text", point.name, x=place, y=y(point.accuracy) - 9, text_anchor="middle"))
    x_ticks = log_ticks(left, right) if log else [tick for tick in ticks(left, right) if tick >= 0]
    frame = _frame(x, y, x_ticks, ticks(low, high), what, "test accuracy (%)")
    legend = tuple((f"s{i % COLOURS}", method) for i, method in enumerate(methods))
    return Chart(title, _svg(title, frame, *parts), legend)


#: Size of a forest plot's row.
ROW_WIDTH, ROW_HEIGHT = 300, 22


def forest(rows: Sequence[tuple[Difference, str | None, float | None, str]], margin: float) -> list[Markup]:
    """A forest plot: each row's difference with its interval, and last their common scale, in points.

    `rows`: difference, verdict, the paper's printed difference (a hollow diamond) and what is said of the row.
    """
    ends = [value for delta, _, printed, _ in rows for value in (delta.low, delta.high, delta.mean, printed)]
    ends = [-margin, margin, *(value for value in ends if value is not None)]
    room = 0.04 * (max(ends) - min(ends))
    low, high, middle = min(ends) - room, max(ends) + room, ROW_HEIGHT / 2
    x, size = scale(low, high, 6, ROW_WIDTH - 6), {"width": ROW_WIDTH, "height": ROW_HEIGHT, "class_": "row"}
    drawn = []
    for delta, verdict, printed, said in rows:
        band = {"x": x(-margin), "width": x(margin) - x(-margin), "y": 0, "height": ROW_HEIGHT}
        zero = element("line", x1=x(0), x2=x(0), y1=0, y2=ROW_HEIGHT, class_="zero")
        parts = [element("rect", **band, class_="margin"), zero]
        if printed is not None:
            at = x(printed)
            shape = points([at, at + 4.5, at, at - 4.5], [middle - 4.5, middle, middle + 4.5, middle])
            parts.append(element("polygon", points=shape, class_="printed", data_tip=f"printed: {printed:+.2f} points"))
        colour = "v-" + (verdict or "none").replace(" ", "-")
        if delta.low is not None:
            reach = {"x1": x(delta.low), "x2": x(delta.high), "y1": middle, "y2": middle}
            parts.append(element("line", **reach, class_=f"interval {colour}"))
        parts.append(element("circle", cx=x(delta.mean), cy=middle, r=4.5, class_=f"dot {colour}", data_tip=said))
        drawn.append(_svg(said, *parts, **size))
    marks = []
    for tick in ticks(low, high, 6):
        place = min(max(x(tick), 12), ROW_WIDTH - 12)
        marks.append(element("text", f"{tick:+g}" if tick else "0", x=place, y=14, text_anchor="middle"))
    return [*drawn, _svg("scale, in points", *marks, **size)]


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Chart:
    """What each true class (row) was taken for: counts [true, given]. Shares are of the true class."""
    n = len(classes)
    names = n <= MANY_CLASSES
    cell = 30.0 if names else 380 / n
    left, top = (90.0, 70.0) if names else (24.0, 24.0)
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = counts / totals
    most = max((shares * (1 - np.eye(n))).max(), 1e-9)  # the diagonal would drown the errors
    parts = []
    for i, j in np.argwhere(counts > 0):
        x, y = left + j * cell, top + i * cell
        tip = f"{classes[i]}, taken for {classes[j]}: {counts[i, j]:,} of {totals[i, 0]:,} ({shares[i, j]:.1%})"
        level = "right" if i == j else f"wrong w{max(1, min(5, round(5 * shares[i, j] / most)))}"
        parts.append(element("rect", x=x, y=y, width=cell - 1, height=cell - 1, data_tip=tip, class_=level))
        if names:
            middle = {"x": x + cell / 2 - 0.5, "y": y + cell / 2 + 3.5, "text_anchor": "middle"}
            parts.append(element("text", f"{counts[i, j]}", **middle, class_="count"))
    for i, name in enumerate(classes if names else ()):
        short = name if len(name) <= 12 else name[:11] + "…"
        parts.append(element("text", short, x=left - 5, y=top + (i + 0.5) * cell + 4, text_anchor="end"))
        x = left + (i + 0.5) * cell
        parts.append(element("text", short, x=x, y=top - 6, transform=f"rotate(-45 {x:g} {top - 6:g})"))
    if not names:
        parts.append(element("text", f"{n} classes, given", x=left, y=top - 8))
    size = {"width": left + n * cell + (40 if names else 4), "height": top + n * cell + 4}
    note = "Rows: the true class; columns: what the network said. Counts of test images."
    return Chart("Confusion", _svg("Confusion of classes", *parts, **size), note=note)


def reliability(logits: np.ndarray, labels: np.ndarray) -> Chart:
    """Accuracy against confidence in 15 bins; a well calibrated network lies on the diagonal."""
    bins = calibration(logits, labels)
    x, y = scale(0, 1, LEFT, WIDTH - RIGHT), scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="diagonal")]
    there = np.flatnonzero(bins.count)
    xs, ys = [x(value) for value in bins.confidence[there]], [y(value) for value in bins.accuracy[there]]
    parts.append(element("polyline", points=points(xs, ys), class_="line s0"))
    for i, at_x, at_y in zip(there, xs, ys, strict=True):
        tip = f"confidence {bins.confidence[i]:.0%}, accuracy {bins.accuracy[i]:.0%}: {bins.count[i]:,} images"
        size = 2.5 + 6 * float(np.sqrt(bins.count[i] / bins.count.max()))
        parts.append(element("circle", cx=at_x, cy=at_y, r=size, class_="dot s0", data_tip=tip))
    marks = ticks(0, 1)
    frame = _frame(x, y, marks, marks, "confidence (largest probability)", "accuracy")
    error = f"Expected calibration error {100 * ece(logits, labels):.2f} points (15 bins)."
    note = f"{error} The area of a dot is its share of images."
    return Chart("Reliability", _svg("Accuracy against confidence", frame, *parts), note=note)


def bars(title: str, values: Sequence[tuple[str, float, str]], note: str = "") -> Chart:
    """Horizontal bars in percent: (name, value in 0..100, what is said of it)."""
    row, left = 20, 110
    x = scale(0, 100, left, WIDTH - 50)
    parts = []
    for i, (name, value, tip) in enumerate(values):
        short = name if len(name) <= 16 else name[:15] + "…"
        parts.append(element("text", short, x=left - 6, y=i * row + 15, text_anchor="end"))
        size = {"x": left, "y": i * row + 4, "width": x(value) - left, "height": row - 6}
        parts.append(element("rect", **size, class_="bar", data_tip=tip))
        parts.append(element("text", f"{value:.1f}", x=x(value) + 5, y=i * row + 15))
    return Chart(title, _svg(title, *parts, height=len(values) * row + 6), note=note)
