"""Progress of runs, always on stderr. A terminal shows one line per epoch above a live progress line. A notebook shows
one line that is rewritten. A file, a pipe or the log of a CI job gets plain lines.

Invariant: on a terminal no progress line is wider than the terminal. Only the least important text is cut. (With
--verbose the lines of epochs are whole, and a narrow terminal wraps them.)
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Collection
from contextlib import redirect_stdout
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

from ghostcli.errors import printable


class _Stderr(Console):
    """A closed pipe (`2>&1 | head`) does not stop a training."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


console = _Stderr(stderr=True, highlight=False, soft_wrap=True)

#: How much this process says: --quiet, nothing, --verbose.
QUIET, NORMAL, VERBOSE = -1, 0, 1
volume = NORMAL
#: Seconds between two plain lines about unfinished work.
PLAIN_EVERY = 60.0


def live() -> bool:
    """Whether a line on stderr can be rewritten.

    A CI job may ask for colours (FORCE_COLOR), which rich takes for a terminal. But a log cannot rewrite a line.
    """
    return volume != QUIET and console.is_interactive and console.file.isatty()


class _Results(Table):
    """A table whose strings are text as it stands: no markup of rich, and no commands to the terminal."""

    def add_row(self, *cells: str, **how: Any) -> None:
        super().add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in cells), **how)


def table(first: str, *titles: str, words: Collection[str] = (), header: bool = True) -> Table:
    """An empty table of results. The columns after the first hold numbers, but for those with these titles `words`."""
    view = _Results(box=None, pad_edge=False, header_style="bold", show_header=header)
    for title in (first, *titles):
        view.add_column(Text(title), justify="left" if title in (first, *words) else "right", no_wrap=True)
    return view


def apart() -> redirect_stdout[Any]:
    """Standard output is for results: what code of one's own prints meanwhile goes to stderr."""
    return redirect_stdout(sys.stderr)


def tell(view: Table) -> None:
    """Print a table of results on standard output. No cell is ever cut: a narrow terminal wraps the lines."""
    out = Console(highlight=False, soft_wrap=True)
    needed = out.measure(view, options=out.options.update(max_width=10_000)).maximum
    Console(highlight=False, soft_wrap=True, width=max(needed, out.width)).print(view)


