"""Every strategy crossed with resume: stopped inside its second epoch and started again, it is the same to the bit."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import crash
import pytest


def sets(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("-s", override)]


ALONE = ["train-teacher", "gns:0.1"]
TAUGHT = ["distill", "TEACHER", "--student", "gns:0.1"]
BOTH = ["ensemble", "TEACHER", "ASSISTANT", "--student", "gns:0.1"]
CHAIN = crash.COMMANDS["chain"]

STRATEGIES = {
    "plain": ALONE,
    "kd": TAUGHT,
    "kd, asked at every step": [*TAUGHT, *sets("distill.source=live")],
    "chain": CHAIN,
    "dense": [*CHAIN, "--dense", *sets("distill.drop=1")],
    "ensemble": BOTH,
    "adaptive": [*BOTH, "--weighting", "adaptive"],
    "self-distillation": ["distill", "TEACHER", "--student", "gns:0.2", "--generations", "2"],
    "blind": [*TAUGHT, *sets("distill.blind=true")],
    "dkd": [*TAUGHT, "--kind", "dkd"],
    "dist": [*TAUGHT, "--kind", "dist"],
    "hint": [*TAUGHT, "--kind", "hint"],
    "at": [*TAUGHT, "--kind", "at"],
    "rkd": [*TAUGHT, "--kind", "rkd"],
    "as published": [
        *TAUGHT,
        *sets("distill.view=patch", "distill.shuffle=false", "distill.extra_step=true"),
    ],
    "cutout, alternating flips": [*TAUGHT, *sets("augment.cutout=8", "augment.flip=alternating")],
    "moving average": [*ALONE, *sets("train.ema=0.9")],
    # the first epoch is the best: its weights have to outlive the stop in the third
    "epoch chosen on a validation split": [*ALONE, *sets("data.validation=16"), "--epochs", "4"],
    "stopped early": [*ALONE, *sets("train.stop=2"), "--epochs", "3"],
    "branches apart": [*ALONE, *sets("engine.branches=plain")],
    "bfloat16": [*ALONE, *sets("engine.precision=bfloat16")],
    "norms without decay": [*ALONE, *sets("optim.decay=weights", "optim.nesterov=false")],
    "adamw": [*ALONE, *sets("optim.name=adamw", "optim.lr=0.002")],
    "muon": [*ALONE, *sets("optim.name=muon", "optim.anneal=linear", "optim.decay=weights")],
    "a network that drops out": [*ALONE, "--seed", "1"],
    "resnet18": ["train-teacher", "resnet18", *sets("data.limit=24", "train.batch_size=8")],
    "vgg13": ["train-teacher", "vgg13", *sets("data.limit=24", "train.batch_size=8")],
}


SLOW = {"resnet18", "vgg13"}
#: The strategies, and what keeps a state of its own, come with the README's command; .ci/run runs the others.
SOON = {"plain", "kd", "chain", "dense", "ensemble", "adaptive", "self-distillation", "moving average", "muon"}

#: What VGG13 does, in a network that is quick to save.
DROPOUT = """
from torch import nn
from ghostcli.zoo import ghost
init = ghost.GhostNet.__init__
def dropping(self, *args, **kwargs):
    init(self, *args, **kwargs)
    self.classifier = nn.Sequential(nn.Dropout(0.5), self.classifier)
ghost.GhostNet.__init__ = dropping
"""


@functools.cache
def teachers() -> Path:
    """A folder with the chain's teacher and assistant, finished; their students' tables are partly filled."""
    runs = crash.server().logs / "teachers"
    done = crash.server().run([*CHAIN, *crash.TINY, "--runs", runs], crash.server().logs)
    assert done.code == 0, done.err
    for student in runs.glob("gns-0.1-*"):
        shutil.rmtree(student)
    return runs


def marked(name: str) -> object:
    if name in SOON:
        return name
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.long)


@pytest.mark.parametrize("strategy", [marked(name) for name in STRATEGIES])
def test_stopped_and_started_again(tmp_path, strategy):
    (teacher,), (assistant,) = (sorted(teachers().glob(f"gns-{width}-*/s0")) for width in ("0.2", "0.15"))
    names = {"TEACHER": teacher, "ASSISTANT": assistant}
    argv = [f"run/{names[a].relative_to(teachers())}" if a in names else a for a in STRATEGIES[strategy]]
    # the flags of a strategy come last and win
    argv = [*argv[:1], *crash.TINY, *argv[1:], "--runs"]
    patch = DROPOUT if "drops out" in strategy else ""
    for runs in ("whole", "stopped"):
        shutil.copytree(teachers(), tmp_path / runs)

    whole = crash.server().start([*argv, "whole"], tmp_path, before=patch)
    strike = crash.strike("ghostcli.engine.step:Update.__call__", nth=5)
    done = crash.server().run([*argv, "stopped"], tmp_path, before=patch + strike)
    assert done.code == 75, done.err
    done = crash.server().run([*argv, "stopped"], tmp_path, before=patch)
    assert done.code == 0 and "goes on after epoch" in done.err, done.err
    assert whole.wait() == 0, whole.err
    assert not crash.differences(crash.outcomes(tmp_path / "whole"), tmp_path / "stopped")
