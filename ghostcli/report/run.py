"""One run as a page: what it reached, what it gets wrong, how it was made. Invariant: the record is only read."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghostcli.compare.calibration import confusion, softmax
from ghostcli.compare.cost import Cost
from ghostcli.compare.rows import Row
from ghostcli.compare.stats import interval_of
from ghostcli.display import clock
from ghostcli.errors import GhostError
from ghostcli.paper import label
from ghostcli.recipe.diff import config_diff, flat
from ghostcli.records.contents import content_problems
from ghostcli.records.model import Finding, RunResult, dump
from ghostcli.records.record import RunRecord
from ghostcli.render import facts, sentence
from ghostcli.report import charts
from ghostcli.report.charts import Chart, Series

#: How many of the test images that it gets most wrong are shown.
HARDEST = 24


@dataclass(frozen=True)
class Card:
    """A number that leads the page."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A test image as a data URI, its true class, and the class and probability that the network gave."""

    source: str
    true: str
    given: str
    share: float


@dataclass(frozen=True)
class RunPage:
    """`changed`: (key, value here, value that its family ships). `hardest_note` says why there are no pictures."""

    id: str
    title: str
    cards: tuple[Card, ...]
    sentences: tuple[str, ...]
    charts: tuple[Chart, ...]
    hardest: tuple[Picture, ...]
    hardest_note: str
    findings: tuple[Finding, ...]
    taught: bool
    changed: tuple[tuple[str, str, str], ...]
    recipe: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    cost: tuple[tuple[str, str], ...]
    #: An unfinished run goes on: the page may grow.
    progress: float | None = None


def page(run: RunRecord, rows: Sequence[Row], known: dict[str, Cost]) -> RunPage:
    """`rows`: the comparisons that the run takes part in; `known`: what each finished run cost."""
    result, setup = run.result, run.setup
    problems = content_problems(run)
    predictions = run.predictions() if result and not problems else None
    names, pictures, note = _pictures(result, predictions)
    seen = facts.overview(run)
    name = label(setup.student) if setup else run.id
    taught = f" taught by {' and '.join(label(t.network) for t in setup.teachers)}" if setup and setup.teachers else ""
    epochs = seen["epochs"] or 1
    return RunPage(
        id=run.id,
        title=f"{name}{taught}",
        cards=tuple(_cards(run, seen)),
        sentences=(
            *(f"This record is not to be trusted: {problem}." for problem in problems),
            *(f"{sentence.subject(row)}: {said}." for row in rows if (said := sentence.verdict(row))),
        ),
        charts=(*training_charts(run), *_answers(predictions, names)),
        hardest=pictures,
        hardest_note=note,
        findings=result.check if result else (),
        taught=bool(setup and setup.teachers),
        changed=_changed(run),
        recipe=tuple((key, _shown(value)) for key, value in flat(setup.recipe).items()) if setup else (),
        facts=tuple(facts.page(run)),
        environment=_environment(run),
        cost=_cost(known.get(run.id)),
        progress=None if run.status == "done" else min(1.0, seen["epoch"] / epochs),
    )


def _cards(run: RunRecord, seen: dict[str, Any]) -> Iterator[Card]:
    """`seen`: its overview."""
    result = run.result
    if result is None:
        accuracy = "–" if seen["accuracy"] is None else f"{seen['accuracy']:.2f} %"
        yield Card("Status", run.status, run.problem or "")
        yield Card("Test accuracy so far", accuracy, f"epoch {seen['epoch']} of {seen['epochs'] or '?'}")
        return
    low, high = interval_of(result.accuracy.selected, result.test_images)
    within = f"95 % interval {low:.2f} to {high:.2f} over {result.test_images:,} test images"
    yield Card("Test accuracy", f"{result.accuracy.selected:.2f} %", within)
    yield Card("Parameters", f"{result.parameters / 1e6:.3f} M", "training form")
    if result.test is not None:
        yield Card("Calibration error", f"{100 * result.test.ece:.2f} points", "0: confidence is what it says")
    images = f"{result.epochs} epochs of {result.train_images:,} images"
    yield Card("Training", clock(result.train_seconds + result.teacher_seconds), images)


