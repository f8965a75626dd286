"""How a network starts follows from the recipe and the network alone, never from who teaches it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ghostcli import plan
from ghostcli.data import load as load_data
from ghostcli.engine.train import make_state
from ghostcli.recipe import load
from ghostcli.recipe.models import DataSection
from ghostcli.zoo.names import KNOWN

CPU = torch.device("cpu")
#: One of each family of networks.
NETWORKS = ["gns:0.3", "gnd:0.3", *(name for name in KNOWN if ":" not in name)]


@pytest.fixture(scope="module")
def data():
    return load_data(DataSection(name="digits", limit=64, limit_test=32))


@pytest.mark.parametrize("student", NETWORKS)
def test_a_taught_network_starts_as_the_same_network_alone(student, data):
    recipe = load("smoke", ["data.name=digits", "model.pretrained=false"]).recipe
    alone = plan.plain(student, 3, recipe, "smoke")
    taught = replace(alone, teachers=(plan.plain("gns:0.2", 0, recipe, "smoke"),))
    assert taught.taught and not alone.taught
    one = make_state(alone, data, [], CPU).model.state_dict()
    two = make_state(taught, data, [], CPU).model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_seeds_and_rules_start_apart(data):
    recipe = load("smoke", ["data.name=digits"]).recipe
    native = load("smoke", ["data.name=digits", "model.init=native"]).recipe
    starts = [
        make_state(plan.plain("resnet18", seed, made, "smoke"), data, [], CPU).model.state_dict()
        for seed, made in ((0, recipe), (1, recipe), (0, native))
    ]
    first = [state["conv1.weight"] for state in starts]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
