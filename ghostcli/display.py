"""What a person sees while a run goes on, always on stderr: on a terminal each epoch's line above a live one, plain
lines elsewhere.

Invariant: on a terminal no line of progress is wider than it, and what tells most is never what is cut.
"""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from ghostcli.errors import printable


class _Stderr(Console):
    """A reader that has gone (`2>&1 | head`) ends no training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


console = _Stderr(stderr=True, highlight=False, soft_wrap=True)


def table(first: str, *titles: str, numbers: bool = False) -> Table:
    """An empty table of results; the columns after the first hold `numbers`, or words."""
    view = Table(first, box=None, pad_edge=False, header_style="bold", show_header=numbers)
    for title in titles:
        view.add_column(title, justify="right" if numbers else "left", no_wrap=True)
    return view


def tell(view: Table) -> None:
    """A table of results on standard output; in a file, which has no edge to wrap at, as wide as it is."""
    out = Console(highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out = Console(highlight=False, soft_wrap=True, width=max(120, out.measure(view).maximum))
    out.print(view)


def shorten(name: str, width: int) -> str:
    """`name` in at most `width` columns: a run's id loses its middle, for its network and its seed tell it apart."""
    if len(name) <= width:
        return name
    tail = min(9, (width - 1) // 2)
    return f"{name[: max(width - 1 - tail, 0)]}~{name[len(name) - tail :]}"


def clock(seconds: float | None) -> str:
    """`1:02:03` or `02:03`."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class _Live(ProgressColumn):
    """The live line: a bar that takes what room is left, how far, how long yet, how fast."""

    def render(self, task: Task) -> Text:
        width = console.width
        if not task.total:
            return Text(shorten(task.description, width))
        share = min(task.completed / task.total, 1)
        epochs, images = task.fields["epochs"], task.fields["images"]
        what = shorten(task.description, 24)
        if epochs:
            what = f"epoch {min(int(share * epochs) + 1, epochs)}/{epochs}"
        elif task.description == "runs":
            what = f"runs {task.completed:.0f}/{task.total:.0f}"
        speed = f"{images * epochs * task.speed / task.total:.0f} images/s" if epochs and task.speed else ""
        parts = [what, f"{share:.0%}", f"ETA {clock(task.time_remaining)}", speed, task.fields["note"]]
        text = "  ".join(part for part in parts if part)[: width - 8]
        room = max(min(24, width - len(text) - 2), 4)
        done, left = "━─" if console.encoding.startswith("utf") else "#-"
        filled = round(share * room)
        return Text.assemble((done * filled, "green"), (left * (room - filled), "dim"), "  ", text)


class Display:
    """Progress of one run. Used as a context manager; `quiet` shows nothing but warnings."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and console.is_terminal
        self.bar = Progress(_Live(), console=console, transient=True, disable=not self.live, speed_estimate_period=120)
        self.epochs: dict[str, dict[str, int]] = {}
        self.task = self.bar.add_task("starting", total=None, note="", epochs=0, images=0)
        self.said = 0.0

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.bar.console.print(Text(printable(text)))

    def warn(self, text: str) -> None:
        self.bar.console.print(Text(printable(text), style="yellow"))

    def training(self, run: str, epochs: int, images: int) -> None:
        """What the stretch of work that is called `run` will be: so many epochs of so many images."""
        self.epochs[run] = {"epochs": epochs, "images": images}

    def begin(self, title: str, total: int, done: int = 0, note: str = "") -> None:
        """A new stretch of work of `total` units (optimiser steps, images)."""
        fields = self.epochs.get(title, {"epochs": 0, "images": 0})
        self.bar.reset(self.task, total=total, completed=done, description=title, note=note, **fields)

    def advance(self, by: int = 1, note: str | None = None) -> None:
        if self.live:
            self.bar.update(self.task, advance=by, **({} if note is None else {"note": note}))

    def epoch(self, run: str, row: dict, epochs: int) -> None:
        """One finished epoch: a line that fits the terminal; elsewhere one that holds more (at most one a second)."""
        rate = f"{row['images_per_second']:.0f} images/s"
        test = f"test {row['test']['accuracy']:.2f}"
        if self.live:
            done = f"epoch {row['epoch']}/{epochs}"
            rest = f"{done}  loss {row['loss']:.3f}  train {row['train_accuracy']:.2f}  {test}  {rate}"
            room = console.width - len(rest) - 2
            if room < 12:
                rest = f"{done}  loss {row['loss']:.3f}  {test}"  # the live line has the rate
                room = max(console.width - len(rest) - 2, 8)
            self.line(f"{shorten(run, room)}  {rest}")
        elif row["epoch"] == epochs or time.monotonic() - self.said >= 1:
            self.said = time.monotonic()
            validation = f"  val {row['validation']['accuracy']:.2f}" if row.get("validation") else ""
            self.line(
                f"{run}  epoch {row['epoch']}/{epochs}  lr {row['lr']:.2g}  loss {row['loss']:.4f} (hard "
                f"{row['hard']:.4f}, soft {row['soft']:.4f})  train {row['train_accuracy']:.2f}{validation}  {test}  "
                f"{rate}"
            )
