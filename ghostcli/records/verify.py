"""Re-checking a run's files. Invariant: it reads and never writes."""

from __future__ import annotations

import hashlib

import numpy as np

from ghostcli.errors import GhostError
from ghostcli.recipe.digest import digest
from ghostcli.records import checkpoint, tensorfile
from ghostcli.records.record import PARTS, RunRecord, file_digest
from ghostcli.records.storage import read_json


def verify_run(run: RunRecord) -> list[str]:
    """What is wrong with a run's files, a sentence each; [] where all that is there is whole.

    Weights and checkpoints may be absent (records travel without them); what is there must match its checksum.
    """
    problems = []
    marks = []
    for path in (run.weights, *checkpoint.candidates(run.path / "checkpoint")):
        if path.exists():
            try:
                _, meta = tensorfile.read(path)
                marks += [meta["metrics"]] if "metrics" in meta else []
            except GhostError as error:
                problems.append(str(error))
    if marks and not _is_prefix(run, *marks[0]):
        problems.append("metrics.jsonl is not what the last checkpoint saw")
    if run.status == "broken":
        problems.append(str(run.problem))
    if run.status != "done" or run.result is None:
        return problems
    if not _is_as_written(run):
        problems.append("result.json is not as it was written")
    for name, written in run.result.files.items():
        if name in PARTS and (run.path / name).exists() and file_digest(run.path / name) != written:
            problems.append(f"{name} is not the file that the result was written with")
    if len(run.metrics()) != run.result.epochs:
        problems.append(f"metrics.jsonl has {len(run.metrics())} of {run.result.epochs} epochs")
    predictions = run.predictions()
    if predictions is None:
        problems.append("predictions.npz is missing or damaged")
    else:
        logits, labels = predictions
        accuracy = float((np.asarray(logits, np.float32).argmax(1) == labels).mean() * 100)
        # The record's accuracy is of float32 logits, the file's of float16: ties may fall the other way.
        recorded = run.result.accuracy.selected
        if abs(accuracy - recorded) > 0.1 + 100 / len(labels):
            problems.append(f"predictions.npz gives {accuracy:.2f} %, result.json says {recorded:.2f} %")
    return problems


def _is_as_written(run: RunRecord) -> bool:
    written = read_json(run.path / "result.json")
    content = {key: value for key, value in written.items() if key != "checksum"}
    try:
        return written.get("checksum", digest(content)) == digest(content)
    except ValueError:  # NaN, which is never written
        return False


def _is_prefix(run: RunRecord, length: int, sha256: str) -> bool:
    path = run.path / "metrics.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return hashlib.sha256(content[:length]).hexdigest() == sha256
