"""The teaching check: what a student is about to be taught, judged before its first step.

Invariant: each fault that can be looked for has one finding, found or not, with the figure it was judged by.

What no check of one run can see: a schedule that steps too often, an epoch chosen on the test set, a single seed, a
baseline trained under another protocol, swapped rows, a teacher that was trained on the test images. Those are the
comparison's to guard (report/).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ghostcli.check.sample import Sample, answers, look
from ghostcli.data import Data
from ghostcli.distill import losses
from ghostcli.distill.teacher import Teacher
from ghostcli.engine import train as loop
from ghostcli.plan import Job
from ghostcli.recipe.models import Recipe
from ghostcli.records.record import RunRecord

#: Standard deviations of chance that an effect must exceed: a false alarm in some 10^6 orders, 10^3 accuracies.
ORDER_SIGMA, ACCURACY_SIGMA = 5.0, 3.0
#: Share of images that keep their place from one epoch to the next. One image does by chance.
FIXED = 0.1
#: Distance of two sets of answers to the same images, in units of how far answers to different images lie apart.
#: Other batch sizes, devices and convolution algorithms stay below 0.01; a crop moved by one pixel gave 0.15 and more.
GAP = 0.03
#: float16's relative step: what a table or predictions.npz rounds off is no distance.
HALF = 2.0**-10
#: Points of accuracy by which the view taught on may be harder than the test view (crops cost a few).
DROP = 5.0
#: Fraction of log C. Less than half of the entropy of labels smoothed by 0.1 (0.22 at ten classes), the mildest
#: customary softening: what the targets say beyond the label is then too little to learn from.
NEAR_ONE_HOT = 0.1
#: Correlation of two teachers' centred logits. Seeds of one small network gave 0.95 to 0.97.
ALIKE = 0.995
#: Deviations by which a normalisation may differ from the data's where no record tells what the teacher learnt with.
NORM_OFF = 0.25


@dataclass(frozen=True)
class Finding:
    """One fault that was looked for: `code` names it, `level` says whether it was found, `figure` what was measured."""

    code: str
    level: Literal["ok", "info", "warn"]
    message: str
    figure: float | None = None

    def as_dict(self) -> dict[str, Any]:
        figure = self.figure if self.figure is not None and math.isfinite(self.figure) else None
        return asdict(self) | {"figure": None if figure is None else round(figure, 6)}


def ok(code: str, message: str, figure: float | None = None) -> Finding:
    return Finding(code, "ok", message, figure)


def warn(code: str, message: str, figure: float | None = None) -> Finding:
    return Finding(code, "warn", message, figure)


def inspect(job: Job, data: Data, teachers: list[Teacher], device: torch.device) -> list[Finding]:
    """A finding for each fault that can be looked for, in a fixed order; the shuffling alone where nobody teaches."""
    findings = [shuffling(job, data.train.labels.cpu())]
    if not teachers:
        return findings
    mode = modes(teachers)  # before anybody is asked
    seen = look(job, data, teachers, device)
    if job.recipe.distill.blind:
        findings.append(blind(seen))
    findings += [
        own_view(teachers, seen),
        own_size(teachers, seen),
        *mode,
        untouched(teachers, seen),
        as_recorded(teachers, data, len(seen.labels), device),
        accuracy(teachers, seen),
        above_chance(teachers, seen),
    ]
    if getattr(job.recipe.distill, "kd_weight", 1.0) > 0:
        findings.append(softness(seen, job.recipe))
    if len(teachers) > 1:
        findings.append(agreement(teachers, seen))
    return findings


def shuffling(job: Job, labels: Tensor) -> Finding:
    """Is the stream in the file's order, in the same order every epoch, or in runs of a class? `labels` [N]."""
    count = len(labels)
    if count < 8:
        return ok("unshuffled", f"{count} images are too few to tell an order from chance")
    first, second = (loop.order(count, job.seed, epoch, job.shuffled).cpu() for epoch in (0, 1))
    rho = losses.correlation(first.double(), torch.arange(count, dtype=torch.float64)).item()
    fixed = (first == second).double().mean().item()
    excess, sigma = _label_runs(labels[first])
    signs = []
    if abs(rho) > min(0.99, ORDER_SIGMA / math.sqrt(count - 1)):
        signs.append(f"correlation with the file's order {rho:.2f}")
    if fixed > FIXED + ORDER_SIGMA / count:
        signs.append(f"{fixed:.0%} of the images keep their place in the next epoch")
    if excess > ORDER_SIGMA * sigma:
        signs.append(f"neighbours share a class {100 * excess:.1f} points more often than by chance")
    if not signs:
        return ok("unshuffled", f"shuffled anew each epoch (correlation with the file's order {rho:+.3f})", rho)
    if not job.recipe.data.shuffle:
        change = "set -s data.shuffle=true"
    elif not job.shuffled:
        change = "set -s distill.shuffle=true"
    else:
        change = "the recipe asks for shuffling, so the order itself is at fault: mend what draws it"
    message = (
        f"the training images are not shuffled ({', '.join(signs)}): each epoch brings the same neighbours, and a "
        f"difference to a shuffled baseline is not the teaching's; {change}"
    )
    return warn("unshuffled", message, rho)


