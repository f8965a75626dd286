"""The students' start: every convolution as torch's Kaiming normal would start it by itself."""

from __future__ import annotations

import torch
from torch import nn

from ghostcli import zoo
from ghostcli.zoo.branches import RepConv


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_branch_is_drawn_as_its_own_convolution() -> None:
    rep = zoo.init_kaiming(RepConv(12, 12, 3), seeded(5))
    generator = seeded(5)
    for j in range(3):
        conv = nn.Conv2d(12, 12, 3, groups=12, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        assert torch.equal(rep.weight[j], conv.weight)
    scale = nn.Conv2d(12, 12, 1, groups=12, bias=False)
    nn.init.kaiming_normal_(scale.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    assert torch.equal(rep.scale_weight.view(12, 1, 1, 1), scale.weight)


def test_the_spread_is_kaiming_fan_out_everywhere() -> None:
    model = zoo.init_kaiming(zoo.build("gns:2.0"), seeded(0))
    checked = 0
    for module in model.modules():
        if isinstance(module, RepConv):
            kernels = list(module.kernels())
        elif isinstance(module, nn.Conv2d | nn.Linear):
            kernels = [module.weight]
            assert module.bias is None or not module.bias.any()
        else:
            continue
        for kernel in kernels:
            fan_out = kernel.shape[0] * kernel[0, 0].numel()  # torch does not divide it by the groups
            tolerance = 6 / (2 * kernel.numel()) ** 0.5  # six standard errors of a standard deviation
            assert abs(kernel.std().item() / (2 / fan_out) ** 0.5 - 1) < tolerance
            checked += 1
    assert checked > 100


def test_batch_norms_forget() -> None:
    model = zoo.build("gns:0.5", branches="plain")
    model(torch.randn(4, 3, 32, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    zoo.init_kaiming(model, seeded(0))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            assert (tensor == 1).all(), name
        elif name.endswith(("running_mean", "bias", "num_batches_tracked")):
            assert (tensor == 0).all(), name


def test_only_the_generator_decides() -> None:
    torch.manual_seed(1)
    first = zoo.init_kaiming(zoo.build("gns:0.5"), seeded(7)).state_dict()
    torch.manual_seed(2)
    second = zoo.init_kaiming(zoo.build("gns:0.5", branches="plain"), seeded(7)).state_dict()
    other = zoo.init_kaiming(zoo.build("gns:0.5"), seeded(8)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])
