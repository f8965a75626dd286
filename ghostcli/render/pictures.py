"""Figures of predictions: confusion matrix, reliability, and images on which student and teacher disagree.

Invariant: each function takes arrays and returns a matplotlib `Figure`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ghostcli.comparison import calibration
from ghostcli.render.figures import GREY, PALETTE, canvas, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 20


@styled
def confusion(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Percent of each true class (rows) predicted as each class (columns). Numbers are printed for up to 20 classes."""
    n = len(classes)
    counts = calibration.confusion(logits, labels)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(9.0, 2.0 + 0.42 * n)
    figure, [[axes]] = canvas(size=(side + 0.6, side))
    errors = percent * (1 - np.eye(n))  # colours show the errors only, because the diagonal is much larger
    image = axes.imshow(errors, cmap="Oranges", vmin=0, vmax=max(float(errors.max()), 1e-9))
    axes.grid(visible=False)
    if n <= MANY:
        for i, j in np.argwhere(percent >= 0.05):
            dark = i != j and errors[i, j] > 0.6 * errors.max()
            text = f"{percent[i, j]:.1f}" if percent[i, j] < 99.95 else "100"
            style = {"color": "white" if dark else "black", "weight": "bold" if i == j else "normal"}
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, **style)
        axes.set_xticks(range(n), classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), classes)
    axes.set_xlabel("given class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="errors (% of the true class)", shrink=0.7)
    return figure


@styled
def reliability(runs: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Accuracy against confidence for (name, logits, labels) of each run, and the share of images in each bin."""
    figure, axes = canvas(2, 1, (4.6, 5.0), sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    curve, share = axes[:, 0]
    curve.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for (name, logits, labels), colour in zip(runs, itertools.cycle(PALETTE), strict=False):
        bins = calibration.calibration(logits, labels)
        there = bins.count > 0
        text = f"{name}, ECE {100 * calibration.ece(logits, labels):.1f} %"
        curve.plot(bins.confidence[there], bins.accuracy[there], "o-", color=colour, label=text, markersize=4)
        edges = np.linspace(0, 1, len(bins.count) + 1)
        share.stairs(100 * bins.count / bins.count.sum(), edges, color=colour, linewidth=1.4)
    curve.set_ylabel("accuracy")
    curve.set_xlim(0, 1)
    curve.set_ylim(0, 1)
    curve.legend(loc="upper left", fontsize=8)
    share.set_yscale("log")
    share.minorticks_off()
    share.set_ylabel("images (%)")
    share.set_xlabel("confidence (largest probability)")
    return figure


def total_variation(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Total variation distance [N] between the probabilities of two networks: 0 if equal, 1 if disjoint."""
    return np.abs(calibration.softmax(student) - calibration.softmax(teacher)).sum(axis=1) / 2


@styled
def disagreement(
    images: np.ndarray,
    labels: np.ndarray,
    student: np.ndarray,
    teacher: np.ndarray,
    classes: Sequence[str],
    count: int = 24,
    title: str = "",
) -> Figure:
    """The `count` images (of uint8 [N, H, W, 3]) with the largest `total_variation`, with both top-1 classes."""
    distance = total_variation(student, teacher)
    worst = np.argsort(-distance, kind="stable")[: min(count, len(images))]
    columns = min(6, len(worst))
    rows = -(-len(worst) // columns)
    figure, axes = canvas(rows, columns, (1.35 * columns + 0.2, 1.85 * rows + 0.5))
    both = [("S", calibration.softmax(student), PALETTE[0]), ("T", calibration.softmax(teacher), PALETTE[1])]
    below = {"ha": "center", "va": "top", "fontsize": 6.5}
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, i in zip(axes.flat, worst, strict=False):
        panel.imshow(images[i], interpolation="nearest")
        panel.set_title(classes[labels[i]], fontsize=8, loc="center", pad=3)
        for line, (who, probabilities, colour) in enumerate(both):
            choice = int(probabilities[i].argmax())
            right = "✓" if choice == labels[i] else "✗"
            text = f"{who} {classes[choice]} {100 * probabilities[i, choice]:.0f} % {right}"
            panel.text(0.5, -0.04 - 0.14 * line, text, transform=panel.transAxes, color=colour, **below)
    figure.suptitle(title, fontsize=10)
    return figure


@styled
def answer(image: np.ndarray, shares: Mapping[str, float], title: str = "") -> Figure:
    """An image uint8 [H, W, 3] beside the probability of each class, 0 to 1."""
    figure, [[picture, bars]] = canvas(1, 2, (6.0, 2.8), gridspec_kw={"width_ratios": [1, 1.3]})
    picture.imshow(image, interpolation="nearest")
    picture.set_axis_off()
    best = max(shares, key=shares.__getitem__)
    colours = [PALETTE[2] if name == best else GREY for name in shares]
    bars.barh(range(len(shares)), [100 * share for share in shares.values()], color=colours)
    bars.set_yticks(range(len(shares)), shares)
    bars.invert_yaxis()
    bars.set_xlim(0, 100)
    bars.set_xlabel("probability (%)")
    bars.grid(axis="y", visible=False)
    figure.suptitle(title, fontsize=10)
    return figure
