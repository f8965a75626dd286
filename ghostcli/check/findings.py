"""The teaching check: judges the teaching of a run before its first step.

Invariant: each fault that is checked has one finding, with the measured figure, whether the fault is there or not.

A check of one run cannot see: a schedule that steps too often, an epoch chosen on the test set, a single seed, a
baseline with another protocol, swapped rows, a teacher that was trained on the test images. The comparison of runs
guards against most of these (comparison/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghostcli.check.sample import Sample, answers, look
from ghostcli.data import Data
from ghostcli.distill import losses
from ghostcli.distill.teacher import Teacher
from ghostcli.engine import train
from ghostcli.plan import Job
from ghostcli.recipe.models import Recipe
from ghostcli.records import trained
from ghostcli.records.model import Finding
from ghostcli.records.record import RunRecord

#: An effect must exceed this many standard deviations: one false alarm in about 10^6 orders, 10^3 accuracies.
ORDER_SIGMA, ACCURACY_SIGMA = 5.0, 3.0
#: Allowed share of images that keep their place from one epoch to the next. One image does by chance.
FIXED = 0.1
#: Allowed distance of two sets of logits for the same images, relative to the spread of logits between images. Other
#: batch sizes, devices and convolution algorithms stay below 0.01. A crop moved by one pixel gave at least 0.15.
GAP = 0.03
#: The relative rounding step of float16. Differences below it do not count, because tables and predictions are float16.
HALF = 2.0**-10
#: Allowed loss of accuracy, in points, from the test view to the taught view (crops cost a few points).
DROP = 5.0
#: Entropy as a fraction of log C. It is less than half of the entropy of labels smoothed by 0.1 (0.22 for ten classes).
#: Softer targets than this are usual; with less there is too little to learn beyond the label.
NEAR_ONE_HOT = 0.1
#: Correlation of two teachers' centred logits. Two seeds of one small network gave 0.95 to 0.97.
ALIKE = 0.995
#: Allowed difference, in standard deviations, of a teacher's normalisation from the data's, if its record has none.
NORM_OFF = 0.25


def finding(code: str, message: str, figure: float | None = None, *, level: str) -> Finding:
    """The result for one fault. `level`: ok, info or warn. The figure is rounded; None if it is not finite."""
    figure = None if figure is None or not math.isfinite(figure) else round(figure, 6)
    return Finding(code=code, level=level, message=message, figure=figure)


ok, warn = partial(finding, level="ok"), partial(finding, level="warn")


def inspect(job: Job, data: Data, teachers: list[Teacher], device: torch.device) -> list[Finding]:
    """One finding per fault, in a fixed order. Without teachers: only that of the shuffling."""
    findings = [shuffling(job, data.train.labels.cpu())]
    if not teachers:
        return findings
    mode = modes(teachers)  # before any forward pass
    seen = look(job, data, teachers, device)
    if job.recipe.distill.blind:
        findings.append(blind(seen))
    findings += [
        own_view(teachers, seen),
        own_size(teachers, seen),
        *mode,
        untouched(teachers, seen),
        as_recorded(teachers, data, len(seen.labels), device),
        own_classes(teachers, data),
        accuracy(teachers, seen, data),
        above_chance(teachers, seen),
    ]
    if getattr(job.recipe.distill, "kd_weight", 1.0) > 0:
        findings.append(softness(seen, job.recipe))
    if getattr(job.recipe.distill, "warmup_epochs", 0):
        findings.append(warm_up(job.recipe))
    if len(teachers) > 1:
        findings.append(agreement(teachers, seen))
    return findings


def warm_up(recipe: Recipe) -> Finding:
    """Checks whether the teacher's term has its whole weight for at least half of the training."""
    warming, epochs = recipe.distill.warmup_epochs, recipe.train.last_epoch
    said = f"the teacher's term grows to its whole weight over {warming} of {epochs} epochs"
    if 2 * warming <= epochs:
        return ok("long-warm-up", said, warming)
    return warn("long-warm-up", f"{said}; set -s distill.warmup_epochs={epochs // 10}", warming)


def shuffling(job: Job, labels: Tensor) -> Finding:
    """Checks the order of images: is it the file's, the same every epoch, or sorted by class? `labels` [N]."""
    count = len(labels)
    if count < 8:
        return ok("unshuffled", f"{count} images are too few to distinguish an order from chance")
    first, second = (train.order(count, job.seed, epoch, job.shuffled).cpu() for epoch in (0, 1))
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
        return ok("unshuffled", f"shuffled again each epoch (correlation with the file's order {rho:+.3f})", rho)
    if not job.recipe.data.shuffle:
        change = "set -s data.shuffle=true"
    elif not job.shuffled:
        change = "set -s distill.shuffle=true"
    else:
        change = "the recipe requests shuffling, so this is a fault in the code that draws the order"
    message = (
        f"the training images are not shuffled ({', '.join(signs)}), so a difference from a shuffled baseline may not "
        f"come from the teaching; {change}"
    )
    return warn("unshuffled", message, rho)


