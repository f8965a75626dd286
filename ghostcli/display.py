"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ghostcli.errors import printable

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Display:
    """Progress of one run. Used as a context manager; `quiet` shows nothing but warnings."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.task = self.bar.add_task("starting", total=None, note="")
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

    def begin(self, title: str, total: int, done: int = 0, note: str = "") -> None:
        """A new stretch of work of `total` units (optimiser steps, images)."""
        self.bar.reset(self.task, total=total, completed=done, description=title, note=note)

    def advance(self, by: int = 1, note: str | None = None) -> None:
        if self.live:
            self.bar.update(self.task, advance=by, **({} if note is None else {"note": note}))

    def epoch(self, run: str, row: dict, epochs: int) -> None:
        """One finished epoch: the bar's note on a terminal, elsewhere a line (at most one a second)."""
        validation = f"  val {row['validation']['accuracy']:.2f}" if row.get("validation") else ""
        text = (
            f"epoch {row['epoch']}/{epochs}  lr {row['lr']:.2g}  loss {row['loss']:.4f} (hard {row['hard']:.4f}, soft "
            f"{row['soft']:.4f})  train {row['train_accuracy']:.2f}{validation}  test {row['test']['accuracy']:.2f}  "
            f"{row['images_per_second']:.0f} images/s"
        )
        if self.live:
            self.bar.update(self.task, note=text.partition("  ")[2])
        elif row["epoch"] == epochs or time.monotonic() - self.said >= 1:
            self.said = time.monotonic()
            self.line(f"{run}  {text}")
