"""Networks beside MLPerf Tiny's references for image classification: on the benchmark's 200 images and on all 10,000.

Invariant: a network is asked in its own runtime; two networks are only told apart where a test at 5 % does so.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from ghostcli.comparison import stats
from ghostcli.deploy import ask
from ghostcli.deploy.bench import Network as Counted
from ghostcli.deploy.bench import count
from ghostcli.deploy.source import Network
from ghostcli.errors import GhostError, UsageError, printable

DATA = "cifar10"
ALL = 10_000
ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """A network or a reference. Accuracies in percent with Wilson's 95 % intervals, `on_200` those of the benchmark's
    images; `parameters` and `macs` of the deploy form; `target` what the benchmark asks of a submission.
    """

    model: str
    reference: bool
    parameters: int | None
    macs: int | None
    on_200: float
    on_200_low: float
    on_200_high: float
    accuracy: float
    low: float
    high: float
    target: float | None = None
    runtime: str | None = None
    right: np.ndarray | None = field(default=None, repr=False, compare=False)  # of each test image, if known


@cache
def facts() -> dict[str, Any]:
    """mlperf_tiny.toml."""
    return tomllib.loads(files("ghostcli.deploy").joinpath("mlperf_tiny.toml").read_text(encoding="utf-8"))


def references() -> list[Row]:
    return [
        _row(entry["name"], entry["on_200"], entry["accuracy"], True, entry, target=entry.get("target"))
        for entry in facts()["references"]
    ]


def measure(network: Network) -> Row:
    """UsageError where the network was not made for CIFAR-10's ten classes, or its test set is not whole."""
    if network.about.data != DATA:
        where = printable(network.label)
        raise UsageError(
            f"{where}: was trained on {printable(network.about.data)}; MLPerf Tiny's images are CIFAR-10's, "
            "name a network that was trained on cifar10"
        )
    logits, labels, _ = ask.answers_on_test(network, DATA)
    if len(labels) != ALL:
        raise UsageError(f"{DATA}: has {len(labels):,} test images here, MLPerf Tiny counts on {ALL:,}")
    right = logits.argmax(axis=1) == labels
    try:
        cost = count(Counted(network.label, network.about.model, len(network.about.classes)))
    except GhostError:  # a network of the user's own whose file is elsewhere
        cost = {}
    sizes = {"parameters": cost.get("deploy_parameters"), "macs": cost.get("macs")}
    on_200 = 100 * right[facts()["images"]].mean()
    return _row(network.label, on_200, 100 * right.mean(), False, sizes, runtime=network.runtime, right=right)


def _row(model: str, on_200: float, accuracy: float, reference: bool, sizes: dict, **more: Any) -> Row:
    few = len(facts()["images"])
    low, high = stats.interval_of(on_200, few)
    all_low, all_high = stats.interval_of(accuracy, ALL)
    return Row(
        model=model,
        reference=reference,
        parameters=sizes["parameters"],
        macs=sizes["macs"],
        on_200=round(float(on_200), 2),
        on_200_low=round(low, 4),
        on_200_high=round(high, 4),
        accuracy=round(float(accuracy), 2),
        low=round(all_low, 4),
        high=round(all_high, 4),
        **more,
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For each pair with a measured network, a sentence on whether 200 images, and all, tell the two apart."""
    sentences = []
    for a, b in itertools.combinations(rows, 2):
        if a.reference and b.reference:
            continue
        one, other = (b, a) if a.reference else (a, b)
        few, many = _differ(one, other, facts()["images"]), _differ(one, other, None)
        names = f"{printable(one.model)} and {printable(other.model)}"
        figures = f"{one.on_200:.1f} and {other.on_200:.1f} %"
        whole = f"all {ALL:,} {'do' if many else 'do not either'} ({one.accuracy:.2f} and {other.accuracy:.2f} %)"
        if few:
            sentences.append(f"{names}: the 200 images tell them apart ({figures})")
        else:
            sentences.append(f"{names}: the 200 images cannot tell them apart ({figures}); {whole}")
    return sentences


def _differ(a: Row, b: Row, images: list[int] | None) -> bool:
    """McNemar's exact test where both were asked here; Fisher's exact test of the counts for a published figure."""
    from scipy.stats import fisher_exact

    if a.right is not None and b.right is not None:
        index = slice(None) if images is None else images
        return stats.mcnemar(a.right[index], b.right[index]) < ALPHA
    n = ALL if images is None else len(images)
    right = [round((row.accuracy if images is None else row.on_200) * n / 100) for row in (a, b)]
    return fisher_exact([[r, n - r] for r in right]).pvalue < ALPHA
