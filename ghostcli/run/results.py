"""Computes the files of a finished run: weights, predictions, result.json.

Invariant: result.json contains everything that `ghost table` reads.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.comparison.calibration import ece
from ghostcli.data import Data
from ghostcli.engine.train import State, final_weights, start_of
from ghostcli.errors import GhostError, printable
from ghostcli.plan import Finished, Job, record_of
from ghostcli.recipe.digest import digest
from ghostcli.records.model import Accuracy, Answers, Environment, Finding, RunResult, RunSetup, dump
from ghostcli.records.record import RunRecord, RunWriter
from ghostcli.zoo.evaluate import compact


def final(state: State, test_logits: Tensor) -> tuple[nn.Module, Tensor]:
    """The final network of a run (averaged or selected weights, if the recipe has them) and its float16 test logits."""
    logits = state.best_tensors.get("logits", test_logits)
    return final_weights(state), compact(logits).cpu()


def predictions(logits: Tensor, labels: Tensor) -> bytes:
    """predictions.npz: float16 logits [n, C] and labels [n]."""
    content = io.BytesIO()
    np.savez(content, logits=logits.numpy(), labels=labels.cpu().numpy())
    return content.getvalue()


def agreements(
    logits: np.ndarray, answers: Answers, data: str, teachers: Sequence[Job | Finished], runs: Path
) -> dict[str, float | None]:
    """Percent of test images on which student and teacher have the same top-1 class, by teacher.

    `logits` [n, C] and `answers` are the student's, `data` the name of its data. The key is the name of the teacher's
    network, or its run id if two teachers have the same network. The value is None if the teacher saw other images.
    """
    names = Counter(teacher.student for teacher in teachers)
    percentages: dict[str, float | None] = {}
    for teacher in teachers:
        known = record_of(teacher, runs)
        result, theirs = known.result, known.predictions()
        name = teacher.student if names[teacher.student] == 1 else teacher.id
        same = result and result.test and answers.same_images(result.test, result.data == data)
        same = same and theirs is not None and theirs[0].shape == logits.shape
        percentages[name] = round(100 * float((theirs[0].argmax(1) == logits.argmax(1)).mean()), 4) if same else None
    return percentages


def result(
    job: Job,
    setup: RunSetup,
    data: Data,
    state: State,
    model: nn.Module,
    run: RunWriter,
    environment: Environment,
    findings: Sequence[Finding],
    notes: Sequence[str],
    files: dict[str, bytes],
) -> dict[str, Any]:
    """result.json.

    `notes`: sentences for the record. `files`: name -> content of the files in the run directory. GhostError if the
    metrics on disk do not match the trained epochs.
    """
    record = RunRecord(run.path, run.id)
    rows = record.metrics()
    if len(rows) != state.epoch:
        raise GhostError(
            f"{printable(run.path / 'metrics.jsonl')}: has {len(rows)} of {state.epoch} epochs, so it was changed "
            "during the run; start over with --no-resume"
        )
    last, best = rows[-1], max(rows, key=lambda row: row["test"]["accuracy"])
    chosen = state.best or {"epoch": last["epoch"], "test": last["test"]["accuracy"]}
    row = rows[chosen["epoch"] - 1]
    predictions = record.predictions()
    answers = Answers.of(*predictions, ece(*predictions), data.test.checksum) if predictions is not None else None
    run_result = RunResult(
        **dict(setup),
        environment=environment,
        start=start_of(setup.recipe, model),
        parameters=zoo.count_parameters(model),
        classes=len(data.classes),
        class_names=data.classes,
        train_images=len(data.train),
        validation_images=len(data.validation) if data.validation is not None else 0,
        test_images=len(data.test),
        epochs=last["epoch"],
        accuracy=Accuracy(
            last=last["test"]["accuracy"],
            best=best["test"]["accuracy"],
            best_epoch=best["epoch"],
            selected=chosen["test"],
            selected_epoch=chosen["epoch"],
            selected_by="validation" if state.best else "last",
        ),
        nll=row["test"]["loss"],
        test=answers,
        agreement=agreements(predictions[0], answers, job.data, job.teachers, run.runs) if answers else {},
        seconds=round(state.seconds + state.teacher_seconds, 3),
        train_seconds=round(state.seconds, 3),
        teacher_seconds=round(state.teacher_seconds, 3),
        check=tuple(findings),
        notes=tuple(note for note in [model.spec.note, *notes] if note),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    content = dump(run_result)
    return {**content, "checksum": digest(content)}
