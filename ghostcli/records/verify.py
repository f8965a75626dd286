"""Re-checks the files of a run. Invariant: it only reads."""

from __future__ import annotations

import math

from ghostcli.errors import GhostError
from ghostcli.records import checkpoint, tensorfile
from ghostcli.records.contents import content_problems
from ghostcli.records.record import RunRecord, file_digest, metrics_begin_with


def verify_run(run: RunRecord) -> list[str]:
    """The problems of a run's files, one sentence each; empty if there are none.

    Weights and checkpoints can be absent (studies do not include them). Files that exist must match their checksums.
    """
    problems = []
    marks = []
    for path in (run.weights, *checkpoint.candidates(run.path / "checkpoint")):
        if path.exists():
            try:
                _, meta = tensorfile.read(path, tensorfile.MAX_BYTES if path == run.weights else math.inf)
                marks += [meta["metrics"]] if "metrics" in meta else []
                if path == run.weights and run.result is not None and meta.get("source") != run.result.source:
                    problems.append(f"{path.name} is of another source of its network than result.json")
            except GhostError as error:
                problems.append(str(error))
    if marks and not metrics_begin_with(run.path, *marks[0]):
        problems.append("metrics.jsonl has changed since the last checkpoint")
    if run.status == "broken":
        problems.append(str(run.problem))
    if run.status != "done" or run.result is None:
        return problems
    if run.weights.exists() and file_digest(run.weights) != run.result.files.get(run.weights.name):
        problems.append(f"{run.weights.name} has changed since the result was written")
    return problems + content_problems(run)