def tell_json(value: Any) -> None:
    """Print a JSON value on standard output. NaN and infinities become null.

    Characters stay as they are where standard output has them all. Lone surrogates, which a file's name may hold, and
    what commands a terminal are written as JSON's escapes.
    """
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(_finite(value), indent=1, ensure_ascii=ascii_only, allow_nan=False)
    sys.stdout.write(re.sub("[\x7f-\x9f\ud800-\udfff]", lambda one: f"\\u{ord(one[0]):04x}", text) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wrapped(sentence: str) -> str:
    """The sentence in lines that end between words, if standard output is a terminal; else one line."""
    if not sys.stdout.isatty():
        return sentence
    return textwrap.fill(sentence, Console().width, break_long_words=False, break_on_hyphens=False)


def shorten(name: str, width: int) -> str:
    """`name` in at most `width` columns. The middle is cut: a run's id starts with its network, ends with its seed."""
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


def progress(task: Task, named: bool = True) -> tuple[float, list[str]]:
    """The finished share of `task` (0 to 1), and in words: run (if `named`), epoch, percent, time left, speed, note.

    Of work whose length is not known (a total of 0) only its name and note.
    """
    if not task.total:
        return 0.0, [part for part in (task.description, task.fields["note"]) if part]
    share = min(task.completed / task.total, 1)
    epochs, images = task.fields["epochs"], task.fields["images"]
    what = shorten(task.description, 24)
    if epochs:
        what = f"epoch {min(int(share * epochs) + 1, epochs)}/{epochs}"
    elif task.description == "runs":
        what = f"runs {task.completed:.0f}/{task.total:.0f}"
    speed = f"{images * epochs * task.speed / task.total:.0f} images/s" if epochs and task.speed else ""
    parts = [what, f"{share:.0%}", f"ETA {clock(task.time_remaining)}", speed, task.fields["note"]]
    name = [task.description] if named and epochs else []
    return share, name + [part for part in parts if part]


class _Live(ProgressColumn):
    """The live line: a bar, and the progress in words. The bar takes the remaining width."""

    def render(self, task: Task) -> Text:
        width = console.width
        share, parts = progress(task, named=False)
        if not task.total:
            return Text(shorten("  ".join(parts), width))
        text = "  ".join(parts)[: width - 8]
        room = max(min(24, width - len(text) - 2), 4)
        done, left = "━─" if console.encoding.startswith("utf") else "#-"
        filled = round(share * room)
        return Text.assemble((done * filled, "green"), (left * (room - filled), "dim"), "  ", text)


class _Cell:
    """A line in a notebook that is rewritten, at most twice a second."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.written = 0.0

    def write(self, share: float, text: str) -> None:
        if self.handle is not None and time.monotonic() - self.written < 0.5:
            return
        from IPython.display import display

        self.written = time.monotonic()
        html = f'<progress value="{share:.3f}"></progress> <code>{escape(text)}</code>'
        content = {"text/html": html, "text/plain": text}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)


class Display:
    """Progress of one run, as a context manager. With `quiet` (or --quiet) it shows warnings only."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet or volume == QUIET
        self.live = not self.quiet and live()
        self.cell = _Cell() if console.is_jupyter and not self.quiet else None
        self.bar = Progress(_Live(), console=console, transient=True, disable=not self.live, speed_estimate_period=120)
        self.epochs: dict[str, dict[str, int]] = {}
        self.task = self.bar.add_task("starting", total=None, note="", epochs=0, images=0)
        self.printed = time.monotonic()
        self.epoch_printed = 0.0

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print one permanent line."""
        if not self.quiet:
            self.printed = time.monotonic()
            self.bar.console.print(Text(printable(text)))

    def detail(self, text: str) -> None:
        """Print one permanent line if --verbose asks for it."""
        if volume == VERBOSE:
            self.line(text)

    def warn(self, text: str) -> None:
        self.bar.console.print(Text(printable(text), style="yellow"))

    def training(self, run: str, epochs: int, images: int) -> None:
        """Register the size of the work named `run`: `epochs` epochs of `images` images."""
        self.epochs[run] = {"epochs": epochs, "images": images}

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start new work of `total` units (optimiser steps or images), of which `done` are finished."""
        fields = self.epochs.get(title, {"epochs": 0, "images": 0})
        self.bar.reset(self.task, total=total, completed=done, description=title, note="", **fields)

    def advance(self, by: int = 1, note: str | None = None) -> None:
        """Count finished units. Where no line can be rewritten, one line a minute says how far the work is."""
        if self.quiet:
            return
        self.bar.update(self.task, advance=by, **({} if note is None else {"note": note}))
        task = self.bar.tasks[0]
        if self.cell is not None:
            share, parts = progress(task)
            self.cell.write(share, "  ".join(parts))
        elif not self.live and time.monotonic() - self.printed >= PLAIN_EVERY:
            self.line("  ".join(progress(task)[1]))

    def epoch(self, run: str, row: dict, epochs: int) -> None:
        """Print one finished epoch: a line that fits the terminal; elsewhere a longer line, at most one a second.

        A notebook's line is rewritten instead. --verbose prints every epoch, in the long form.
        """
        rate = f"{row['images_per_second']:.0f} images/s"
        test = f"test {row['test']['accuracy']:.2f}"
        now, wordy = time.monotonic(), volume == VERBOSE
        if self.live and not wordy:
            done = f"epoch {row['epoch']}/{epochs}"
            rest = f"{done}  loss {row['loss']:.3f}  train {row['train_accuracy']:.2f}  {test}  {rate}"
            room = console.width - len(rest) - 2
            if room < 12:
                rest = f"{done}  loss {row['loss']:.3f}  {test}"  # the live line shows the rate
                room = max(console.width - len(rest) - 2, 8)
            self.line(f"{shorten(run, room)}  {rest}")
        elif self.cell is not None and not wordy:
            self.bar.update(self.task, note=f"loss {row['loss']:.3f}  {test}")
        elif wordy or row["epoch"] == epochs or now - self.epoch_printed >= 1:
            self.epoch_printed = now
            validation = f"  val {row['validation']['accuracy']:.2f}" if row.get("validation") else ""
            self.line(
                f"{run}  epoch {row['epoch']}/{epochs}  lr {row['lr']:.2g}  loss {row['loss']:.4f} (hard "
                f"{row['hard']:.4f}, soft {row['soft']:.4f})  train {row['train_accuracy']:.2f}{validation}  {test}  "
                f"{rate}"
            )
