"""Logits and scores of images, in order. Invariant: eval mode; no randomness, no augmentation, no gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghostcli import signals
from ghostcli.data import Images
from ghostcli.data.batches import normalise

Norm = tuple[tuple[float, float, float], tuple[float, float, float]]

BATCH = {"cpu": 500, "cuda": 2500, "mps": 1000}
PIXELS = 500 * 224**2  # maximum pixels of a batch at the network's input size, because enlarged images need the memory


@torch.no_grad()
def logits(model: nn.Module, images: Images, norm: Norm, batch: int | None = None) -> Tensor:
    """float32 logits [n, classes] on the images' device. Restores the model's mode."""
    training = model.training
    model.eval()
    size = batch or batch_for(model, images)
    parts = []
    try:
        for pixels in images.pixels.split(size):
            signals.raise_if_received()
            parts.append(model(normalise(pixels, *norm)).float())
    finally:
        model.train(training)
    return torch.cat(parts)


def batch_for(model: nn.Module, images: Images) -> int:
    """Images per forward pass of `model`."""
    spec = getattr(model, "spec", None)
    side = (spec.input_size if spec else None) or images.pixels.shape[1]
    return max(1, min(BATCH[images.pixels.device.type], PIXELS // side**2))


def score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy in percent and mean cross-entropy in nats. On the CPU, because some devices have no float64."""
    logits, labels = logits.cpu(), labels.cpu()
    accuracy = (logits.argmax(1) == labels).double().mean().item() * 100
    loss = nn.functional.cross_entropy(logits.double(), labels).item()
    return {"accuracy": round(accuracy, 4), "loss": loss}


def compact(logits: Tensor) -> Tensor:
    """Logits [..., C] as float16, the stored form. The relative error is at most 2^-11.

    A row outside float16's range (from a badly trained network) is shifted to a maximum of 0. Softmax, standardisation
    and correlation do not change by a shift. Values still below the range are clamped; their probability is 0.
    """
    largest = torch.finfo(torch.float16).max
    beyond = logits.abs().amax(-1, keepdim=True) > largest
    shifted = torch.where(beyond, logits - logits.amax(-1, keepdim=True), logits)
    return shifted.clamp_min(-largest).half()
