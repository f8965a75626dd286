"""Teachers: torchvision's networks with a stem for small images, EfficientNetV2-S at 224, and timm's networks.

Invariant: no network is re-implemented here. Stems are replaced and pools keep a last odd row. A network's input size
and normalisation are in its `Spec`.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pickle import UnpicklingError
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.errors import UsageError, nearest
from ghostcli.zoo.init import init_kaiming
from ghostcli.zoo.memory import make_recomputable
from ghostcli.zoo.names import Spec

EFFICIENTNET_SIZE = 224  # the paper's size; torchvision's weights were trained at 384
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


class Enlarged(nn.Module):
    """`net` behind a bilinear enlargement (no antialiasing) of its input to `size` x `size`."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=False)
        return self.net(x)


def bare(model: nn.Module) -> nn.Module:
    """The network without its enlargement, if it has one."""
    return model.net if isinstance(model, Enlarged) else model


def build_teacher(name: str, classes: int, pretrained: bool) -> nn.Module:
    """A network of `names.KNOWN` that is not a Ghost network. `pretrained` affects only `efficientnetv2`."""
    if name == "efficientnetv2":
        return _efficientnetv2(classes, pretrained)
    build = {"vgg13": _vgg13, "densenet161": _densenet161, "inceptionv3": _inceptionv3}.get(name)
    model = build(classes) if build else _resnet(name, classes)
    model.spec = Spec(name, classes)
    return model


def _resnet(name: str, classes: int) -> nn.Module:
    import torchvision.models as tv

    model = getattr(tv, name)(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def _densenet161(classes: int) -> nn.Module:
    import torchvision.models as tv

    model = tv.densenet161(weights=None, num_classes=classes)
    model.features.conv0 = nn.Conv2d(3, 96, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.features.conv0.weight)
    return _keep_odd_rows(model)


def _vgg13(classes: int) -> nn.Module:
    import torchvision.models as tv

    with torch.device("meta"):  # the original classifier, for 7 x 7 maps, holds 100 million weights
        model = tv.vgg13_bn(weights=None, num_classes=classes, init_weights=False)
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier[0] = nn.Linear(512, 4096)
    init_kaiming(model.to_empty(device="cpu"))
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):  # as in torchvision
            nn.init.normal_(layer.weight, 0, 0.01)
    return _keep_odd_rows(model)


def _inceptionv3(classes: int) -> nn.Module:
    import torchvision.models as tv
    from torchvision.models.inception import BasicConv2d

    model = tv.inception_v3(weights=None, num_classes=classes, aux_logits=False, init_weights=True)
    stem = BasicConv2d(3, 192, kernel_size=3, padding=1)
    nn.init.trunc_normal_(stem.conv.weight, std=0.1, a=-2, b=2)
    model.Conv2d_1a_3x3 = stem
    for rest in ("Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"):
        setattr(model, rest, nn.Identity())
    return model


def _keep_odd_rows(model: nn.Module) -> nn.Module:
    """Set 2 x 2 pools to ceiling mode. Even sides do not change; images down to 8 x 8 become possible."""
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and module.kernel_size == 2:
            module.ceil_mode = True
    return model


def _efficientnetv2(classes: int, pretrained: bool) -> nn.Module:
    import torchvision.models as tv

    net = tv.efficientnet_v2_s(weights=None, num_classes=classes)
    make_recomputable(net, (tv.efficientnet.MBConv, tv.efficientnet.FusedMBConv))
    mean = std = note = None
    if pretrained:
        weights = tv.EfficientNet_V2_S_Weights.IMAGENET1K_V1
        state, problem = _download(weights)
        if state is None:
            note = f"ImageNet weights are not available ({problem}): efficientnetv2 starts from scratch"
        else:
            own = {k: v for k, v in net.state_dict().items() if k.startswith("classifier.")}
            net.load_state_dict(state | own)
            preset = weights.transforms()
            mean, std = tuple(preset.mean), tuple(preset.std)
            note = "efficientnetv2 starts from torchvision's ImageNet-1k weights (the paper's: ImageNet-21k)"
    model = Enlarged(net, EFFICIENTNET_SIZE)
    model.spec = Spec("efficientnetv2", classes, EFFICIENTNET_SIZE, mean, std, note, mean is not None)
    return model


def _download(weights: Any) -> tuple[dict[str, Tensor] | None, str | None]:
    """The state dict of a torchvision weights entry, or None and the reason. Prints at most a progress bar."""
    try:
        with _short_timeout(), contextlib.redirect_stdout(io.StringIO()):
            return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True), None
    except (OSError, HTTPException, RuntimeError, EOFError, UnpicklingError) as error:
        return None, _first_line(error)


@contextlib.contextmanager
def _short_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def build_timm(name: str, classes: int, pretrained: bool) -> nn.Module:
    """`timm/NAME` behind an enlargement to its own input size, with its own normalisation."""
    if pretrained and not _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        os.environ["HF_HUB_OFFLINE"] = "1"  # timm reads it at import, and uses its cache without a minute of retries
    try:
        import timm
        import timm.data
    except ImportError:
        raise UsageError(f"model '{name}' needs timm, which is not installed: pip install 'ghostcli[timm]'") from None
    arch = name.removeprefix("timm/")
    if not timm.is_model(arch):
        raise UsageError(f"model '{name}' is unknown to timm{nearest(arch, timm.list_models())}")
    note = None
    try:
        with _short_timeout(), contextlib.redirect_stdout(io.StringIO()):
            net = timm.create_model(arch, pretrained=pretrained, num_classes=classes)
    except Exception as error:  # its hub client raises many types without a network
        if not pretrained:
            raise
        net = timm.create_model(arch, pretrained=False, num_classes=classes)
        note = f"the weights of {name} are not available ({_first_line(error)}): it starts from scratch"
    config = timm.data.resolve_model_data_config(net)
    size = config["input_size"][-1]
    model = Enlarged(net, size)
    model.spec = Spec(
        name, classes, size, tuple(config["mean"]), tuple(config["std"]), note, pretrained and note is None
    )
    return model


def _answers(url: str) -> bool:
    try:
        urlopen(Request(url, method="HEAD"), timeout=DOWNLOAD_TIMEOUT).close()
    except HTTPError:
        return True
    except (OSError, HTTPException, ValueError):  # ValueError: it is no address
        return False
    return True


def _first_line(error: Exception) -> str:
    reason = str(getattr(error, "reason", None) or error)
    return reason.splitlines()[0] if reason else type(error).__name__
