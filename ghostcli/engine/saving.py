"""The checkpoints of a training: when one is written, and how a run continues from one.

Invariant: a run that continues from any of them ends with the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ghostcli.display import Display
from ghostcli.errors import GhostError, UsageError
from ghostcli.records import checkpoint, tensorfile
from ghostcli.records.record import RunWriter, metrics_begin_with

if TYPE_CHECKING:
    from ghostcli.engine.train import State


class Saver:
    """Writes the checkpoints of a run, and says when the next one is due.

    `origin` identifies job, data, teachers and start; all must be equal when the run continues. `longest`: the most
    seconds between two checkpoints. At the end of an epoch one is written earlier, if the time since the last one is
    SHARE times what that one cost: then short epochs are not spent on writing.
    """

    SHARE = 20

    def __init__(self, state: State, origin: dict[str, Any], run: RunWriter, longest: float) -> None:
        self.state, self.origin, self.run, self.longest = state, origin, run, longest
        self.saved, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.saved > self.longest

    def worth_it(self) -> bool:
        return self.due() or time.monotonic() - self.saved > self.SHARE * self.cost

    def save(self) -> None:
        began = time.monotonic()
        named = ("epoch", "batch", "seconds", "epoch_seconds", "teacher_seconds", "best")
        meta = {name: getattr(self.state, name) for name in named} | {"metrics": self.run.metrics_mark()} | self.origin
        checkpoint.write(self.run.path / "checkpoint", self.state.tensors(), meta)
        self.saved = time.monotonic()
        self.cost = self.saved - began


def resume(state: State, origin: dict[str, Any], run: RunWriter, show: Display) -> None:
    """Continue from the newest valid checkpoint, or start at the beginning if there is none."""
    files = checkpoint.candidates(run.path / "checkpoint")
    refused: list[str] = []
    for file in files:
        try:
            tensors, meta = tensorfile.read(file, largest=math.inf)  # what this run could write, it can read
            if (meta["job"], meta["seed"]) != (origin["job"], origin["seed"]):
                raise GhostError(f"{file}: belongs to another run; refused")
            for key, what in (("data", "images"), ("teachers", "teachers' weights"), ("start", "initial weights")):
                if meta.get(key, origin[key]) != origin[key]:  # early ones have no start
                    raise UsageError(
                        f"{run.id}: the {what} have changed since this run began; restore them, or start over with "
                        "--no-resume"
                    )
            if not metrics_begin_with(run.path, *meta["metrics"]):
                raise GhostError(f"{run.path / 'metrics.jsonl'}: has changed since {file.name}; refused")
            state.restore(tensors, meta)
        except UsageError:
            raise
        except (GhostError, KeyError, TypeError, ValueError, RuntimeError) as error:
            refused.append(
                str(error) if isinstance(error, GhostError) else f"{file}: does not fit this network; refused"
            )
            show.warn(refused[-1])
            continue
        run.rewind_metrics(meta["metrics"][0])
        show.line(f"{run.id}: goes on after epoch {state.epoch}" + (f", batch {state.batch}" if state.batch else ""))
        return
    if refused:
        raise GhostError(
            f"{refused[0]}; no valid checkpoint is left. Start over with --no-resume (the old run is kept)"
        )
    run.rewind_metrics(0)