def _label_runs(labels: Tensor) -> tuple[float, float]:
    """By how much neighbours share a class more often than under shuffling, and that share's standard deviation."""
    count = len(labels)
    sizes = torch.bincount(labels).double()
    expected = (sizes * (sizes - 1)).sum().item() / (count * (count - 1))
    share = (labels[1:] == labels[:-1]).double().mean().item()
    return share - expected, math.sqrt(expected * (1 - expected) / (count - 1))


def blind(seen: Sample) -> Finding:
    """The run is a control. Figure: the share of images taught by another image of their class."""
    message = (
        f"this is a control (distill.blind=true): {seen.others:.0%} of the images get the teachers' logits for another "
        "image of their class, so the teachers tell nothing of an image beyond its label"
    )
    return Finding("blind-teacher", "info", message, seen.others)


def own_view(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Are the logits that the step gets those of the teachers for the student's own view?"""
    gaps = [distance(logits, reference) for logits, reference in zip(seen.logits, seen.reference, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    if gaps[worst] <= GAP:
        message = f"teacher logits are those of the student's own view (within {gaps[worst]:.3f} of their spread)"
        return ok("other-view", message, gaps[worst])
    who = _names(teacher for teacher, gap in zip(teachers, gaps, strict=True) if gap > GAP)
    other = 100 * (seen.logits[worst].argmax(1) != seen.reference[worst].argmax(1)).double().mean().item()
    message = (
        f"{who}: the logits that the student gets are not this teacher's for the student's view ({other:.0f} % other "
        f"top-1 classes, logits {gaps[worst]:.2f} of their spread apart); set -s distill.view=student, or delete the "
        "teacher's table (teacher-table/ in its run) where that is set already"
    )
    return warn("other-view", message, gaps[worst])


def own_size(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Does a network that works at a size of its own get its images at that size?"""
    for teacher, sides in zip(teachers, seen.sides, strict=True):
        size = _spec(teacher, "input_size")
        if size is not None and sides - {size}:
            side = min(sides - {size})
            message = (
                f"{teacher.name}: is given images of {side} pixels and works at {size}: it never learnt such pictures; "
                "let it enlarge the student's view itself, -s distill.view=student"
            )
            return warn("other-size", message, float(side))
    return ok("other-size", "teachers get images of the size they work at")


def modes(teachers: Sequence[Teacher]) -> list[Finding]:
    """Eval mode in every layer, and no parameter that asks for gradients."""
    found = []
    layers = [sum(module.training for module in teacher.model.modules()) for teacher in teachers]
    if any(layers):
        message = (
            f"{_names(_where(teachers, layers))}: {sum(layers)} layers are in training mode: batch norm answers by its "
            "batch, dropout at random, so the targets are not the teacher's; call .eval() on it"
        )
        found.append(warn("train-mode", message, float(sum(layers))))
    else:
        found.append(ok("train-mode", "every layer of the teachers is in eval mode", 0.0))
    asking = [sum(parameter.requires_grad for parameter in teacher.model.parameters()) for teacher in teachers]
    if any(asking):
        message = (
            f"{_names(_where(teachers, asking))}: {sum(asking)} parameters ask for gradients: time and memory go into "
            "a network that must not change; call .requires_grad_(False) on it"
        )
        found.append(warn("teacher-gradients", message, float(sum(asking))))
    else:
        found.append(ok("teacher-gradients", "no parameter of the teachers asks for gradients", 0.0))
    return found


def untouched(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Are batch-norm statistics (all buffers) the same after asking as before?"""
    if not any(seen.moved):
        return ok("teacher-changes", "asking leaves the teachers' statistics as they were", 0.0)
    message = (
        f"{_names(_where(teachers, seen.moved))}: its batch-norm statistics change as it is asked: every step is "
        "taught by another teacher; call .eval() on it"
    )
    return warn("teacher-changes", message, float(sum(seen.moved)))


def as_recorded(teachers: Sequence[Teacher], data: Data, size: int, device: torch.device) -> Finding:
    """Does each teacher answer about its own test images as its record says it did?

    It does so only with the weights, normalisation and input size of its training. Where the record is of other
    test images, its normalisation is held against its network's own, or the data's.
    """
    worst, off = 0.0, []
    for teacher in teachers:
        known = _recorded_answers(teacher, data, size)
        if known is None:
            far = _norm_distance(teacher, data)
            if far > NORM_OFF:
                off.append(f"{teacher.name} (normalises {far:.2f} deviations unlike {data.name})")
        else:
            gap = distance(answers(teacher, data.test[: len(known)].to(device)), known)
            worst = max(worst, gap)
            if gap > GAP:
                off.append(f"{teacher.name} (logits {gap:.2f} of their spread away)")
    if not off:
        return ok("unlike-record", f"teachers answer about test images as recorded (within {worst:.3f})", worst)
    message = (
        f"{', '.join(off)}: does not answer as its record says, so its mean and std, its input size or its weights are "
        "not those it was trained with; load it from its run, or train it again"
    )
    return warn("unlike-record", message, worst or None)


def _recorded_answers(teacher: Teacher, data: Data, size: int) -> Tensor | None:
    """float32 [n <= size, C] from the teacher's predictions.npz; None unless it is of these very labels."""
    found = RunRecord(teacher.run, teacher.id).predictions()
    if found is None or found[0].shape != (len(found[1]), len(data.classes)):
        return None
    logits, labels = found
    n = min(size, len(labels), len(data.test))
    same = n > 0 and np.array_equal(labels[:n], data.test.labels[:n].cpu().numpy())
    return torch.from_numpy(logits[:n]).float() if same else None


def _norm_distance(teacher: Teacher, data: Data) -> float:
    """How far the teacher's (mean, std) are from its network's own or else the data's, in deviations."""
    means, stds = _spec(teacher, "mean") or data.mean, _spec(teacher, "std") or data.std
    shifts = [abs(mine - its) / std for mine, its, std in zip(teacher.norm[0], means, stds, strict=True)]
    scales = [abs(mine / std - 1) for mine, std in zip(teacher.norm[1], stds, strict=True)]
    return max(*shifts, *scales)


def accuracy(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Is each teacher's accuracy on the taught view near that on its test view? Figure: percent, the lowest."""
    count = len(seen.labels)
    every, below = [], []
    for teacher, logits in zip(teachers, seen.logits, strict=True):
        here = 100 * (logits.argmax(1) == seen.labels).double().mean().item()
        result = RunRecord(teacher.run, teacher.id).result
        images = result.test_images if result else 0
        if not result or not images:
            every.append((here, f"{teacher.name} {here:.1f} %"))
            continue
        there = result.accuracy.selected
        every.append((here, f"{teacher.name} {here:.1f} % (on its test view {there:.1f})"))
        rate = (here * count + there * images) / (count + images) / 100
        noise = 100 * math.sqrt(rate * (1 - rate) * (1 / count + 1 / images))
        if there - here > DROP + ACCURACY_SIGMA * noise:
            below.append(every[-1])
    figure, said = min(below or every)[0], ", ".join(text for _, text in below or every)
    if not below:
        return ok("teacher-accuracy", f"accuracy on the taught view: {said}", figure)
    message = (
        f"accuracy on the taught view: {said}: these images are unlike those it was trained on, and its errors are "
        "taught; look at distill.view, at augment and at the teacher's normalisation"
    )
    return warn("teacher-accuracy", message, figure)


def above_chance(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Is each teacher's accuracy above that of the majority class? Figure: percent, the lowest."""
    right = [100 * (logits.argmax(1) == seen.labels).double().mean().item() for logits in seen.logits]
    luck, low = 100 * _chance(seen.labels), min(right)
    chance = f"chance ({luck:.1f} %, majority class + {ACCURACY_SIGMA:.0f} sigma on {len(seen.labels)} images)"
    if low > luck:
        return ok("no-better-than-chance", f"teacher accuracy {low:.1f} % or more is above {chance}", low)
    idle = _names(_where(teachers, [share <= luck for share in right]))
    message = f"{idle}: teacher accuracy {low:.1f} % is not above {chance}; train it longer"
    return warn("no-better-than-chance", message, low)


def softness(seen: Sample, recipe: Recipe) -> Finding:
    """Mean entropy of the student's soft targets at the recipe's temperature. Figure: as a fraction of log C."""
    distill = recipe.distill
    if distill.dense:
        combined = [*seen.logits]
    else:
        combined = [losses.combine(seen.logits, distill.combine, distill.temperature)]
    targets = [losses.standardize(target) if distill.standardize else target for target in combined]
    nats = sum(losses.entropy(target, distill.temperature).item() for target in targets) / len(targets)
    share = nats / math.log(seen.logits.shape[-1])
    smoothing = losses.matched_smoothing(nats, seen.logits.shape[-1])
    said = (
        f"soft targets at T = {distill.temperature:g} have {nats:.3f} nats, {100 * share:.1f} % of log C, "
        f"as labels smoothed by {smoothing:.3f}"
    )
    if not share < NEAR_ONE_HOT:
        return ok("near-one-hot", said, share)
    right = max((target.argmax(1) == seen.labels).double().mean().item() for target in combined)
    if right <= _chance(seen.labels):
        return ok("near-one-hot", f"{said}, of teachers that are right no more often than by chance", share)
    message = (
        f"{said}: near one-hot, they say little that the labels do not; raise distill.temperature (4 is customary) and "
        "lower distill.alpha, or stop the teachers earlier (distill.teacher_epochs)"
    )
    return warn("near-one-hot", message, share)


def _chance(labels: Tensor) -> float:
    """How often the best constant answer is right, and what luck adds to that on so few images."""
    share = torch.bincount(labels).double().max().item() / len(labels)
    return share + ACCURACY_SIGMA * math.sqrt(share * (1 - share) / len(labels))


def agreement(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Do several teachers say several things? Figure: the highest correlation of two teachers' centred logits."""
    first = seen.logits.argmax(-1)
    pairs = list(combinations(range(len(teachers)), 2))
    same = sum((first[i] == first[j]).double().mean().item() for i, j in pairs) / len(pairs)
    centred = seen.logits.double()
    centred = centred - centred.mean(1, keepdim=True)  # a leaning towards a class is no answer to an image
    alike = [losses.correlation(centred[i].flatten(), centred[j].flatten()).item() for i, j in pairs]
    most = max(range(len(pairs)), key=alike.__getitem__)
    if alike[most] <= ALIKE:
        said = f"teachers agree on {100 * same:.1f} % of first choices; their logits correlate up to {alike[most]:.3f}"
        return ok("alike-teachers", said, alike[most])
    i, j = pairs[most]
    message = (
        f"{teachers[i].name} and {teachers[j].name} answer alike (logits correlate {alike[most]:.4f}): together they "
        "teach no more than one of them, at twice the cost; name another network, or another seed's run"
    )
    return warn("alike-teachers", message, alike[most])


def distance(answers: Tensor, truth: Tensor) -> float:
    """Mean absolute difference of logits [B, C] beyond float16's rounding, over the deviation between images."""
    spread = truth.double().std(0, correction=0).mean().item()
    beyond = ((answers - truth).abs() - HALF * truth.abs()).clamp_min(0).double().mean().item()
    return beyond / max(spread, 1e-6)


def _where(teachers: Sequence[Teacher], found: Sequence[int]) -> list[Teacher]:
    return [teacher for teacher, any_found in zip(teachers, found, strict=True) if any_found]


def _names(teachers: Iterable[Teacher]) -> str:
    return ", ".join(teacher.name for teacher in teachers)


def _spec(teacher: Teacher, key: str) -> Any:
    return getattr(getattr(teacher.model, "spec", None), key, None)
