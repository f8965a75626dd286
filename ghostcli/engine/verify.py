"""Re-checking a run's files. Invariant: it reads and never writes."""

from __future__ import annotations

import numpy as np

from ghostcli.engine import checkpoint
from ghostcli.errors import GhostError
from ghostcli.record import RunRecord


def verify_run(run: RunRecord) -> list[str]:
    """What is wrong with a run's files, a sentence each; [] where all that is there is whole.

    Weights and checkpoints may be absent (records travel without them); what is there must match its checksum.
    """
    problems = []
    for path in (run.weights, *checkpoint.candidates(run.path / "checkpoint")):
        if path.exists():
            try:
                checkpoint.read(path)
            except GhostError as error:
                problems.append(str(error))
    if run.status == "broken":
        problems.append("status.json or result.json is missing or damaged")
    if run.status != "done" or run.result is None:
        return problems
    if len(run.metrics()) != run.result["epochs"]:
        problems.append(f"metrics.jsonl has {len(run.metrics())} of {run.result['epochs']} epochs")
    predictions = run.predictions()
    if predictions is None:
        problems.append("predictions.npz is missing or damaged")
    else:
        logits, labels = predictions
        accuracy = float((np.asarray(logits, np.float32).argmax(1) == labels).mean() * 100)
        # The record's accuracy is of float32 logits, the file's of float16: ties may fall the other way.
        if abs(accuracy - run.result["accuracy"]["selected"]) > 0.1 + 100 / len(labels):
            recorded = run.result["accuracy"]["selected"]
            problems.append(f"predictions.npz gives {accuracy:.2f} %, result.json says {recorded:.2f} %")
    return problems
