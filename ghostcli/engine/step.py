"""One update of a student.

Invariant: eager steps and CUDA graph replays do the same arithmetic. A step never synchronises with the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ghostcli.data import Images
from ghostcli.data.batches import Cropper, generator, normalise
from ghostcli.distill.objective import Objective
from ghostcli.distill.teacher import TeacherLogits
from ghostcli.engine import optimizers
from ghostcli.engine.device import autocast
from ghostcli.engine.schedule import averaging_decay
from ghostcli.recipe.models import Recipe
from ghostcli.zoo.evaluate import Norm
from ghostcli.zoo.stages import Tap


@dataclass
class Update:
    """The state of one update. Called with the image indices of a batch."""

    recipe: Recipe
    model: nn.Module
    ema: nn.Module | None
    objective: Objective
    optimizers: tuple[Optimizer, ...]
    images: Images
    cropper: Cropper
    teacher_logits: TeacherLogits
    norm: Norm
    seed: int

    def __post_init__(self) -> None:
        self.tap = Tap(self.model, self.images.pixels.shape[1]) if self.objective.needs_features else None
        self.device = self.images.labels.device
        self.views = torch.zeros(len(self.images), dtype=torch.long, device=self.device)
        self.toward = torch.zeros((), device=self.device)
        self.random = device_generator(self.device)
        self.batches = math.ceil(len(self.images) / self.recipe.train.batch_size)
        self.schedule = self.schedule_of(0)
        self.terms = self.schedule[0].clone()
        self.epoch = 0

    def schedule_of(self, epoch: int) -> Tensor:
        """The weights of the soft term's parts at each update of `epoch`: [batches, parts], on the device."""
        steps = range(epoch * self.batches, (epoch + 1) * self.batches)
        return torch.tensor([self.objective.schedule(self.seed, epoch, step) for step in steps], device=self.device)

    def start_epoch(self, epoch: int, views: Tensor) -> None:
        """Load the epoch's data from the host. Tensors are refilled in place, because a graph may read them."""
        self.epoch = epoch
        self.views.copy_(views)
        self.schedule = self.schedule_of(epoch)
        self.teacher_logits.start_epoch(epoch, views)

    def set_rates(self, rate: float, step: int) -> None:
        """Set the values that change per step, besides the batch. Not in `__call__`, which may be a graph."""
        optimizers.set_rate(self.optimizers, rate)
        # Dropout (e.g. in VGG13) uses the device's generator. A seed per step means that checkpoints need no state.
        self.random.manual_seed(generator(self.seed, "dropout", step).initial_seed())
        self.toward.fill_(1 - averaging_decay(step, self.recipe.train.ema))
        self.terms.copy_(self.schedule[step % self.batches])

    def __call__(self, index: Tensor) -> Tensor:
        """Train on images `index` [B]; returns (total, hard, soft, correct) [4] on the device."""
        pixels = self.cropper.crop(index, self.views[index], self.seed, self.epoch)  # uint8 [B, H, W, 3]
        labels = self.images.labels[index]  # [B]
        teacher_logits, teacher_features = self.teacher_logits.of_batch(index, pixels)  # [T, B, C]
        with autocast(self.recipe.engine, self.device):
            images = normalise(pixels, *self.norm)  # [B, 3, H, W]
            logits, features = self.tap(images) if self.tap else (self.model(images), None)  # [B, C]
        losses = self.objective(logits, labels, teacher_logits, features, teacher_features, self.terms)
        losses.total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            follow(self.ema, self.model, self.toward)
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum().float()
            return torch.stack([losses.total, losses.hard, losses.soft, correct]).detach()


def device_generator(device: torch.device) -> torch.Generator:
    """The generator of random layers on `device`."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


@torch.no_grad()
def follow(ema: nn.Module, model: nn.Module, toward: Tensor) -> None:
    """Move the average by the share `toward` (a scalar on the device) to the weights and running statistics."""
    mine = [t for t in (*ema.parameters(), *ema.buffers()) if t.is_floating_point()]
    theirs = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    gap = torch._foreach_sub(theirs, mine)
    torch._foreach_mul_(gap, toward)
    torch._foreach_add_(mine, gap)
