"""The Ghost networks against Table I's counts, the published cost, and the authors' own outputs."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.zoo.branches import RepConv
from ghostcli.zoo.ghost import divisible


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("gns:1.0", 483_554, 19.6),
        ("gns:1.3", 712_198, 31.4),
        ("gns:1.6", 973_606, 45.9),
        ("gns:1.9", 1_277_070, 64.1),
        ("gns:2.2", 1_617_674, 84.2),
        ("gns:2.8", 2_426_850, 131.7),
        ("gns:3.4", 3_380_066, 192.4),
        ("gnd:1.0", 6_860_838, 35.6),
    ],
)
def test_table_one_counts(name: str, parameters: int, macs: float) -> None:
    model = zoo.build(name)
    assert zoo.count_parameters(model) == parameters
    assert zoo.count_macs(model) / 1e6 == pytest.approx(macs, abs=0.051)
    assert model.spec == zoo.Spec(name, 10)


def test_counting_leaves_the_network_alone() -> None:
    model = zoo.build("gns:0.5")
    zoo.count_macs(model)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
    assert not any(module._forward_hooks for module in model.modules())


def test_macs_are_those_written_out_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), RepConv(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16 * 16, 5)
    )
    by_hand = 8 * 27 * 256 + (3 * 8 * 9 + 8) * 256 + 8 * 256 * 5
    assert zoo.count_macs(net) == by_hand


@pytest.mark.parametrize("exponent", range(-3, 3))
def test_divisible_is_the_nearest_multiple_of_four_never_below_nine_tenths(exponent: int) -> None:
    for i in range(1, 400):
        wanted = i * 10.0**exponent
        got = divisible(wanted)
        floor = math.floor(wanted / 4) * 4
        nearest = floor if wanted - floor < 2 else floor + 4
        assert got == max(4, nearest if nearest >= 0.9 * wanted else nearest + 4), wanted


@pytest.mark.parametrize(("width", "channels"), [(0.01, 4), (0.7, 12), (1.1, 16), (1.2, 20), (1.45, 24)])
def test_unlisted_widths_round_by_the_same_rule(width: float, channels: int) -> None:
    model = zoo.build(f"gns:{width}")
    assert model.stem.conv.out_channels == channels
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", ["gns:0.5", "gnd:0.5"])
@pytest.mark.parametrize(("side", "classes"), [(8, 2), (9, 10), (13, 10), (28, 3), (32, 100), (48, 10)])
def test_any_size_down_to_eight_and_any_number_of_classes(name: str, side: int, classes: int) -> None:
    model = zoo.build(name, classes, branches="plain")
    x = torch.randn(2, 3, side, side)
    assert model(x).shape == (2, classes)
    assert model.eval()(x[:1]).shape == (1, classes)


@pytest.mark.parametrize(
    ("name", "side", "works"),
    [
        ("gns:0.5", 32, True),
        ("gns:0.5", 13, True),
        ("gns:0.5", 12, False),
        ("gns:0.5", 8, False),
        ("gnd:0.5", 49, True),
        ("gnd:0.5", 48, False),
        ("gnd:0.5", 32, False),
    ],
)
def test_a_batch_of_one_trains_where_batch_norm_allows(name: str, side: int, works: bool) -> None:
    model = zoo.build(name, branches="plain")
    if works:
        assert model(torch.randn(1, 3, side, side)).isfinite().all()
    else:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match="at least two values per channel"):
            model(torch.randn(1, 3, side, side))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_channels_last_stays_channels_last(form: str) -> None:
    model = zoo.build("gns:0.5", branches="plain")
    model = (zoo.deploy(model) if form == "deploy" else model).to(memory_format=torch.channels_last)
    strays = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in (*inputs, output):
            if tensor.dim() == 4 and not tensor.is_contiguous(memory_format=torch.channels_last):
                strays.append(module)

    for module in model.modules():
        module.register_forward_hook(watch)
    model(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))
    assert not strays


def of_the_authors(stem: str) -> tuple[nn.Module, dict[str, Tensor]]:
    tensors = oracles.golden(stem)
    model = zoo.build(oracles.NETWORKS[stem], branches="plain").double()
    model.load_state_dict({k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")})
    return model, tensors


def kd(logits: Tensor, labels: Tensor, teacher: Tensor, temperature: float, alpha: float) -> Tensor:
    """Equation (1), written out."""
    hard = -(logits.log_softmax(1)[torch.arange(len(labels)), labels]).mean()
    p, q = (teacher / temperature).softmax(1), (logits / temperature).softmax(1)
    return alpha * hard + (1 - alpha) * temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def near(got: Tensor, want: Tensor, name: str | None = None) -> None:
    torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-9, atol=1e-9, msg=name and (lambda m: f"{name}: {m}"))


@pytest.mark.parametrize("stem", oracles.NETWORKS)
@pytest.mark.parametrize("form", ["plain", "folded", "deploy"])
def test_golden_evaluation(stem: str, form: str) -> None:
    model, tensors = of_the_authors(stem)
    for module in model.modules():
        if isinstance(module, RepConv):
            module.mode = "folded" if form == "folded" else "plain"
    model = zoo.deploy(model) if form == "deploy" else model.eval()
    with torch.no_grad():
        near(model(tensors["input"].double()), tensors["eval_logits"])


@pytest.mark.parametrize("stem", oracles.NETWORKS)
def test_golden_training_step(stem: str) -> None:
    model, tensors = of_the_authors(stem)
    x, labels, teacher = tensors["input"].double(), tensors["labels"], tensors["teacher_logits"].double()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)

    logits = model(x)
    near(logits, tensors["train_logits"])
    near(kd(logits, labels, teacher, 1, 1), tensors["cross_entropy"])
    near(kd(logits, labels, teacher, 1, 0.5), tensors["kd_loss_T1_alpha0.5"])
    loss = kd(logits, labels, teacher, 4, 0.1)
    near(loss, tensors["kd_loss_T4_alpha0.1"])
    loss.backward()

    state, gradients = model.state_dict(), named_gradients(model)
    statistics = {k.removeprefix("running_after/"): v for k, v in tensors.items() if k.startswith("running_after/")}
    norms = {k.removeprefix("gradient_norm/"): v for k, v in tensors.items() if k.startswith("gradient_norm/")}
    assert set(statistics) | set(norms) == set(state_names(model))
    for name, statistic in statistics.items():
        near(state[name], statistic, name)
    for name, norm in norms.items():
        near(gradients[name].norm(), norm, name)

    optimiser.step()
    model.eval()
    with torch.no_grad():
        near(model(x), tensors["eval_logits_after_step"])
        near(zoo.deploy(model)(x), tensors["eval_logits_after_step"])


def state_names(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]


def named_gradients(model: nn.Module) -> dict[str, Tensor]:
    named = {name: p.grad for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, RepConv):
            named |= {f"{path}.{name}": gradient for name, gradient in oracles.gradients_by_branch(module).items()}
    return named
