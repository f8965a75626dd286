"""Stages: the layers a tap finds, and that watching a network leaves it as it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.zoo.stages import FeatureShape, Tap, as_map, common, nearest


def images(side: int = 32, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def vit() -> nn.Module:
    return tv.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=10)


def swin() -> nn.Module:
    return tv.SwinTransformer([2, 2], 12, [1, 1], [2, 2], [4, 4], num_classes=10)


def found(model: nn.Module, side: int = 32) -> list[tuple[int, str, int, int]]:
    return [(stage.level, stage.name, stage.channels, stage.size) for stage in Tap(model, side).stages]


def test_a_ghost_networks_stages_end_with_a_bottleneck() -> None:
    # Not the gates' maps at a quarter, nor the expansions inside the first bottleneck of a stage.
    for branches in ("plain", "folded"):
        model = zoo.build("gns:0.5", branches=branches)
        assert found(model) == [(0, "bottlenecks.0", 8, 32), (1, "bottlenecks.4", 16, 16), (2, "tail", 80, 8)]
        assert Tap(model).shape.pooled == 1280


def test_a_resnets_stages_are_what_its_own_layers_give() -> None:
    model = zoo.build("resnet18").eval()
    names = [(0, "relu", 64, 32), (1, "layer1", 64, 16), (2, "layer2", 128, 8), (3, "layer3", 256, 4)]
    assert found(model) == [*names, (4, "layer4", 512, 2)]
    x = images()
    y = model.relu(model.bn1(model.conv1(x)))
    expected = [y]
    y = model.maxpool(y)
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        y = layer(y)
        expected.append(y)
    logits, features = Tap(model)(x)
    for a, b in zip(features.maps, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(features.pooled, expected[-1].mean((2, 3)))
    torch.testing.assert_close(logits, model(x))


@pytest.mark.parametrize(
    "make, levels",
    [
        (lambda: zoo.build("vgg13"), (0, 1, 2, 3, 4)),
        (lambda: tv.mobilenet_v2(num_classes=10), (1, 2, 3, 4)),
        (lambda: tv.squeezenet1_1(num_classes=10), (1, 2, 3)),
        (vit, (3,)),
        (swin, (1, 2)),
    ],
    ids=["vgg13", "mobilenet", "squeezenet", "vit", "swin"],
)
def test_any_network_has_stages_of_square_maps(make, levels) -> None:
    model = make().eval()
    tap = Tap(model)
    assert tap.shape.levels == levels
    x = images(batch=3)
    logits, features = tap(x)
    torch.testing.assert_close(logits, model(x))
    assert features.pooled.shape == (3, tap.shape.pooled)
    for maps, channels, size in zip(features.maps, tap.shape.channels, tap.shape.sizes, strict=True):
        assert maps.shape == (3, channels, size, size)


def test_the_pooled_features_are_what_the_last_linear_layer_reads() -> None:
    for model, last in ((zoo.build("gns:0.5"), "classifier"), (vit(), "heads.head"), (swin(), "head")):
        model.eval()
        logits, features = Tap(model)(images())
        torch.testing.assert_close(model.get_submodule(last)(features.pooled), logits)


def test_without_a_linear_layer_the_last_map_is_pooled() -> None:
    _, features = Tap(tv.squeezenet1_1(num_classes=10).eval())(images())
    torch.testing.assert_close(features.pooled, features.maps[-1].mean((2, 3)))


def test_tokens_and_trailing_channels_become_maps() -> None:
    tokens = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)  # one class token, then 2 x 2
    maps = as_map(tokens)
    assert maps.shape == (2, 3, 2, 2)
    for i in range(4):
        assert maps[:, :, i // 2, i % 2].tolist() == tokens[:, 1 + i].tolist()
    last = torch.randn(2, 4, 4, 7)
    assert torch.equal(as_map(last), last.permute(0, 3, 1, 2))
    assert as_map(torch.zeros(2, 3, 4, 5)) is None
    assert as_map(torch.zeros(2, 10)) is None
    assert as_map((tokens,)) is None


def test_a_teacher_that_enlarges_is_measured_against_the_image_it_was_given() -> None:
    class Enlarged(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(nn.functional.interpolate(x, size=64))

    model = Enlarged(tv.mobilenet_v2(num_classes=10)).eval()
    shape = Tap(model).shape
    assert shape.sizes == (32, 16, 8, 4, 2)  # of maps at 64 / 2, 64 / 4, ...
    assert shape.levels == (0, 1, 2, 3, 4)


def test_a_module_called_twice_is_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.act = nn.ReLU()
            self.down = nn.Conv2d(4, 4, 2, 2)
            self.head = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.conv(x))
            x = self.act(self.down(x))
            return self.head(x.mean((2, 3)))

    model = Twice().eval()
    x = images(8)
    assert [(s.name, s.call) for s in Tap(model, 8).stages] == [("act", 0), ("act", 1)]
    _, features = Tap(model, 8)(x)
    first = model.conv(x).relu()
    torch.testing.assert_close(features.maps[0], first)
    torch.testing.assert_close(features.maps[1], model.down(first).relu())


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.conv(x))


class Chain(nn.Module):
    """A stem, blocks in chains within chains, and a pool that blows its input up again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        deep = nn.Sequential(nn.Conv2d(4, 5, 2, 2), Residual(5))
        self.blocks = nn.Sequential(Residual(4), nn.Sequential(Residual(4)), deep, nn.Conv2d(5, 6, 2, 2))
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.head = nn.Linear(6 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def test_blocks_in_a_chain_are_as_far_out_as_the_stem() -> None:
    # Level 0 ends with the second block, neither with the stem nor inside a block; the pool's 7 x 7 is no stage.
    expected = [(0, "blocks.1", 4, 8), (1, "blocks.2", 5, 4), (2, "blocks", 6, 2)]
    assert found(Chain(), 8) == expected


def test_other_sizes_are_looked_up_again() -> None:
    tap = Tap(zoo.build("resnet18").eval())
    _, features = tap(images(8))
    assert tap.shape == FeatureShape((0, 1, 2), (64, 64, 128), (8, 4, 2), 512)  # single pixels are no map
    assert [m.shape[-1] for m in features.maps] == [8, 4, 2]


def test_a_network_without_maps_has_what_its_last_layer_gets() -> None:
    tap = Tap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)), 8)
    x = images(8)
    assert tap.shape == FeatureShape((), (), (), 3 * 64) and torch.equal(tap(x)[1].pooled, x.flatten(1))
    with pytest.raises(ValueError, match="Sequential makes no features"):
        Tap(nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()), 8)