def _label_runs(labels: Tensor) -> tuple[float, float]:
    """The share of neighbours of one class minus its expectation under shuffling, and its standard deviation."""
    count = len(labels)
    sizes = torch.bincount(labels).double()
    expected = (sizes * (sizes - 1)).sum().item() / (count * (count - 1))
    share = (labels[1:] == labels[:-1]).double().mean().item()
    return share - expected, math.sqrt(expected * (1 - expected) / (count - 1))


def blind(seen: Sample) -> Finding:
    """The run is a control. Figure: the share of images with the teachers' logits of another image of their class."""
    message = (
        f"this is a control (distill.blind=true): {seen.others:.0%} of the images get the teachers' logits for another "
        "image of their class, so the teachers give no information about an image beyond its label"
    )
    return finding("blind-teacher", message, seen.others, level="info")


def own_view(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Checks that a step gets the teachers' logits for the student's own view."""
    gaps = [distance(logits, reference) for logits, reference in zip(seen.logits, seen.reference, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    if gaps[worst] <= GAP:
        message = f"teacher logits are for the student's own view (within {gaps[worst]:.3f} of their spread)"
        return ok("other-view", message, gaps[worst])
    who = _names(teachers, [gap > GAP for gap in gaps])
    other = 100 - _percent_right(seen.logits[worst], seen.reference[worst].argmax(1))
    message = (
        f"{who}: the student does not get this teacher's logits for its own view ({other:.0f} % other top-1 classes, "
        f"logits differ by {gaps[worst]:.2f} of their spread); set -s distill.view=student. If it is set, delete the "
        "teacher's table (teacher-table/ in its run)"
    )
    return warn("other-view", message, gaps[worst])


def own_size(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Checks that a network with a fixed input size gets images of that size."""
    for teacher, sides in zip(teachers, seen.sides, strict=True):
        size = _spec(teacher, "input_size")
        if size is not None and sides - {size}:
            side = min(sides - {size})
            message = (
                f"{teacher.name}: gets images of {side} pixels, but was trained at {size}; set "
                "-s distill.view=student, so it enlarges the student's view itself"
            )
            return warn("other-size", message, float(side))
    return ok("other-size", "teachers get images of their input size")


def modes(teachers: Sequence[Teacher]) -> list[Finding]:
    """Checks that every layer is in eval mode and no parameter requires gradients."""
    layers = [sum(module.training for module in teacher.model.modules()) for teacher in teachers]
    trainable = [sum(parameter.requires_grad for parameter in teacher.model.parameters()) for teacher in teachers]
    wrong = "layers are in train mode, so batch norm depends on the batch and dropout is random; call .eval() on it"
    costly = "parameters require gradients, which costs time and memory; call .requires_grad_(False) on it"
    return [
        _none("train-mode", teachers, layers, wrong, "every layer of the teachers is in eval mode"),
        _none("teacher-gradients", teachers, trainable, costly, "no parameter of the teachers requires gradients"),
    ]


def _none(code: str, teachers: Sequence[Teacher], counts: Sequence[int], wrong: str, right: str) -> Finding:
    """A finding on what no teacher should have. `counts`: how many each has."""
    if not any(counts):
        return ok(code, right, 0.0)
    return warn(code, f"{_names(teachers, counts)}: {sum(counts)} {wrong}", float(sum(counts)))


def untouched(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Checks that forward passes do not change the teachers' batch-norm statistics (all buffers)."""
    if not any(seen.moved):
        return ok("teacher-changes", "forward passes do not change the teachers' statistics", 0.0)
    message = (
        f"{_names(teachers, seen.moved)}: its batch-norm statistics change with each forward pass, so the "
        "teacher changes during the training; call .eval() on it"
    )
    return warn("teacher-changes", message, float(sum(seen.moved)))


def as_recorded(teachers: Sequence[Teacher], data: Data, size: int, device: torch.device) -> Finding:
    """Checks that each teacher's logits for its test images are the recorded ones.

    They are only if weights, normalisation and input size are those of its training. If the record has other test
    images, the teacher's normalisation is compared with that of its network or of the data.
    """
    worst, off = 0.0, []
    for teacher in teachers:
        known = _recorded_answers(teacher, data, size)
        if known is None:
            far = _norm_distance(teacher, data)
            if far > NORM_OFF:
                off.append(f"{teacher.name} (its normalisation differs from {data.name}'s by {far:.2f} deviations)")
        else:
            gap = distance(answers(teacher, data.test[: len(known)].to(device)), known)
            worst = max(worst, gap)
            if gap > GAP:
                off.append(f"{teacher.name} (logits differ by {gap:.2f} of their spread)")
    if not off:
        return ok("unlike-record", f"teacher logits for test images are as recorded (within {worst:.3f})", worst)
    message = (
        f"{', '.join(off)}: its logits are not the recorded ones, so its mean and std, input size or weights are not "
        "those of its training; load it from its run, or train it again"
    )
    return warn("unlike-record", message, worst or None)


def own_classes(teachers: Sequence[Teacher], data: Data) -> Finding:
    """Checks that each teacher was trained on the classes of the data."""
    for teacher in teachers:
        result = _record(teacher).result
        theirs = result.class_names if result else ()
        if theirs and theirs != data.classes:
            mine, other = (", ".join(names[:4]) + ", ..." * (len(names) > 4) for names in (data.classes, theirs))
            message = (
                f"{teacher.name}: was trained on other classes ({other}) than those of the data ({mine}), so its "
                "answers mean something else; name a teacher that was trained on these classes"
            )
            return warn("other-classes", message)
    return ok("other-classes", "teachers were trained on the classes of the data")


def _recorded_answers(teacher: Teacher, data: Data, size: int) -> Tensor | None:
    """float32 [n <= size, C] from the teacher's predictions.npz; None if it has other labels."""
    predictions = _record(teacher).predictions()
    if predictions is None or predictions[0].shape != (len(predictions[1]), len(data.classes)):
        return None
    logits, labels = predictions
    n = min(size, len(labels), len(data.test))
    same = n > 0 and np.array_equal(labels[:n], data.test.labels[:n].cpu().numpy())
    result = _record(teacher).result
    if same and result and result.test and result.test.pixels and len(labels) == len(data.test):
        same = result.test.pixels == data.test.checksum
    elif same and result:
        same = result.data == data.name
    return torch.from_numpy(logits[:n].astype(np.float32)) if same else None


def _norm_distance(teacher: Teacher, data: Data) -> float:
    """Difference of the teacher's (mean, std) from its network's own, or else the data's, in standard deviations."""
    means, stds = _spec(teacher, "mean") or data.mean, _spec(teacher, "std") or data.std
    shifts = [abs(mine - its) / std for mine, its, std in zip(teacher.norm[0], means, stds, strict=True)]
    scales = [abs(mine / std - 1) for mine, std in zip(teacher.norm[1], stds, strict=True)]
    return max(*shifts, *scales)


def accuracy(teachers: Sequence[Teacher], seen: Sample, data: Data) -> Finding:
    """Checks that each teacher's accuracy on the taught view is near its test accuracy. Figure: the lowest, percent.

    It is only expected for a teacher that was trained on the same images.
    """
    count = len(seen.labels)
    every, below = [], []
    for teacher, logits in zip(teachers, seen.logits, strict=True):
        here = _percent_right(logits, seen.labels)
        result = _record(teacher).result
        images = result.test_images if result and result.data_checksum == data.checksum else 0
        if not result or not images:
            every.append((here, f"{teacher.name} {here:.1f} %"))
            continue
        there = result.accuracy.selected
        every.append((here, f"{teacher.name} {here:.1f} % (on its test view {there:.1f})"))
        rate = (here * count + there * images) / (count + images) / 100
        noise = 100 * math.sqrt(rate * (1 - rate) * (1 / count + 1 / images))
        if there - here > DROP + ACCURACY_SIGMA * noise:
            below.append(every[-1])
    figure, listing = min(below or every)[0], ", ".join(text for _, text in below or every)
    if not below:
        return ok("teacher-accuracy", f"accuracy on the taught view: {listing}", figure)
    message = (
        f"accuracy on the taught view: {listing}: these images differ from its training images, so it teaches errors; "
        "check distill.view, augment and the teacher's normalisation"
    )
    return warn("teacher-accuracy", message, figure)


def above_chance(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Checks that each teacher's accuracy is above that of the majority class. Figure: the lowest, in percent."""
    right = [_percent_right(logits, seen.labels) for logits in seen.logits]
    most, low = _chance(seen.labels), min(right)
    chance = f"what guessing can reach on {len(seen.labels)} images ({most:.1f} %)"
    if low > most:
        return ok("no-better-than-chance", f"teacher accuracy {low:.1f} % or more is above {chance}", low)
    untrained = _names(teachers, [share <= most for share in right])
    message = f"{untrained}: teacher accuracy {low:.1f} % is not above {chance}; train it longer"
    return warn("no-better-than-chance", message, low)


def softness(seen: Sample, recipe: Recipe) -> Finding:
    """Checks the mean entropy of the soft targets at the recipe's temperature. Figure: as a fraction of log C."""
    distill = recipe.distill
    if distill.dense:
        combined = [*seen.logits]
    else:
        combined = [losses.combine(seen.logits, distill.combine, distill.temperature)]
    targets = [losses.standardize(target) if distill.standardize else target for target in combined]
    # in float32 the entropy of very soft targets may be above that of all classes alike
    nats = sum(losses.entropy(target.double(), distill.temperature).item() for target in targets) / len(targets)
    share = nats / math.log(seen.logits.shape[-1])
    smoothing = losses.matched_smoothing(nats, seen.logits.shape[-1])
    measured = (
        f"soft targets at T = {distill.temperature:g} have {nats:.3f} nats, {100 * share:.1f} % of log C, "
        f"like labels smoothed by {smoothing:.3f}"
    )
    if not share < NEAR_ONE_HOT:
        return ok("near-one-hot", measured, share)
    if max(_percent_right(target, seen.labels) for target in combined) <= _chance(seen.labels):
        return ok("near-one-hot", f"{measured}; not judged, because the teachers' accuracy is not above chance", share)
    message = (
        f"{measured}: they are near one-hot and add little to the labels; raise distill.temperature (4 is usual) and "
        "lower distill.alpha, or stop the teachers earlier (distill.teacher_epochs)"
    )
    return warn("near-one-hot", message, share)


def _percent_right(logits: Tensor, classes: Tensor) -> float:
    return 100 * (logits.argmax(1) == classes).double().mean().item()


def _chance(labels: Tensor) -> float:
    """Percent right by the majority class, plus `ACCURACY_SIGMA` standard deviations for this number of images."""
    share = torch.bincount(labels).double().max().item() / len(labels)
    return 100 * (share + ACCURACY_SIGMA * math.sqrt(share * (1 - share) / len(labels)))


def agreement(teachers: Sequence[Teacher], seen: Sample) -> Finding:
    """Checks that several teachers differ. Figure: the highest correlation of two teachers' centred logits."""
    first = seen.logits.argmax(-1)
    pairs = list(combinations(range(len(teachers)), 2))
    same = sum((first[i] == first[j]).double().mean().item() for i, j in pairs) / len(pairs)
    centred = seen.logits.double()
    centred = centred - centred.mean(1, keepdim=True)  # a constant bias towards a class does not count
    alike = [losses.correlation(centred[i].flatten(), centred[j].flatten()).item() for i, j in pairs]
    most = max(range(len(pairs)), key=alike.__getitem__)
    if alike[most] <= ALIKE:
        message = f"teachers agree on {100 * same:.1f} % of top-1 classes; correlation of their logits: at most "
        return ok("alike-teachers", f"{message}{alike[most]:.3f}", alike[most])
    i, j = pairs[most]
    message = (
        f"{teachers[i].name} and {teachers[j].name} have almost equal logits (correlation {alike[most]:.4f}), so the "
        "second adds cost and little else; name another network, or a run with another seed"
    )
    return warn("alike-teachers", message, alike[most])


def distance(answers: Tensor, truth: Tensor) -> float:
    """Mean absolute difference of logits [B, C] beyond float16 rounding, divided by their deviation between images."""
    spread = truth.double().std(0, correction=0).mean().item()
    beyond = ((answers - truth).abs() - HALF * truth.abs()).clamp_min(0).double().mean().item()
    return beyond / max(spread, 1e-6)


def _record(teacher: Teacher) -> RunRecord:
    """A network that comes with ghost has its record in the package, and only its tables among the runs."""
    shipped = teacher.id.startswith(trained.PRETRAINED)
    return trained.at(teacher.run, teacher.id) if shipped else RunRecord(teacher.run, teacher.id)


def _names(teachers: Sequence[Teacher], counts: Sequence[int]) -> str:
    """The names of the teachers for which something was found."""
    return ", ".join(teacher.name for teacher, count in zip(teachers, counts, strict=True) if count)


def _spec(teacher: Teacher, key: str) -> Any:
    return getattr(getattr(teacher.model, "spec", None), key, None)
