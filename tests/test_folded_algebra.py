"""Folded training against the branches run apart, in float64 and where numbers are hard."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostcli.zoo.branches import RepConv


def relative(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=max(floor, 1e-300)))


def module(channels: int, out: int, kernel: int, stride: int, *, relu: bool = True, seed: int = 0) -> RepConv:
    torch.manual_seed(seed)
    m = RepConv(channels, out, kernel, stride, relu=relu, mode="folded").double()
    for p in m.parameters():
        nn.init.normal_(p)
    return m


def gradients(m: RepConv, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Everything a training pass leaves behind: output, gradients, running statistics."""
    m, x = copy.deepcopy(m).train(), x.detach().clone().requires_grad_()
    y = m(x)
    y.backward(dy.to(y.dtype))
    left = {"output": y, "input": x.grad}
    left |= {f"grad {name}": p.grad for name, p in m.named_parameters()}
    return left | {name: b for name, b in m.named_buffers()}


def compare(m: RepConv, x: Tensor, bounds: tuple[float, float, float], dtype: torch.dtype = torch.float64) -> None:
    """Folded in `dtype` against plain in float64; bounds on output, input gradient, and all the rest."""
    reference = copy.deepcopy(m)
    reference.mode = "plain"
    dy = torch.randn_like(copy.deepcopy(reference)(x))
    theirs = gradients(reference, x, dy)
    ours = gradients(m.to(dtype), x.to(dtype), dy)
    scale = float(theirs["grad gamma"].norm())
    for name, value in theirs.items():
        bound = {"output": bounds[0], "input": bounds[1]}.get(name, bounds[2])
        # batch norm undoes any scale, so a weight that does nothing else hardly has a gradient
        floor = scale if name in ("grad weight", "grad scale_weight") else 0.0
        error = relative(ours[name], value, floor)
        assert error <= bound, f"{name}: {error:.1e} > {bound:.0e}"
        assert ours[name].dtype == dtype


@given(
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    channels=st.integers(1, 19),
    out=st.integers(1, 9),
    square=st.booleans(),
    relu=st.booleans(),
    size=st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9)),
)
# A small weight in the middle, and large ones that see padding alone.
@example(kernel=5, stride=1, channels=9, out=1, square=False, relu=False, size=(2, 1, 1))
@settings(max_examples=60, deadline=None)
def test_equals_the_branches_run_apart_in_float64(kernel, stride, channels, out, square, relu, size):
    if kernel == 1:
        stride = 1
    out = channels if kernel > 1 or square else out
    n, h, w = size
    n = max(n, 12 // (-(-h // stride) * -(-w // stride)))  # below, batch norm's own gradient is all cancellation
    torch.manual_seed(n * 100 + h * 10 + w)
    x = torch.randn(n, channels, h, w, dtype=torch.float64) * 3 + torch.randn(channels, 1, 1)
    compare(module(channels, out, kernel, stride, relu=relu), x, (1e-12, 1e-11, 1e-9))


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_two_values_a_channel(kernel, stride):
    x = torch.randn(2, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    compare(module(6, 6, kernel, stride), x, (1e-10, 1e-8, 1e-8))


@pytest.mark.parametrize("choice", ["auto", "pytorch"])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("mean, bounds", [(0.0, (2e-6, 2e-6, 2e-5)), (100.0, (1e-4, 1e-4, 1e-3))])
def test_float32(kernel, stride, mean, bounds, choice, monkeypatch):
    """A float32 input of |mean| = 100 std itself holds 1e-5 of a std, and the output as much: no moments by
    E[xx'] - mm', which would leave no digit of the variance (1e4 * 6e-8 of it, after cancellation)."""
    monkeypatch.setenv("GHOST_KERNEL", choice)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(8, 11, 9, 6, generator=g) + mean * torch.randn(11, 1, 1, generator=g).sign()
    compare(module(11, 11, kernel, stride, relu=False), x.double(), bounds, torch.float32)


@pytest.mark.parametrize("kernel", [1, 3])
def test_variance_of_a_distant_mean_keeps_its_digits(kernel):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(16, 4, 8, 8, generator=g) + 1000
    m = RepConv(4, 4, kernel, mode="folded").train()
    m(x)
    expected = 0.9 + 0.1 * x.double().var((0, 2, 3))
    assert relative(m.identity_running_var, expected) < 1e-6


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
def test_half_precision(kernel, stride, dtype, bound):
    m = module(8, 8, kernel, stride, relu=False)
    x = torch.randn(8, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    compare(m, x.double(), (bound, bound, bound), dtype)


def test_autocast_keeps_moments_in_float32():
    m, x = module(6, 6, 1, 1).float(), torch.randn(8, 6, 8, 8) + 30
    with torch.autocast("cpu", torch.bfloat16):
        y = m.train()(x)
    assert y.dtype == torch.bfloat16
    seen = x.bfloat16().double()
    assert relative(m.identity_running_var, 0.9 + 0.1 * seen.var((0, 2, 3))) < 1e-6
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("choice", ["auto", "pytorch"])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
def test_zero_variance(kernel, stride, choice, monkeypatch):
    monkeypatch.setenv("GHOST_KERNEL", choice)
    m = module(5, 5, kernel, stride, relu=False).float()
    reference = copy.deepcopy(m)
    reference.mode = "plain"
    x = torch.full((4, 5, 6, 6), 0.5)
    dy = torch.ones(4, 5, 6 // stride, 6 // stride)
    ours, theirs = gradients(m, x, dy), gradients(reference, x, dy)
    assert all(v.isfinite().all() for v in ours.values())
    for name in ("output", "running_mean", "running_var"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["plain", "folded"])
def test_one_value_a_channel_is_refused(mode):
    m = RepConv(4, 4, 3, mode=mode).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        m(torch.randn(1, 4, 1, 1))
    m.eval()(torch.randn(1, 4, 1, 1))


@pytest.mark.parametrize("choice", ["auto", "pytorch"])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_values_reach_output_gradients_and_statistics(kernel, stride, poison, choice, monkeypatch):
    monkeypatch.setenv("GHOST_KERNEL", choice)
    m = module(4, 4, kernel, stride).float().train()
    x = torch.randn(3, 4, 6, 6)
    x[1, 2, 4, 4] = poison
    x.requires_grad_()
    y = m(x)
    y.sum().backward()
    assert not y[:, 2].isfinite().any()
    assert not m.running_var[:, 2].isfinite().any()
    assert not x.grad.isfinite().all() and not m.weight.grad.isfinite().all()


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
def test_any_layout(kernel, stride):
    m = module(6, 6, kernel, stride).float()
    x = torch.randn(4, 12, 10, 10)
    inputs = [x[:, 3:9, 1:, ::2], x.to(memory_format=torch.channels_last)[:, 3:9, 1:, ::2]]
    inputs.append(x.to(memory_format=torch.channels_last)[:, 3:9][:, :, 1:, ::2].contiguous())
    dy = torch.randn(m(inputs[0]).shape)
    first, *others = (gradients(m, i, dy) for i in inputs)
    for other in others:
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
def test_eval_of_both_modes_and_state_dict_of_both(kernel, stride):
    folded = module(6, 6, kernel, stride)
    folded.train()(torch.randn(8, 6, 5, 5, dtype=torch.float64))
    plain = RepConv(6, 6, kernel, stride, mode="plain").double()
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(3, 6, 7, 4, dtype=torch.float64)
    assert relative(folded.eval()(x), plain.eval()(x)) < 1e-12
    again = RepConv(6, 6, kernel, stride, mode="folded").double()
    again.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), folded.buffers(), strict=True))
