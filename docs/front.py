"""Draws docs/front.svg, the README's second picture: accuracy against computation on CIFAR-10.

python docs/front.py

The networks that come with ghost are drawn from their records; other people's from docs/published.toml and the
references of MLPerf Tiny. Theirs are what they published: other recipes, and sometimes the best epoch.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghostcli import zoo
from ghostcli.deploy import mlperf
from ghostcli.paper import label
from ghostcli.records import trained
from ghostcli.records.model import RunResult
from ghostcli.render.figures import GREY, PALETTE, canvas, cost_axis, save, styled

DOCS = Path(__file__).resolve().parent
#: Name, multiply-accumulates of one image in millions, accuracy in percent.
Point = tuple[str, float, float]


def name_of(run: RunResult) -> str:
    return f"{label(run.student)}: {run.accuracy.selected:.1f}"


def ours() -> list[Point]:
    found = []
    for name in trained.shipped():
        run = trained.find(DOCS, name).result
        macs = zoo.count_macs(zoo.deploy(zoo.build(run.student, run.classes)))
        found.append((name_of(run), macs / 1e6, run.accuracy.selected))
    return sorted(found, key=lambda point: point[1])


def theirs() -> list[Point]:
    published = tomllib.loads((DOCS / "published.toml").read_text())["networks"]
    entries = [(one["name"], one["macs"], one["accuracy"]) for one in published]
    entries += [(one.model, one.macs, one.accuracy) for one in mlperf.references() if one.model.endswith("float")]
    return [(name, macs / 1e6, accuracy) for name, macs, accuracy in entries]


@styled
def front() -> Figure:
    figure, [[axes]] = canvas(size=(7.2, 3.8))
    cost_axis(axes)
    _draw(axes, theirs(), "published by others", color=GREY, marker="o", linestyle="none")
    _draw(axes, ours(), "come with ghost", color=PALETTE[0], marker="D", linestyle="-")
    axes.set_xlim(0.3, 350)
    axes.set_xlabel("Multiply-accumulates of one image (millions)")
    axes.set_ylabel("CIFAR-10 test accuracy (%)")
    axes.legend(loc="lower right")
    return figure


def _draw(axes: Axes, points: list[Point], what: str, **style: str) -> None:
    """Names stand to the right of a mark, or to the left if another mark is there, or a line: then above it."""
    axes.plot([macs for _, macs, _ in points], [accuracy for *_, accuracy in points], label=what, **style)
    for name, macs, accuracy in points:
        near = any(macs < x < 2 * macs and abs(y - accuracy) < 0.5 for _, x, y in points)
        line = style["linestyle"] != "none"
        at, side = ((-6, 5 * line), "right") if near or line else ((6, 0), "left")
        axes.annotate(
            name,
            (macs, accuracy),
            at,
            textcoords="offset points",
            fontsize=7.5,
            ha=side,
            va="center",
            color=style["color"],
        )


if __name__ == "__main__":
    matplotlib.rcParams["svg.fonttype"] = "none"  # names as text, not as curves
    print(save(front(), DOCS / "front.svg").relative_to(DOCS.parent))
