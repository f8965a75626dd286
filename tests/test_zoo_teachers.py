"""Teachers: torchvision's own networks, exact counts, and honest words about their weights."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.engine import saving
from ghostcli.errors import GhostError, Interrupted, UsageError
from ghostcli.zoo import weights

TEACHERS = zoo.KNOWN[8:]
COUNTS = {
    "resnet18": (11_173_962, 140),
    "resnet34": (21_282_122, 291),
    "resnet50": (23_520_842, 326),
    "vgg13": (28_334_410, 247),
    "inceptionv3": (21_638_954, 3460),
    "densenet161": (26_482_570, 619),
}
CLASSES = {
    "resnet18": torchvision.models.ResNet,
    "resnet34": torchvision.models.ResNet,
    "resnet50": torchvision.models.ResNet,
    "vgg13": torchvision.models.VGG,
    "inceptionv3": torchvision.models.Inception3,
    "densenet161": torchvision.models.DenseNet,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_small_images(name: str) -> None:
    model = zoo.build(name)
    assert type(model) is CLASSES[name]
    assert model.spec == zoo.Spec(name, 10)
    parameters, macs = COUNTS[name]
    assert zoo.count_parameters(model) == parameters
    assert zoo.count_macs(model) / 1e6 == pytest.approx(macs, abs=0.51)
    model.eval()
    with torch.no_grad():
        for side in (8, 32):
            y = model(torch.randn(1, 3, side, side))
            assert y.shape == (1, 10)
            assert y.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "inceptionv3", "vgg13"])
def test_training_gives_logits_and_gradients(name: str) -> None:
    model = zoo.build(name, 3)
    y = model(torch.randn(2, 3, 32, 32))
    assert isinstance(y, Tensor)
    assert y.shape == (2, 3)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("name", "std"), [("resnet18", (2 / (64 * 9)) ** 0.5), ("vgg13", (2 / (64 * 9)) ** 0.5)])
def test_stems_start_as_their_network_starts(name: str, std: float) -> None:
    torch.manual_seed(0)
    model = zoo.build(name)
    stem = model.conv1 if name == "resnet18" else model.features[0]
    assert stem.weight.std().item() == pytest.approx(std, rel=0.05)
    assert (stem.stride, stem.padding, stem.kernel_size) == ((1, 1), (1, 1), (3, 3))


def test_vgg_starts_as_torchvision_starts_it() -> None:
    torch.manual_seed(0)
    model = zoo.build("vgg13")
    assert model.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert all(not p.is_meta and p.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())
    assert all((m.running_var == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache for torchvision's weights; returns where it looks for EfficientNetV2-S."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.EfficientNet_V2_S_Weights.IMAGENET1K_V1.url
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / url.rsplit("/", 1)[-1]


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)


def test_efficientnet_without_a_network_says_that_it_starts_from_scratch(hub, offline, capsys) -> None:
    model = zoo.build("efficientnetv2", pretrained=True)
    assert zoo.count_parameters(model) == 20_190_298
    assert (model.spec.input_size, model.spec.mean, model.spec.std) == (224, None, None)
    assert "are not available" in model.spec.note
    assert "from scratch" in model.spec.note
    assert capsys.readouterr() == ("", "")
    assert not list(hub.parent.iterdir())
    assert zoo.build("efficientnetv2").spec.note is None


def test_efficientnet_with_a_broken_cached_file_says_so(hub, capsys) -> None:
    hub.write_bytes(b"half a download")
    assert "are not available" in zoo.build("efficientnetv2", pretrained=True).spec.note
    assert capsys.readouterr() == ("", "")


def test_efficientnet_with_weights_takes_them_and_their_normalisation(hub) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.efficientnet_v2_s(weights=None)
    torch.save(theirs.state_dict(), hub)
    model = zoo.build("efficientnetv2", 7, pretrained=True)
    assert model.spec.mean == (0.485, 0.456, 0.406)
    assert model.spec.std == (0.229, 0.224, 0.225)
    assert "ImageNet-1k" in model.spec.note
    ours = model.net.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(ours[name], tensor), name
    assert ours["classifier.1.weight"].shape == (7, 1280)


def test_small_images_are_enlarged_as_torch_enlarges_them() -> None:
    seen: list[Tensor] = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((1, 2, 3))

    from ghostcli.zoo.teachers import Enlarged

    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    Enlarged(Net(), 16)(ramp)
    centres = ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7)  # half-pixel centres, edges held
    torch.testing.assert_close(seen[0], centres.expand(1, 3, 16, 16))
    Enlarged(Net(), 8)(ramp)
    assert seen[1] is ramp


def test_efficientnet_folds_behind_its_enlargement() -> None:
    model = zoo.build("efficientnetv2", 3).eval()
    folded = zoo.deploy(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert folded.spec == model.spec
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)


def test_timm_absent_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'ghostcli\[timm\]'"):
        zoo.build("timm/resnet10t")


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with timm's four functions that are used, and two networks at 24 pixels, one without a map."""
    fake, data = types.ModuleType("timm"), types.ModuleType("timm.data")

    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        if pretrained:
            raise RuntimeError("hub is away\nand more")
        if name == "flat24":
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, num_classes))
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

    fake.create_model, fake.data = create_model, data
    fake.is_model, fake.list_models = lambda name: name in ("tiny24", "flat24"), lambda: ["tiny24"]
    config = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    data.resolve_model_data_config = lambda net: config
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_timm_keeps_its_own_size_and_normalisation(timm, offline) -> None:
    model = zoo.build("timm/tiny24", 5)
    assert model.spec == zoo.Spec("timm/tiny24", 5, 24, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), None)
    x = torch.randn(2, 3, 8, 8)
    assert model(x).shape == (2, 5)
    torch.testing.assert_close(zoo.deploy(model)(x), model.eval()(x))
    scratch = zoo.build("timm/tiny24", 5, pretrained=True)
    assert scratch.spec.note == "the weights of timm/tiny24 are not available (hub is away): it starts from scratch"
    with pytest.raises(UsageError, match="did you mean tiny24"):
        zoo.build("timm/tiny42")


