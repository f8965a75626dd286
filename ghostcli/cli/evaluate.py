"""`ghost evaluate`: a trained network on a whole test set. Invariant: no accuracy is shown without its interval."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.cli.predict import Model
from ghostcli.display import apart, table, tell, tell_json
from ghostcli.errors import printable

if TYPE_CHECKING:
    import numpy as np


def evaluate(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="NAME", help="cifar10, cifar100, digits or folder:PATH.", show_default="its own"
        ),
    ] = None,
    confusion: Annotated[bool, typer.Option("--confusion", help="Count what each class was taken for.")] = False,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="The accuracy of each class, worst first, and their mean.")
    ] = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Accuracy with its 95 % interval, likelihood and calibration on test images; an exported file in its own runtime.

    ghost evaluate run/gns-1.0-kd-1a2b3c4d/s0        ghost evaluate student.onnx --data folder:photos --confusion
    """
    from ghostcli.deploy import ask, source

    with apart():
        network = source.open_network(model, runs)
        evaluation, counts = ask.evaluate(network, data)
    classes = ask.by_class(network.about.classes, counts)
    if as_json:
        more = {"confusion": counts.tolist(), "classes": network.about.classes} if confusion else {}
        more |= {"by_class": classes, "class_mean": ask.class_mean(classes)} if by_class else {}
        tell_json(asdict(evaluation) | more)
        return
    typer.echo(
        f"{printable(evaluation.model)} on {evaluation.data} "
        f"({evaluation.images:,} test images, {evaluation.runtime}):\n"
        f"accuracy {evaluation.accuracy:.2f} % (95 % interval {evaluation.low:.2f} to {evaluation.high:.2f}), "
        f"negative log-likelihood {evaluation.nll:.4f} nats, calibration error {100 * evaluation.ece:.2f} points"
    )
    if by_class:
        _print_classes(classes)
    if confusion:
        _print(network.about.classes, counts)


def _print_classes(rows: list[dict[str, Any]]) -> None:
    from ghostcli.deploy.ask import class_mean

    view = table("class", "test images", "accuracy (%)", "95 % interval")
    for row in rows:
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        view.add_row(row["class"], f"{row['images']:,}", f"{row['accuracy']:.2f}", interval)
    tell(view)
    typer.echo(f"mean over the classes {class_mean(rows):.2f} %")


def _print(classes: tuple[str, ...], counts: np.ndarray) -> None:
    view = table("true \\ said", *map(printable, classes))
    for name, row in zip(classes, counts, strict=True):
        view.add_row(name, *(str(count) if count else "." for count in row))
    tell(view)
