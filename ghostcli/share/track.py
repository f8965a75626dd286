"""Mirrors of metrics.jsonl in trackers that people already use: TensorBoard, Weights & Biases, trackio.

Invariant: records are only read. A tracker works in a process of its own (`ghost runs sync`), so none that fails can
fail a run.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.recipe.diff import flat
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import read_json, write_json
from ghostcli.render.gather import numbers

#: Tracker -> (the module that it needs, the extra of `pip install` that brings it).
TRACKERS = {
    "tensorboard": ("torch.utils.tensorboard", "tensorboard"),
    "wandb": ("wandb", "track"),
    "trackio": ("trackio", "track"),
}
#: Beside the runs: how many epochs of each run each tracker has.
FILE = ".synced.json"


@dataclass(frozen=True)
class Place:
    """Where mirrors go: a folder of event files (TensorBoard), or a project by name (the others)."""

    tracker: str
    folder: Path
    project: str

    @property
    def key(self) -> str:
        return f"{self.tracker} {self.folder.resolve() if self.tracker == 'tensorboard' else self.project}"


@contextlib.contextmanager
def _mirror(module: Any, run: RunRecord, place: Place) -> Iterator[Callable[[dict[str, float], int], None]]:
    """A run in a tracker: what takes values by name at an epoch. trackio has the same calls as Weights & Biases."""
    if place.tracker == "tensorboard":
        with contextlib.closing(module.SummaryWriter(str(place.folder / run.id))) as writer:

            def log(values: dict[str, float], epoch: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, epoch)

            yield log
        return
    config = dict(flat(run.setup.recipe)) if run.setup else {}
    more = {"id": run.id.replace("/", "-")} if place.tracker == "wandb" else {}
    module.init(project=place.project, name=run.id, config=config, resume="allow", **more)
    try:
        yield lambda values, epoch: module.log(values, step=epoch)
    finally:
        module.finish()


def sync(runs: Path, chosen: Sequence[RunRecord], place: Place) -> Iterator[tuple[str, int]]:
    """Send what each tracker does not have yet; yields (run, epochs sent) for each run that had something new.

    UsageError where the tracker is not installed; GhostError, naming it, where it refuses.
    """
    module = _module(place.tracker)
    known = _read_sent(runs)
    had = known.setdefault(place.key, {})
    for run in chosen:
        rows = run.metrics()
        # A run that was started over has fewer epochs than were sent: it is sent again from the first.
        sent = had.get(run.id, 0)
        begin = sent if sent <= len(rows) else 0
        if len(rows) == begin:
            continue
        try:
            with _mirror(module, run, place) as log:
                for row in rows[begin:]:
                    log(numbers(row), row["epoch"])
        except Exception as error:  # a tracker may raise anything, and none of it is the run's affair
            reason = printable(str(error).partition("\n")[0] or type(error).__name__)
            raise GhostError(f"{place.tracker}: refused {run.id} ({reason}); the run itself is not affected") from error
        had[run.id] = len(rows)
        write_json(runs / FILE, known, "synced")
        yield run.id, len(rows) - begin


def _module(tracker: str) -> Any:
    name, extra = TRACKERS[tracker]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--to {tracker}: is not installed; type pip install 'ghostcli[{extra}]'") from error


def _read_sent(runs: Path) -> dict[str, dict[str, int]]:
    file = runs / FILE
    value = read_json(file) if file.exists() else {}
    try:
        return TypeAdapter(dict[str, dict[str, NonNegativeInt]]).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{printable(file)}: is damaged; remove it, and all runs are sent again") from error
