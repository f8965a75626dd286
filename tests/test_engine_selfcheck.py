"""The self-check of the fast path. Failures are planted: a kernel that raises or lies, a capture that refuses."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import emulated
import pytest
import torch

from ghostcli.engine import selfcheck
from ghostcli.engine.capture import Captured
from ghostcli.engine.step import Update
from ghostcli.zoo import kernels
from ghostcli.zoo.kernels import native, pytorch

CPU = torch.device("cpu")
OPERATIONS = (
    *("moments", "fold", "track", "convolve", "beside", "reduce", "unfold", "adjoint", "whole", "pool"),
    *("opened", "total", "weigh", "weigh_backward"),
)


def normalise(x, gamma, beta, eps, relu):
    """Batch norm of pixels as the kernels of a CPU do it, by torch's own: the output, mean and biased variance."""
    y, mean, rstd = torch.native_batch_norm(x.permute(0, 3, 1, 2), gamma, beta, None, None, True, 0.0, eps)
    y = y.permute(0, 2, 3, 1)
    return y.relu() if relu else y, mean, rstd**-2 - eps


def normalise_backward(dout, out, x, gamma, eps, mean, var):
    dout = dout if out is None else dout.where(out > 0, 0)
    images, rstd = (t.permute(0, 3, 1, 2) for t in (dout, x)), torch.rsqrt(var + eps)
    backward = torch.ops.aten.native_batch_norm_backward
    dx, *rest = backward(*images, gamma, None, None, mean, rstd, True, eps, [True] * 3)
    return dx.permute(0, 2, 3, 1), *rest


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """A process that has checked nothing yet, and no verdict of these tests left behind."""
    monkeypatch.setattr(kernels, "_off", {})
    known = selfcheck.check
    known.cache_clear()
    yield
    known.cache_clear()


@pytest.fixture
def planted(monkeypatch):
    """`planted(name=function)`: compiled kernels that are plain PyTorch's but for these operations."""

    def plant(**wrong):
        operations = {name: getattr(pytorch, name) for name in OPERATIONS}
        operations |= {"normalise": normalise, "normalise_backward": normalise_backward} | wrong
        known = {"NAME": "c++", "WINDOWS": native.WINDOWS, "available": lambda: True}
        monkeypatch.setattr(kernels, "native", SimpleNamespace(**known, **operations))

    return plant


def test_right_kernels_pass(planted):
    planted()
    assert selfcheck.check(CPU).record == {"kernels": "passed", "graph": "not tried"}
    assert kernels.of(torch.zeros(1)).NAME == "c++"


def test_the_kernels_of_this_machine_pass():
    built = "passed" if native.available() else "not tried"
    assert selfcheck.check(CPU).record == {"kernels": built, "graph": "not tried"}


def refusing(*_):
    raise RuntimeError("no kernel image is available\nmore lines")


def off_by_a_little(x, k, stride):
    mean, cov = pytorch.moments(x, k, stride)
    return mean, cov * 1.001


def not_a_number(dz, z, x, kernel, bias, k, stride):
    step = pytorch.reduce(dz, z, x, kernel, bias, k, stride)
    return step._replace(dkernel=step.dkernel * float("nan"))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"adjoint": refusing}, "RuntimeError: no kernel image is available"),
        ({"moments": off_by_a_little}, "of a trial step has a relative error of"),
        ({"reduce": not_a_number}, "of a trial step has a relative error of nan"),
    ],
)
def test_wrong_kernels_are_not_used(planted, wrong, said):
    planted(**wrong)
    verdict = selfcheck.check(CPU)
    assert said in verdict.kernels and "\n" not in verdict.kernels
    assert kernels.of(torch.zeros(1)) is pytorch
    status = kernels.status()
    assert status["name"] == "pytorch" and said in status["why"]


def test_memory_that_ran_out_is_no_verdict(planted):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    planted(convolve=full)
    with pytest.raises(torch.OutOfMemoryError):
        selfcheck.check(CPU)
    assert not kernels._off


@pytest.mark.parametrize("network, branches", [("resnet18", "folded"), ("gns:0.5", "plain")])
def test_networks_without_a_fast_path_check_nothing(network, branches, monkeypatch):
    monkeypatch.setattr(selfcheck, "check", refusing)
    assert selfcheck.verdict_for(network, branches, CPU) is None


def test_a_run_tells_and_records_what_failed(ghost, planted, tmp_path):
    planted(adjoint=refusing)
    small = ["--data", "digits", "--epochs", "1", "-s", "data.limit=16", "-s", "data.limit_test=8"]
    done = ghost("train-teacher", "gns:0.1", *small, "-s", "train.batch_size=8", "--runs", tmp_path, "--json")
    assert done.code == 0, done.err
    assert "failed the self-check, so plain PyTorch is used: RuntimeError: no kernel image" in done.err
    env = json.loads((tmp_path / json.loads(done.out)["run"] / "env.json").read_text())
    assert env["kernel"] == "pytorch"
    assert env["self_check"] == {"kernels": "RuntimeError: no kernel image is available", "graph": "not tried"}


def refuse_capture(graph, **_):
    @contextlib.contextmanager
    def entered():
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    return entered()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real device has tests of its own")
def test_a_graph_is_tried_and_a_refusal_is_told(monkeypatch):
    monkeypatch.setenv("GHOST_KERNEL", "pytorch")
    with emulated.gpu(monkeypatch):
        assert selfcheck.check(emulated.CUDA).record == {"kernels": "not tried", "graph": "passed"}
        selfcheck.check.cache_clear()
        monkeypatch.setattr(torch.cuda, "graph", refuse_capture)
        verdict = selfcheck.check(emulated.CUDA)
        assert verdict.graph == "RuntimeError: operation not permitted when stream is capturing"
        assert "so steps run eagerly" in verdict.warnings[0]


def test_a_step_whose_capture_is_refused_goes_on_eagerly(monkeypatch):
    """The network's own step may be refused where the trial's was not."""
    for name, value in {
        "Stream": emulated.Stream,
        "current_stream": emulated.Stream,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "CUDAGraph": object,
        "graph": lambda graph, **_: (_ for _ in ()).throw(RuntimeError("refused")),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    seen = []

    def update(index):
        seen.append(index.tolist())
        return torch.zeros(4)

    assert "optimizers" in Update.__dataclass_fields__  # what a refused capture must reset
    cleared = []
    update.device, update.optimizers = CPU, (SimpleNamespace(zero_grad=lambda **how: cleared.append(how)),)
    captured = Captured(update, 2)
    for number in range(6):
        captured(torch.tensor([number, number]))
    assert captured.refused == "RuntimeError: refused" and captured.replays[2].graph is None
    assert cleared == [{"set_to_none": True}]
    assert seen == [[n, n] for n in range(6)]  # each once: what was refused has trained nothing
