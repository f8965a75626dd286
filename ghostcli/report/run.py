"""One run as a page: what it reached, what it gets wrong, how it was made. Invariant: the record is only read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ghostcli.comparison.calibration import confusion, softmax
from ghostcli.comparison.cost import Cost
from ghostcli.comparison.rows import Row
from ghostcli.comparison.stats import interval_of
from ghostcli.display import clock
from ghostcli.errors import GhostError
from ghostcli.paper import label
from ghostcli.recipe.diff import config_diff, flat, shipped
from ghostcli.records.contents import content_problems
from ghostcli.records.model import RunResult, dump
from ghostcli.records.record import RunRecord
from ghostcli.render import facts, sentence
from ghostcli.render.gather import Curve, numbers
from ghostcli.report import charts
from ghostcli.report.charts import Chart

#: How many of the test images that it gets most wrong are shown.
HARDEST = 24

Predictions = tuple[np.ndarray, np.ndarray]


def page(run: RunRecord, rows: Sequence[Row], known: dict[str, Cost]) -> dict[str, Any]:
    """What the template shows. `rows`: the run's comparisons; `known`: what each finished run cost."""
    result, setup, seen = run.result, run.setup, facts.overview(run)
    problems = content_problems(run)
    predictions = run.predictions() if result and not problems else None
    names, pictures, note = _pictures(result, predictions)
    sentences = [f"This record is not to be trusted: {problem}." for problem in problems]
    sentences += [f"{sentence.subject(row)}: {verdict}." for row in rows if (verdict := sentence.verdict(row))]
    teachers = [label(teacher.network) for teacher in setup.teachers] if setup else []
    name = label(setup.student) if setup else run.id
    changed = config_diff(setup.recipe, shipped(setup.family)[0]) if setup else {}
    return {
        "id": run.id,
        "title": f"{name} taught by {' and '.join(teachers)}" if teachers else name,
        "cards": list(_cards(run, seen)),
        "sentences": sentences,
        "charts": [*_training_charts(run), *_answers(predictions, names)],
        "hardest": pictures,
        "hardest_note": note,
        "findings": result.check if result else (),
        "taught": bool(teachers),
        "changed": [(key, _text(ours), _text(theirs)) for key, (ours, theirs) in changed.items()],
        "recipe": [(key, _text(value)) for key, value in flat(setup.recipe).items()] if setup else [],
        "facts": facts.page(run),
        "environment": [(key, _text(value)) for key, value in dump(run.environment).items()] if run.environment else [],
        "cost": _cost(known[run.id]) if run.id in known else [],
        "progress": None if run.status == "done" else min(1.0, seen["epoch"] / (seen["epochs"] or 1)),
    }


def _cards(run: RunRecord, seen: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The numbers that lead the page: (title, value, note). `seen`: the run's overview."""
    result = run.result
    if result is None:
        accuracy = "–" if seen["accuracy"] is None else f"{seen['accuracy']:.2f} %"
        yield "Status", run.status, run.problem or ""
        yield "Test accuracy so far", accuracy, f"epoch {seen['epoch']} of {seen['epochs'] or '?'}"
        return
    low, high = interval_of(result.accuracy.selected, result.test_images)
    within = f"95 % interval {low:.2f} to {high:.2f} over {result.test_images:,} test images"
    yield "Test accuracy", f"{result.accuracy.selected:.2f} %", within
    yield "Parameters", f"{result.parameters / 1e6:.3f} M", "training form"
    if result.test is not None:
        yield "Calibration error", f"{100 * result.test.ece:.2f} points", "0: confidence is what it says"
    images = f"{result.epochs} epochs of {result.train_images:,} images"
    yield "Training", clock(result.train_seconds + result.teacher_seconds), images


def _training_charts(run: RunRecord) -> list[Chart]:
    """Accuracy, loss and learning rate by epoch; none where no epoch is finished."""
    rows = [numbers(row) for row in run.metrics()]
    accuracy = {"test": "test/accuracy", "training images": "train_accuracy", "validation": "validation/accuracy"}
    loss = {"training": "loss"}
    if any(row.get("soft") for row in rows):
        loss |= {"labels (hard)": "hard", "teachers (soft)": "soft"}
    drawn = {
        "Accuracy": (_series(rows, accuracy), "accuracy (%)"),
        "Loss": (_series(rows, loss | {"test": "test/loss"}), "loss (nats)"),
        "Learning rate": (_series(rows, {"learning rate": "lr"}), "learning rate"),
    }
    return [
        charts.lines(f"{name} by epoch", series, what, wide=name == "Loss")
        for name, (series, what) in drawn.items()
        if series
    ]


def _series(rows: Sequence[dict[str, float]], keys: dict[str, str]) -> list[Curve]:
    """A line for each name, of the number at its key in every epoch; none where an epoch lacks it."""
    columns = {name: [row.get(key) for row in rows] for name, key in keys.items()}
    return [Curve("", name, np.array([column])) for name, column in columns.items() if column and None not in column]


def _answers(predictions: Predictions | None, names: Sequence[str]) -> list[Chart]:
    if predictions is None:
        return []
    logits, labels = predictions
    counts = confusion(logits, labels)
    answer_charts = [charts.confusion(counts, names), charts.reliability(logits, labels)]
    if len(counts) <= charts.MANY_CLASSES:
        shares = [
            (name, 100 * right / total, f"{name}: {right:,} of {total:,} test images")
            for name, right, total in zip(names, counts.diagonal(), counts.sum(axis=1), strict=False)
            if total
        ]
        answer_charts.append(charts.bars("Accuracy by class", shares, "Percent of each class's test images."))
    return answer_charts


def _pictures(
    result: RunResult | None, predictions: Predictions | None
) -> tuple[tuple[str, ...], list[dict[str, Any]], str]:
    """Class names, the hardest test images, and why there are none. Nothing is downloaded for them."""
    if result is None:
        return (), [], "the run is not finished"
    names = result.names
    if predictions is None:
        return names, [], "its predictions are not kept here"
    from ghostcli import data

    try:
        if not data.is_here(result.data):
            return names, [], f"the images of {result.data} are not on this machine"
        dataset = data.load(result.recipe.data)
    except GhostError as error:
        return names, [], str(error)
    if dataset.checksum != result.data_checksum:
        return names, [], f"the images of {result.data} here are not those of this run"
    names = result.class_names or dataset.classes  # an older record has no names
    logits, labels = predictions
    probabilities = softmax(logits)
    order = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[:HARDEST]
    pixels = dataset.test.pixels[order.tolist()].numpy()
    pictures = []
    for image, i in zip(pixels, order, strict=True):
        choice = int(probabilities[i].argmax())
        share = float(probabilities[i, choice])
        pictures.append({"source": _uri(image), "true": names[labels[i]], "given": names[choice], "share": share})
    return names, pictures, ""


def _uri(image: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cost(cost: Cost) -> list[tuple[str, str]]:
    lost = "" if cost.whole else ", without teachers whose record is gone"
    return [
        ("this run, with its teachers' answers", _hours(cost.own)),
        ("with its share of its teachers' trainings", _hours(cost.amortised)),
        ("with all trainings below it", f"{_hours(cost.full)} in {cost.trainings:g} trainings{lost}"),
    ]


def _hours(hours: float) -> str:
    return f"{clock(3600 * hours)} ({hours:.3g} hours)"
