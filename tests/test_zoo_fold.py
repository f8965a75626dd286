"""The deploy form computes what the train form computes, with one convolution a sum and no batch norm."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.zoo.branches import RepConv

GHOSTS = zoo.KNOWN[:8]


def randomise(model: nn.Module) -> nn.Module:
    """Weights that keep signals at their size, batch norms as if trained on anything, in float64."""
    torch.manual_seed(0)
    for module in model.modules():
        kernels: list[Tensor] = []
        if isinstance(module, RepConv):
            kernels = list(module.kernels())
        elif isinstance(module, nn.Conv2d | nn.Linear):
            kernels = [module.weight]
        for kernel in kernels:
            nn.init.kaiming_normal_(kernel)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            leaf = name.rsplit(".", 1)[-1]
            if leaf.endswith("var"):
                tensor.uniform_(0.3, 2.0)
            elif leaf.endswith(("mean", "beta", "bias")):
                tensor.normal_(0, 0.3)
            elif leaf.endswith("gamma") or (leaf == "weight" and tensor.dim() == 1):
                tensor.uniform_(-0.9, 0.9)
    return model.double()


def images(side: int = 32, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.to(dtype)


@pytest.mark.parametrize("name", GHOSTS)
def test_outputs_are_equal_in_float64(name: str) -> None:
    model = randomise(zoo.build(name, branches="plain")).eval()
    with torch.no_grad():
        want = model(images())
        got = zoo.deploy(model)(images())
    assert (want[0] - want[1]).abs().max() > 1e-3  # the images matter, not the biases alone
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("gns:1.0", 374_174, 8.96),
        ("gns:1.3", 536_712, 14.3),
        ("gns:1.6", 719_316, 20.8),
        ("gns:1.9", 927_000, 29.0),
        ("gns:2.2", 1_159_656, 38.0),
        ("gns:2.8", 1_701_424, 59.5),
        ("gns:3.4", 2_331_712, 86.6),
        ("gnd:1.0", None, 16.2),
    ],
)
def test_published_counts(name: str, parameters: int | None, macs: float) -> None:
    folded = zoo.deploy(zoo.build(name))
    assert not any(isinstance(module, nn.BatchNorm2d | RepConv) for module in folded.modules())
    assert parameters is None or zoo.count_parameters(folded) == parameters
    assert zoo.count_macs(folded) / 1e6 == pytest.approx(macs, rel=0.0036)


def test_every_branch_and_norm_becomes_one_kernel_and_one_bias() -> None:
    model = zoo.build("gnd:1.0")
    expected = 0
    for module in model.modules():
        if isinstance(module, RepConv):
            expected += module.weight[0].numel() + module.out_channels
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bias = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
            expected += module.weight.numel() + bias
    assert zoo.count_parameters(zoo.deploy(model)) == expected == 4_857_526


def test_the_original_is_untouched_and_may_be_training() -> None:
    model = randomise(zoo.build("gns:0.5", branches="plain")).train()
    before = copy.deepcopy(model.state_dict())
    folded = zoo.deploy(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in folded.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(folded(images()), model.eval()(images()), rtol=0, atol=1e-12)

    later = zoo.deploy(copy.deepcopy(model))
    nn.init.zeros_(model.classifier.weight)
    assert torch.equal(folded.classifier.weight, later.classifier.weight)


def test_folding_twice_gives_an_equal_copy() -> None:
    folded = zoo.deploy(randomise(zoo.build("gns:0.5")))
    again = zoo.deploy(folded)
    assert again is not folded
    assert again.spec == folded.spec
    first, second = folded.state_dict(), again.state_dict()
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert first[name].data_ptr() != second[name].data_ptr()
    assert torch.equal(folded(images()), again(images()))


def test_a_folded_network_is_saved_under_plain_names_and_loaded(tmp_path) -> None:
    folded = zoo.deploy(randomise(zoo.build("gns:1.0", 7)).float())
    state = folded.state_dict()
    assert {"stem.weight", "stem.bias", "bottlenecks.2.expand.gate.0.bias", "tail.bias"} < set(state)
    assert {"bottlenecks.1.shortcut.1.weight", "bottlenecks.1.depthwise.bias"} < set(state)
    assert {"bottlenecks.0.expand.primary.weight", "bottlenecks.0.project.cheap.bias"} < set(state)
    assert not any(word in name for name in state for word in ("branches", "running", "bn", "identity"))
    save_file(state, tmp_path / "deploy.safetensors")
    loaded = zoo.deploy(zoo.build("gns:1.0", 7))
    loaded.load_state_dict(load_file(tmp_path / "deploy.safetensors"))
    x = images(dtype=torch.float32)
    assert torch.equal(loaded(x), folded(x))


def test_deepcopy_before_and_after_folding() -> None:
    model = randomise(zoo.build("gns:0.5", branches="plain")).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    folded = zoo.deploy(twin)
    torch.testing.assert_close(copy.deepcopy(folded)(images()), twin(images()), rtol=0, atol=1e-12)


def test_float32_folds_as_well_as_float32_can() -> None:
    model = randomise(zoo.build("gns:1.0", branches="plain")).eval()
    want = model(images())
    got = zoo.deploy(model.float())(images(dtype=torch.float32))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def plainly(model: nn.Module, x: Tensor) -> Tensor:
    """By PyTorch's own operations, as where somebody looks on."""
    y = model(x.clone().requires_grad_())
    assert y.requires_grad
    return y.detach()


@pytest.mark.parametrize("name", ["gns:1.0", "gns:1.3", "gnd:0.3"])
@pytest.mark.parametrize(("batch", "side"), [(1, 32), (5, 32), (2, 19), (3, 8)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_kernels_infer_what_pytorch_infers(name: str, batch: int, side: int, layout: torch.memory_format) -> None:
    folded = zoo.deploy(randomise(zoo.build(name, branches="plain")).float()).to(memory_format=layout)
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(2)).to(memory_format=layout)
    want = plainly(folded, x)
    for got in (folded(x), folded(x.expand(2, *x.shape)[1]), torch.no_grad()(folded)(x)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_deploy_form_can_be_looked_into() -> None:
    """An input gradient (a saliency map), a trace and an exported program are those of the network."""
    model = randomise(zoo.build("gns:0.5", branches="plain")).eval()
    folded, x = zoo.deploy(model.float()), images(dtype=torch.float32)
    gradients = []
    for net in (model, folded):
        seen = x.clone().requires_grad_()
        net(seen)[:, 3].sum().backward()
        gradients.append(seen.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())
    other = torch.flip(x, [0, 3])
    for looked_at in (torch.jit.trace(folded, x), torch.export.export(folded, (x,)).module()):
        torch.testing.assert_close(looked_at(other), plainly(folded, other), rtol=1e-4, atol=1e-3)


def test_a_deploy_form_takes_a_batch_of_one_in_any_mode() -> None:
    folded = zoo.deploy(zoo.build("gns:0.5"))
    x = images(8, torch.float32)[:1]
    assert torch.equal(folded.train()(x), folded.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "vgg13", "inceptionv3", "densenet161"])
def test_teachers_fold_what_follows_a_convolution(name: str) -> None:
    model = zoo.build(name)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.7, 1.5)
    model.double().eval()
    folded = zoo.deploy(model)
    with torch.no_grad():
        want, got = model(images(16)), folded(images(16))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert zoo.count_parameters(folded) < zoo.count_parameters(model)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert norms == (82 if name == "densenet161" else 0)  # a norm before the convolution stays: 78 layers, 3 + 1