def training_charts(run: RunRecord) -> list[Chart]:
    """Accuracy, loss and learning rate by epoch; none where no epoch is finished."""
    rows = run.metrics()
    if not rows:
        return []
    accuracy = _series(rows, "test", "test", "accuracy") + _series(rows, "training images", "train_accuracy")
    accuracy += _series(rows, "validation", "validation", "accuracy")
    loss = _series(rows, "training", "loss")
    if any(row.get("soft") for row in rows):
        loss += _series(rows, "labels (hard)", "hard") + _series(rows, "teachers (soft)", "soft")
    loss += _series(rows, "test", "test", "loss")
    drawn = {"Accuracy": (accuracy, "accuracy (%)"), "Loss": (loss, "loss (nats)")}
    drawn["Learning rate"] = (_series(rows, "learning rate", "lr"), "learning rate")
    return [
        charts.lines(f"{name} by epoch", found, what, wide=name == "Loss")
        for name, (found, what) in drawn.items()
        if found
    ]


def _series(rows: Sequence[dict[str, Any]], name: str, *path: str) -> list[Series]:
    """The line of one value of every epoch; none where an epoch lacks it."""
    values: list[Any] = list(rows)
    for key in path:
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    whole = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return [Series(name, values)] if whole else []


def _answers(predictions: tuple[np.ndarray, np.ndarray] | None, names: Sequence[str]) -> list[Chart]:
    if predictions is None:
        return []
    logits, labels = predictions
    counts = confusion(logits, labels)
    found = [charts.confusion(counts, names), charts.reliability(logits, labels)]
    if len(counts) <= charts.MANY_CLASSES:
        shares = [
            (name, 100 * right / total, f"{name}: {right:,} of {total:,} test images")
            for name, right, total in zip(names, counts.diagonal(), counts.sum(axis=1), strict=False)
            if total
        ]
        found.append(charts.bars("Accuracy by class", shares, "Percent of each class's test images."))
    return found


def _pictures(
    result: RunResult | None, predictions: tuple[np.ndarray, np.ndarray] | None
) -> tuple[tuple[str, ...], tuple[Picture, ...], str]:
    """Class names, the hardest test images, and why there are none. Nothing is downloaded for them."""
    if result is None:
        return (), (), "the run is not finished"
    names = result.names
    if predictions is None:
        return names, (), "its predictions are not kept here"
    from ghostcli import data

    try:
        if not data.is_here(result.data):
            return names, (), f"the images of {result.data} are not on this machine"
        found = data.load(result.recipe.data)
    except GhostError as error:
        return names, (), str(error)
    if found.checksum != result.data_checksum:
        return names, (), f"the images of {result.data} here are not those of this run"
    names = result.class_names or found.classes  # an older record has no names
    logits, labels = predictions
    probabilities = softmax(logits)
    order = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[:HARDEST]
    pixels = found.test.pixels[order.tolist()].numpy()
    shown = []
    for image, i in zip(pixels, order, strict=True):
        given = int(probabilities[i].argmax())
        shown.append(Picture(_uri(image), names[labels[i]], names[given], float(probabilities[i, given])))
    return names, tuple(shown), ""


def _uri(image: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _changed(run: RunRecord) -> tuple[tuple[str, str, str], ...]:
    """Where the recipe differs from the one that its family ships."""
    from ghostcli.recipe import load

    setup = run.setup
    if setup is None:
        return ()
    try:
        shipped = load(setup.family).recipe
    except GhostError:
        return ()
    diff = config_diff(setup.recipe, shipped)
    return tuple((key, _shown(ours), _shown(theirs)) for key, (ours, theirs) in diff.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _environment(run: RunRecord) -> tuple[tuple[str, str], ...]:
    made = run.environment
    return tuple((key, _shown(value)) for key, value in dump(made).items()) if made else ()


def _cost(cost: Cost | None) -> tuple[tuple[str, str], ...]:
    if cost is None:
        return ()
    lost = "" if cost.whole else ", without teachers whose record is gone"
    return (
        ("this run, with its teachers' answers", _hours(cost.own)),
        ("with its share of its teachers' trainings", _hours(cost.amortised)),
        ("with all trainings below it", f"{_hours(cost.full)} in {cost.trainings:g} trainings{lost}"),
    )


def _hours(hours: float) -> str:
    return f"{clock(3600 * hours)} ({hours:.3g} hours)"
