"""Takes a sample of the teaching, as a training step would get it.

Invariant: nothing is changed. Order, views and teacher logits of epoch 0 come from the training loop's own functions,
its Cropper and its TeacherLogits, so their faults are in the sample. The reference is the logits of the bare networks,
in eval mode, for the student's own pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ghostcli import signals, zoo
from ghostcli.data import Data, Images
from ghostcli.data.batches import Cropper
from ghostcli.distill.teacher import Teacher, TeacherLogits
from ghostcli.engine import train
from ghostcli.plan import Job
from ghostcli.zoo import evaluate
from ghostcli.zoo.teachers import bare

#: Images in a sample: enough to measure an accuracy to about 2 points. At most an eighth of an epoch, so the check is
#: short compared with the run, and at least LEAST.
SAMPLE, LEAST = 512, 64
#: Maximum multiply-accumulates of a check on a CPU: about 20 s on two cores. It reduces the sample for teachers as
#: large as InceptionV3 (not for ResNets), by the same amount on every CPU.
CPU_MACS = 1e12
#: Forward passes of a teacher per image: one as in a step, one for the reference, one for a test image.
PASSES = 3
#: Batch size of the reference. It is small, because networks that enlarge images need much memory.
BATCH = 64
_COUNTED: dict[tuple[str | int, ...], int] = {}


@dataclass(frozen=True)
class Sample:
    """Images of epoch 0, evenly spread over its order, and the teachers' logits for them.

    `logits`: as a step gets them. `reference`: of the bare networks for `pixels` (in a blind run: for the other image
    of the class). Both are float32 [T, B, C] on the CPU, because some devices have no float64. For each teacher:
    `sides` are the image sizes that its network got (after its own enlargement), `moved` is whether one of its buffers
    changed. `others`: share of images with the teachers' logits of another image of their class.
    """

    pixels: Tensor  # uint8 [B, H, W, 3]
    labels: Tensor  # int64 [B]
    logits: Tensor
    reference: Tensor
    sides: tuple[frozenset[int], ...]
    moved: tuple[bool, ...]
    others: float = 0.0


def sample_size(images: int, macs: float, device: torch.device) -> int:
    """The size of a sample of `images`, for teachers with `macs` multiply-accumulates per image in total."""
    size = min(SAMPLE, images // 8)
    if device.type == "cpu":
        size = min(size, int(CPU_MACS / (PASSES * macs)))
    return min(images, max(LEAST, size))


def _macs(teacher: Teacher, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of a teacher for one image; counted once for each kind of network."""
    key = teacher.name, *shape
    if key not in _COUNTED:
        _COUNTED[key] = zoo.count_macs(teacher.model, shape)
    return _COUNTED[key]


def look(job: Job, data: Data, teachers: Sequence[Teacher], device: torch.device) -> Sample:
    """Sample the first epoch of `job`, with the logits of its `teachers`."""
    recipe, images = job.recipe, data.train.to(device)
    count, shape = len(images), (3, *images.pixels.shape[1:3])
    size = sample_size(count, sum(_macs(teacher, shape) for teacher in teachers), device)
    index = train.order(count, job.seed, 0, job.shuffled)[torch.arange(size) * count // size].to(device)
    views = train.views(count, job.seed, 0, recipe.augment).to(device)
    cropper = Cropper(images, recipe.augment)
    teacher_logits = TeacherLogits(teachers, recipe, replace(data, train=images), cropper, seed=job.seed)
    teacher_logits.draw(0, views)
    pixels = cropper.crop(index, views[index], job.seed, 0)
    shown_index = teacher_logits.shown(index)

    before = [{name: buffer.clone() for name, buffer in teacher.model.named_buffers()} for teacher in teachers]
    sides: list[set[int]] = [set() for _ in teachers]
    handles = [_watch(teacher.model, side) for teacher, side in zip(teachers, sides, strict=True)]
    parts = []
    for some, crops in zip(index.split(BATCH), pixels.split(BATCH), strict=True):
        signals.raise_if_received()
        parts.append(
            _from_tables(teacher_logits, teacher_logits.shown(some))
            if teacher_logits.tables
            else teacher_logits.of_batch(some, crops)[0]
        )
    for handle in handles:
        handle.remove()
    moved = tuple(
        any(not torch.equal(buffer, was[name]) for name, buffer in teacher.model.named_buffers())
        for teacher, was in zip(teachers, before, strict=True)
    )
    seen_by_teachers = Images(cropper.crop(shown_index, views[shown_index], job.seed, 0), images.labels[shown_index])
    reference = torch.stack([answers(teacher, seen_by_teachers) for teacher in teachers])
    logits = evaluate.compact(torch.cat(parts, 1)).float().cpu()
    others = ((shown_index != index) & (images.labels[shown_index] == images.labels[index])).double().mean().item()
    labels = images.labels[index].cpu()
    return Sample(pixels.cpu(), labels, logits, reference, tuple(map(frozenset, sides)), moved, others)


def answers(teacher: Teacher, images: Images) -> Tensor:
    """Logits [B, C] of the bare network in eval mode, on the CPU: rounded to float16 as in tables, then float32."""
    return evaluate.compact(evaluate.logits(teacher.model, images, teacher.norm, BATCH)).float().cpu()


def _watch(model: nn.Module, sides: set[int]) -> torch.utils.hooks.RemovableHandle:
    return bare(model).register_forward_pre_hook(lambda _, args: sides.add(args[0].shape[-1]))


def _from_tables(teacher_logits: TeacherLogits, index: Tensor) -> Tensor:
    """float32 [T, B, C]: the tables' entries. Missing entries are computed, but not stored."""
    views = teacher_logits.views[index]
    numbers, places = index.cpu().numpy(), views.cpu().numpy()
    rows = []
    for teacher, table in zip(teacher_logits.teachers, teacher_logits.tables, strict=True):
        entries = torch.from_numpy(table.logits[numbers, places]).float()
        missing = torch.from_numpy(np.flatnonzero(table.filled[numbers, places] == 0))
        if len(missing):
            here, compute = missing.to(index.device), teacher_logits.logits_of_views(teacher)
            entries[missing] = evaluate.compact(compute(index[here], views[here])).float().cpu()
        rows.append(entries.to(index.device))
    return torch.stack(rows)
