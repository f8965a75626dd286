"""Deploy forms of Ghost networks made easier to quantise: equalised, and fine-tuned under quantisation.

Invariant: an equalised network computes the same function; a fine-tuned one is taught by the network that it came
from, on training images alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli.zoo.ghost import Bottleneck, SqueezeExcite

STRENGTH = 0.5  # of the migration from activations to weights: Xiao et al. 2023, equation 4, alpha
OUTSIDE = 3e-5  # of the values of an activation, beyond each end of its range
STEPS = 80
BATCH = 128
RATE = 5e-5
SMALLEST = 1e-5  # a channel that is always smaller is taken for this: it must not be blown up


def has_bottlenecks(program: nn.Module) -> bool:
    return any(isinstance(module, Bottleneck) for module in program.modules())


@torch.no_grad()
def equalised(program: nn.Module, images: Tensor) -> nn.Module:
    """A copy in which the channels between the two ghost modules of each bottleneck have more equal ranges.

    A channel is divided by s where it is made and multiplied by s where it is read (Nagel et al. 2019), with
    s = max|x|^a / max|w|^(1 - a) over `images` (Xiao et al. 2023, a = 0.5). ReLU, the gate, the depthwise convolution
    and the squeeze-excite let a positive factor through.
    """
    plain = copy.deepcopy(program)
    blocks = [module for module in plain.modules() if isinstance(module, Bottleneck)]
    peaks: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        peaks[module] = inputs[0].abs().amax((0, 2, 3)).double()

    handles = [block.project.register_forward_pre_hook(watch) for block in blocks]
    plain(images)
    for handle in handles:
        handle.remove()
    for block in blocks:
        _equalise(block, peaks[block.project])
    return plain


def _equalise(block: Bottleneck, peaks: Tensor) -> None:
    reader = block.project.primary.weight
    s = peaks.clamp_min(SMALLEST) ** STRENGTH
    s = s / reader.double().abs().amax((0, 2, 3)).clamp_min(SMALLEST) ** (1 - STRENGTH)
    s = (s / s.log().mean().exp()).clamp(0.05, 20.0)
    primary, cheap = block.expand.primary, block.expand.cheap
    half = primary.out_channels
    first, second = s[:half], torch.ones(half, dtype=s.dtype)
    second[: len(s) - half] = s[half:]  # a last channel that is cut off stays as it is
    _scale(primary, 1 / first)
    _scale(cheap, 1 / second, first)
    if block.depthwise is not None:
        _scale(block.depthwise, 1 / s, s)
    if isinstance(block.se, SqueezeExcite):
        _scale(block.se.reduce, None, s)
    _scale(block.project.primary, None, s)


def _scale(conv: nn.Conv2d, out: Tensor | None, read: Tensor | None = None) -> None:
    """Multiply what `conv` writes by `out` and undo `read` on what it reads, a value a channel each."""
    weight = conv.weight.double()
    if read is not None:
        weight = weight * (read.view(-1, 1, 1, 1) if conv.groups > 1 else read.view(1, -1, 1, 1))
    if out is not None:
        weight = weight * out.view(-1, 1, 1, 1)
        if conv.bias is not None:
            conv.bias.copy_(conv.bias.double() * out)
    conv.weight.copy_(weight)


def tuned(program: nn.Module, images: Callable[[int], Tensor], bits: int, say: Callable[[str], None]) -> nn.Module:
    """A copy of `program` fine-tuned while its weights and activations are rounded as an int8 file rounds them.

    `program` itself teaches it, by the KL divergence of the probabilities (Hinton et al. 2015, T = 1), on the batches
    `images(step)`, float32 [B, 3, S, S]. `bits` are those of the weights. Gradients pass the rounding unchanged
    (Bengio et al. 2013).
    """
    student = copy.deepcopy(program).requires_grad_(True)
    layers = [module for module in student.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    last = layers[-1]
    peaks: dict[tuple[nn.Module, str], tuple[float, float]] = {}
    handles = [handle for layer in layers for handle in _hooks(layer, peaks, last)]
    with torch.enable_grad():  # the layers must be called one by one, not by the kernels that are written by hand
        student(images(0).requires_grad_(True))  # learns the ranges
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    rounded = [nn.utils.parametrize.register_parametrization(layer, "weight", _Rounded(bits)) for layer in layers]
    for step in range(STEPS):
        rate = RATE * (1 - step / STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = images(step)
        with torch.no_grad():
            wanted = program(batch).log_softmax(1)
        loss = F.kl_div(student(batch).log_softmax(1), wanted, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        say(f"step {step + 1} of {STEPS}")
    for handle in handles:
        handle.remove()
    for layer in rounded:
        nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return student.requires_grad_(False)


class _Rounded(nn.Module):
    """Weights rounded to symmetric integers of `bits`, a scale an output channel."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        scale = (weight.detach().flatten(1).abs().amax(1) / self.most).clamp_min(torch.finfo(weight.dtype).tiny)
        zero = torch.zeros(len(weight), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -self.most, self.most)


def _hooks(layer: nn.Module, ranges: dict, last: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Round what a layer reads and writes to 8 bits, in the range of most values of a batch. The logits stay."""

    def rounded(x: Tensor, side: str) -> Tensor:
        key = (layer, side)
        if key not in ranges:
            low, high = np.quantile(x.detach().numpy(), [OUTSIDE, 1 - OUTSIDE])
            ranges[key] = (min(0.0, float(low)), max(0.0, float(high)))
            return x
        low, high = ranges[key]
        scale = max((high - low) / 255, 1e-8)
        return torch.fake_quantize_per_tensor_affine(x, scale, min(255, max(0, round(-low / scale))), 0, 255)

    yield layer.register_forward_pre_hook(lambda module, inputs: (rounded(inputs[0], "read"), *inputs[1:]))
    if layer is not last:
        yield layer.register_forward_hook(lambda module, inputs, out: rounded(out, "written"))