def test_stages_pair_by_level_and_else_by_depth() -> None:
    a, b = FeatureShape((0, 1, 2), (1,) * 3, (32, 16, 8), 1), FeatureShape((1, 2, 4), (1,) * 3, (16, 8, 2), 1)
    assert common(a, b) == [(1, 0), (2, 1)]
    assert common(b, a) == [(0, 1), (1, 2)]
    assert common(a, FeatureShape((5,), (1,), (2,), 1)) == [(2, 0)]
    assert [nearest((0, 2, 4), level) for level in (0, 1, 2, 3, 9)] == [0, 1, 1, 2, 2]


def no_hooks(model: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_watching_leaves_a_network_as_it_was() -> None:
    model = zoo.build("gns:0.5")
    model.bottlenecks[3].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    tap = Tap(model)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert no_hooks(model)
    tap(images())
    assert no_hooks(model)
    with pytest.raises(RuntimeError):
        tap(torch.zeros(2, 5, 32, 32))
    assert no_hooks(model)


def test_gradients_flow_where_they_are_let() -> None:
    model = zoo.build("gns:0.5")
    tap = Tap(model)
    _, features = tap(images())
    sum(m.square().mean() for m in features.maps).backward()
    assert model.stem.conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        logits, features = tap(images())
    assert not any(t.requires_grad for t in (logits, *features.maps, features.pooled))


def test_a_copied_tap_watches_the_copy() -> None:
    tap = Tap(zoo.build("resnet18").eval())
    twin = copy.deepcopy(tap)
    with torch.no_grad():
        for p in tap.model.parameters():
            p.zero_()
        _, ours = tap(images())
        _, theirs = twin(images())
    assert ours.maps[-1].abs().max() == 0
    assert theirs.maps[-1].abs().max() > 0
