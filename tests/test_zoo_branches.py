"""The re-parameterizable sum against torch's own convolutions and batch norms, one module a branch."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ghostcli.zoo.branches import RepConv

KINDS = [(4, 6, 1, 1), (6, 6, 1, 1), (6, 6, 3, 1), (6, 6, 3, 2), (6, 6, 5, 2), (6, 6, 5, 1)]


class Reference(nn.Module):
    """The same sum of torch's own modules, under the readable names."""

    def __init__(self, i: int, o: int, k: int, s: int) -> None:
        super().__init__()
        groups = i if k > 1 else 1

        def conv_bn(kernel: int) -> nn.Module:
            branch = nn.Module()
            branch.conv = nn.Conv2d(i, o, kernel, s, kernel // 2, groups=groups, bias=False)
            branch.bn = nn.BatchNorm2d(o)
            return branch

        self.branches = nn.ModuleList(conv_bn(k) for _ in range(3))
        self.scale = conv_bn(1) if k > 1 else None
        self.identity = nn.BatchNorm2d(i) if i == o and s == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        branches = [*self.branches, *([] if self.scale is None else [self.scale])]
        y = sum(branch.bn(branch.conv(x)) for branch in branches)
        return torch.relu(y if self.identity is None else y + self.identity(x))


def pair(kind: tuple[int, int, int, int]) -> tuple[RepConv, Reference]:
    """Both in float64 with the same random parameters and running statistics."""
    torch.manual_seed(0)
    reference = Reference(*kind).double()
    for name, tensor in reference.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    rep = RepConv(*kind).double()
    rep.load_state_dict(reference.state_dict())
    return rep, reference


def images(side: int = 7) -> Tensor:
    return torch.randn(3, 8, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_separate_modules(kind: tuple[int, int, int, int]) -> None:
    rep, reference = pair(kind)
    x = images()[:, : kind[0]]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, want = rep(ours), reference(theirs)
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)

    pull = torch.randn_like(want)
    y.backward(pull)
    want.backward(pull)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)
    gradients = oracles.gradients_by_branch(rep)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-10, msg=name)
    state = rep.state_dict()
    for name, statistic in reference.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(state[name], statistic, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("mode", ["plain", "folded"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_equals_separate_modules(kind: tuple[int, int, int, int], mode: str) -> None:
    rep, reference = pair(kind)
    rep.mode = mode
    x = images(8)[:, : kind[0]]
    before = copy.deepcopy(rep.state_dict())
    torch.testing.assert_close(rep.eval()(x), reference.eval()(x), rtol=0, atol=1e-12)
    for name, tensor in rep.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_speaks_of_branches(kind: tuple[int, int, int, int], tmp_path) -> None:
    rep, reference = pair(kind)
    state = rep.state_dict()
    assert set(state) == {k for k in reference.state_dict() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    fresh = RepConv(*kind).double()
    fresh.load_state_dict(load_file(tmp_path / "w.safetensors"))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert sum(p.numel() for p in rep.parameters()) == sum(p.numel() for p in reference.parameters())


def test_a_wrong_state_dict_is_refused_by_readable_name() -> None:
    good = RepConv(6, 6, 3).state_dict()
    rep = RepConv(6, 6, 3)
    missing = {k: v for k, v in good.items() if k != "branches.1.bn.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*branches\.1\.bn\.weight"):
        rep.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*branches\.3\.conv\.weight"):
        rep.load_state_dict(good | {"branches.3.conv.weight": torch.zeros(6, 1, 3, 3)})
    with pytest.raises(RuntimeError, match=r"scale\.conv\.weight has shape"):
        rep.load_state_dict(good | {"scale.conv.weight": torch.zeros(6, 1, 3, 3)})
    with pytest.raises(ValueError, match="keeps its channels"):
        RepConv(4, 6, 3)


@pytest.mark.parametrize("kind", [(6, 6, 1, 1), (6, 6, 3, 1)])
def test_moving_and_copying_keep_the_function(kind: tuple[int, int, int, int]) -> None:
    rep, _ = pair(kind)
    rep.eval()
    x = images()[:, : kind[0]]
    want = rep(x)
    moved = copy.deepcopy(rep).to(memory_format=torch.channels_last)
    got = moved(x.to(memory_format=torch.channels_last))
    assert moved.weight.shape == rep.weight.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert rep.weight.data_ptr() != moved.weight.data_ptr()
    assert moved.float().weight.dtype == torch.float32


def test_branches_start_as_torch_starts_a_convolution() -> None:
    torch.manual_seed(3)
    rep = RepConv(64, 64, 3)
    bound = 1 / 3  # 1 / sqrt(fan-in), fan-in 9 of a depthwise 3x3
    for j in range(3):
        assert 0.95 * bound < rep.weight[j].abs().max() <= bound
    assert not torch.equal(rep.weight[0], rep.weight[1])
