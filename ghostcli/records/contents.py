"""Checks that the record of a finished run is consistent. Invariant: it only reads, and needs no torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from ghostcli.errors import GhostError
from ghostcli.recipe.digest import digest
from ghostcli.records.model import RunSetup, read
from ghostcli.records.record import RunRecord, predictions
from ghostcli.records.storage import read_json

#: The keys of recipe.json, which result.json repeats.
SETUP = {field.alias or name for name, field in RunSetup.model_fields.items()}
#: An absolute path in a word of a command, as in `--runs=/home/ada/runs`, `folder:/home/ada/photos` or `py:/home/...`.
PLACE = re.compile(r"(^|=|folder:|py:)(/.*)", re.DOTALL)


def content_problems(run: RunRecord, whole: bool = True) -> list[str]:
    """Contradictions in the record of a finished run, one sentence each. The weights are not read.

    `ghost table` leaves out runs with such a problem. It asks with `whole=False`: logits that have the checksum in the
    result are not compared with it once more, and no number of a table comes from them.
    """
    result = run.result
    if result is None:
        return []
    written = read_json(run.path / "result.json")
    problems = list(filter(None, (_as_written(written), _same_run(run), _same_setup(run, written))))
    if min(result.train_images, result.test_images, result.epochs) < 1:
        return [*problems, "it was trained or tested on 0 images or epochs"]
    return [*problems, *_against_metrics(run), *_against_predictions(run, whole)]


def _as_written(written: dict[str, Any]) -> str | None:
    content = {key: value for key, value in written.items() if key != "checksum"}
    if "checksum" not in written:
        return "result.json has no checksum"
    try:
        same = written["checksum"] == digest(content)
    except ValueError:  # NaN, which the writer never writes
        same = False
    return None if same else "result.json was changed after it was written (checksum)"


def without_places(written: dict[str, Any]) -> dict[str, Any]:
    """The content of result.json or recipe.json to publish: of a path in its command only the last part is kept.

    The checksum of result.json follows, unless it was wrong before. The names of the data and of networks stay, also
    where they are paths: the run's digest and id come from them.
    """
    words = [PLACE.sub(lambda match: match[1] + Path(match[2]).name, word) for word in written.get("command", ())]
    if words == list(written.get("command", ())) or ("checksum" in written and _as_written(written)):
        return written
    content = {key: value for key, value in written.items() if key != "checksum"} | {"command": words}
    return {**content, "checksum": digest(content)} if "checksum" in written else content


def _same_run(run: RunRecord) -> str | None:
    result = run.result
    own = f"{result.digest[:8]}/s{result.seed}"
    if run.id != result.run or not run.id.endswith(f"-{own}"):
        return f"its record belongs to {result.run}, seed {result.seed}: the folder was copied or renamed"
    return None


def _same_setup(run: RunRecord, written: dict[str, Any]) -> str | None:
    """recipe.json, if it exists, must agree with result.json, of which `written` is the content."""
    path = run.path / "recipe.json"
    try:
        # Equal texts, as ghost writes them, need no reading of every type. Not ==, for which 1, 1.0 and true are equal.
        if repr(read_json(path)) == repr({key: value for key, value in written.items() if key in SETUP}):
            return None
        setup = read(path, RunSetup)
    except GhostError as error:
        return str(error) if path.exists() else None
    changed = [key for key in RunSetup.model_fields if getattr(setup, key) != getattr(run.result, key)]
    return f"recipe.json and result.json differ in {', '.join(changed)}" if changed else None


def _against_metrics(run: RunRecord) -> list[str]:
    """Compare the accuracies with metrics.jsonl, and the selection of the epoch with the recipe."""
    scores, rows = run.result.accuracy, run.metrics()
    by = "validation" if run.result.recipe.data.validation else "last"
    is_last = scores.selected_epoch == run.result.epochs
    if scores.selected_by != by or not (is_last or by == "validation"):
        return [f"its result is epoch {scores.selected_epoch} by '{scores.selected_by}', its recipe says '{by}'"]
    if by == "last" and scores.selected != scores.last:
        return [f"its result is {scores.selected} %, and the accuracy of its last epoch {scores.last} %"]
    if not 1 <= scores.selected_epoch <= run.result.epochs:
        return [f"its result is epoch {scores.selected_epoch} of {run.result.epochs}"]
    if not rows and not (run.path / "metrics.jsonl").exists():
        return []
    if len(rows) != run.result.epochs:
        return [f"metrics.jsonl has {len(rows)} of {run.result.epochs} epochs"]
    accuracies = [row["test"]["accuracy"] for row in rows]
    pairs = {
        "last": (scores.last, accuracies[-1]),
        "best": (scores.best, max(accuracies)),
        "selected": (scores.selected, accuracies[scores.selected_epoch - 1]),
    }
    return [
        f"result.json says {ours:.2f} % ({name}), metrics.jsonl {theirs:.2f} %"
        for name, (ours, theirs) in pairs.items()
        if abs(ours - theirs) > 1e-6
    ]


def _against_predictions(run: RunRecord, whole: bool) -> list[str]:
    """Compare the accuracy with the recorded answers for the test images, and these with the logits, if they exist."""
    result, path = run.result, run.path / "predictions.npz"
    mask = result.test.mask() if result.test else None
    if mask is None or len(mask) != result.test_images:
        return ["its record has no predictions of the test images" if result.test is None else "result.json is damaged"]
    problems = []
    accuracy = 100 * float(mask.mean())
    # The accuracy comes from float32 logits, the record from float16: ties can be resolved differently.
    if abs(accuracy - result.accuracy.selected) > 0.1 + 100 / len(mask):
        problems.append(f"its predictions give {accuracy:.2f} %, result.json says {result.accuracy.selected:.2f} %")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return problems
    except OSError:
        return [*problems, "predictions.npz cannot be read"]
    if result.files.get(path.name, "") != hashlib.sha256(content).hexdigest():
        problems.append("predictions.npz has changed since the result was written")
    elif not whole:
        return problems
    arrays = predictions(content)
    if arrays is None:
        problems.append("predictions.npz is damaged")
    elif len(arrays[0]) != len(mask) or not np.array_equal(
        arrays[0].astype(np.float32).argmax(axis=1) == arrays[1], mask
    ):
        problems.append("predictions.npz and result.json differ on the test images")
    return problems
