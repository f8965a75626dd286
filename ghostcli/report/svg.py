"""SVG by elements. Invariant: every text and attribute is escaped, and no control character leaves this module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from ghostcli.errors import printable


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """`<tag name="value">children</tag>`. `stroke_width` is written stroke-width, `class_` class; None is left out.

    Children that are Markup stand as they are; all others are text.
    """
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    inside = "".join(f' {name}="{escape(_plain(value))}"' for name, value in pairs)
    content = "".join(child if isinstance(child, Markup) else escape(_plain(child)) for child in children)
    return Markup(f"<{tag}{inside}>{content}</{tag}>")


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else printable(value)


def points(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Coordinates of a polyline, to a tenth of a unit."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """The map from values in [low, high] to coordinates in [start, end]; logarithmic where values are positive."""
    if log:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return start + ((math.log(value) if log else value) - low) / span * (end - start)

    return place


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round values (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values within [low, high] for a logarithmic axis: 1, 2 and 5 times powers of ten, or powers alone.

    A narrow range has fewer than three of these, and gets the values of `ticks`.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    if len(inside) < 3:
        return ticks(low, high)
    return inside if len(inside) <= 6 else [value for value in inside if math.log10(value) % 1 < 1e-9]