def test_weights_whose_network_cannot_be_built_say_why(timm, tmp_path, monkeypatch):
    (tmp_path / "tiny.safetensors").write_bytes(weights.encode(zoo.build("timm/tiny24"), ((0.5,) * 3, (0.2,) * 3)))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(GhostError, match=r"tiny\.safetensors: refused: .*pip install 'ghostcli\[timm\]'"):
        weights.load(tmp_path / "tiny.safetensors")


def test_weights_that_come_late_do_not_continue_a_run_that_began_without(ghost, timm, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("train-teacher", "timm/tiny24", "--recipe", "smoke", "--data", "digits", "--epochs", "2")
    save = saving.Saver.save

    def save_and_stop(saver: saving.Saver) -> None:
        save(saver)
        raise Interrupted("stopped by SIGTERM")

    with monkeypatch.context() as stopped:
        stopped.setattr(saving.Saver, "save", save_and_stop)
        said = ghost(*words)
    assert said.code == 75
    assert "the weights of timm/tiny24 are not available (hub is away): it starts from scratch" in said.err
    create = sys.modules["timm"].create_model
    monkeypatch.setattr(sys.modules["timm"], "create_model", lambda name, pretrained, **k: create(name, False, **k))
    said = ghost(*words)
    assert said.code == 2 and "the initial weights have changed since this run began" in said.err
    monkeypatch.setattr(sys.modules["timm"], "create_model", create)
    assert ghost(*words).code == 0


@pytest.mark.parametrize("key", ["distill.kind=at", "distill.weighting=adaptive"])
@pytest.mark.parametrize("names", [("timm/flat24", "gns:0.1"), ("gns:0.1", "timm/flat24")], ids=["teacher", "student"])
def test_a_timm_network_without_maps_is_refused_before_anything_is_trained(
    ghost, timm, offline, tmp_path, names, key
) -> None:
    teacher, student = names
    command = ["ensemble", teacher, "gns:0.2", "--student", student, "-s", key, "--runs", tmp_path / "runs"]
    told = ghost(*command, "--data", "digits", "-s", "data.limit=60", "--epochs", 1, "--device", "cpu")
    assert told.code == 2 and told.err.strip().count("\n") == 0
    assert f"timm/flat24: has no feature maps, which {key} compares; use -s distill." in told.err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_built_by_name_alone() -> None:
    with pytest.raises(ValueError, match="record"):
        zoo.build("run/gns-1.0-plain-1a2b3c4d/s0")
