"""MLPerf Tiny: its images and references, and what is said of two networks on 200 images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ghostcli.deploy import mlperf


def test_the_benchmarks_images_are_twenty_of_each_class(cifar10):
    from ghostcli import data
    from ghostcli.recipe.models import DataSection

    index = mlperf.facts()["images"]
    labels = data.load(DataSection(name="cifar10", limit=10)).test.labels.numpy()
    assert len(set(index)) == 200
    assert np.bincount(labels[index]).tolist() == [20] * 10


def test_references_have_the_published_figures():
    found = {row.model: row for row in mlperf.references()}
    assert [row.parameters for row in found.values()] == [77706, 77706, 480330, 480330]
    small = found["IC01 ResNet-8, int8"]
    assert (small.accuracy, small.on_200, small.target) == (86.97, 87.0, 85.0)
    assert small.low < 86.97 < small.high and small.on_200_low == pytest.approx(81.6, abs=0.1)  # Wilson: 174 of 200


def network(name, wrong):
    """A measured network that is wrong on the images `wrong` alone."""
    right = np.ones(mlperf.ALL, bool)
    right[wrong] = False
    few = right[mlperf.facts()["images"]]
    return replace(
        mlperf.references()[0],
        model=name,
        reference=False,
        right=right,
        accuracy=100 * right.mean(),
        on_200=100 * few.mean(),
    )


def test_it_says_when_200_images_cannot_tell_two_networks_apart():
    index = mlperf.facts()["images"]
    others = [i for i in range(mlperf.ALL) if i not in set(index)]
    good, close, poor = (
        network("good", index[:3]),
        network("close", index[:6] + others[:900]),
        network("poor", index[:90]),
    )
    said = {sentence.split(":")[0]: sentence for sentence in mlperf.verdicts([good, close, poor])}
    assert "cannot tell them apart (98.5 and 97.0 %)" in said["good and close"]  # McNemar: 3 against 0, p = 0.25
    assert "all 10,000 do (99.97 and 90.94 %)" in said["good and close"]
    assert "the 200 images tell them apart" in said["good and poor"]
    against = mlperf.verdicts([network("same", index[:26]), *mlperf.references()])
    assert len(against) == 4 and "cannot tell them apart (87.0 and 87.0 %)" in against[0]


def test_a_network_of_other_images_is_refused(ghost, digits_run, digits_runs):
    done = ghost("bench", f"run/{digits_run.id}", "--mlperf-tiny", "--runs", digits_runs)
    assert done.code == 2 and "cifar10" in done.err and done.out == ""
