"""Training loops that a user may choose between, each in a process of its own that waits for its turn.

Invariant: all train the same network on the same first images of CIFAR-10 with the same batch, SGD, crops by 4 pixels
and flips; a taught epoch has the same teacher. `DIFFERS` says what each does differently. `benchmarks/peers.py` starts
this file with its work in one argument, sends a line for each turn and reads a line of JSON after it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset

from ghostcli import zoo
from ghostcli.data import SETS, data_root
from ghostcli.deploy.timer import high_water
from ghostcli.engine.device import describe
from ghostcli.errors import UsageError
from ghostcli.records import trained
from ghostcli.zoo import weights

PAD, TEMPERATURE, ALPHA = 4, 4.0, 0.5
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
PLAIN, TAUGHT, AGAIN = "plain", "taught", "taught again"

Epoch = Callable[[], float]  # trains one epoch and returns its seconds

DIFFERS = {
    "ghost": "ghost.train: one convolution for each sum of branches, all images in memory as bytes, a whole batch "
    "cropped at once. Each turn is a new run of one epoch. Its seconds are those of the run's record: the steps and "
    "the teacher's answers. `call` is the whole call, with reading the data, a test and the record.",
    "torchdistill": "its training box and distillation box, a DataLoader with torchvision's transforms, every branch "
    "by itself. The teacher is asked at every step.",
    "tutorial": "a loop in plain PyTorch: a DataLoader with torchvision's transforms, every branch by itself. The "
    "teacher is asked at every step.",
    "lightly-train": "its method distillationv3: the student learns the teacher's last feature map and its mean, "
    "without labels and without logits, and images are mixed in pairs. Images are PNG files, cropped by area. It has "
    "no plain epoch of this kind. Its seconds lie between the first steps of two epochs; `call` has its start too.",
}


@dataclass(frozen=True)
class Work:
    """What everybody is given. `folder` is for what a loop writes."""

    student: str
    teacher: str
    images: int
    batch: int
    workers: int
    folder: str


def student_of(work: Work) -> nn.Module:
    """The student as an ordinary module: every branch runs."""
    torch.manual_seed(0)
    return zoo.build(work.student, branches="plain")


def teacher_of(work: Work) -> nn.Module:
    """The teacher as ghost loads it, in eval mode."""
    return weights.load(trained.find(Path(work.folder), work.teacher).weights).model.requires_grad_(False)


def pictures(work: Work, transformed: bool = True) -> Subset:
    """The first images of CIFAR-10, one by one, as tutorials read them."""
    from torchvision import datasets, transforms

    own = [transforms.RandomCrop(32, padding=PAD), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    whole = transforms.Compose([*own, transforms.Normalize(*SETS["cifar10"].statistics)])
    found = datasets.CIFAR10(str(data_root()), train=True, transform=whole if transformed else None)
    return Subset(found, range(work.images))


def loading(work: Work) -> dict[str, Any]:
    """Workers live on, so that a short epoch does not pay for starting them."""
    return {"batch_size": work.batch, "num_workers": work.workers, "persistent_workers": work.workers > 0}


def ghost(work: Work, lesson: str) -> Epoch:
    """`ghost.train`, a new run each turn. AGAIN is a second student that sees the views of the first: its rate differs,
    so its run is another one, and all answers are in the teacher's table."""
    import ghostcli

    settings = {
        "data.limit": work.images,
        "data.limit_test": 100,
        "augment.pad": PAD,
        "train.epochs": 1,
        "train.batch_size": work.batch,
        "distill.temperature": TEMPERATURE,
        "distill.alpha": ALPHA,
        "optim.lr": SGD["lr"] * (2 if lesson == AGAIN else 1),
    }
    teachers = () if lesson == PLAIN else work.teacher
    seeds = itertools.count()

    def epoch() -> float:
        runs = Path(work.folder) / "runs"
        common = {"settings": settings, "seeds": [next(seeds)], "runs": runs, "device": "cpu"}
        [run] = ghostcli.train(work.student, teachers, **common)
        return run.result.train_seconds + run.result.teacher_seconds

    return epoch


def tutorial(work: Work, lesson: str) -> Epoch:
    model, teacher = student_of(work), teacher_of(work) if lesson == TAUGHT else None
    optimizer = torch.optim.SGD(model.parameters(), nesterov=True, **SGD)
    loader = DataLoader(pictures(work), shuffle=True, **loading(work))

    def epoch() -> float:
        began = time.perf_counter()
        model.train()
        total = 0.0
        for x, y in loader:
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            if teacher is not None:
                with torch.no_grad():
                    target = F.softmax(teacher(x) / TEMPERATURE, 1)
                soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), target, reduction="batchmean")
                loss = ALPHA * loss + (1 - ALPHA) * TEMPERATURE**2 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - began

    return epoch


def torchdistill(work: Work, lesson: str) -> Epoch:
    """Its boxes, with the settings that its CIFAR-10 examples write as YAML."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.training import get_training_box
    from torchdistill.misc.log import MetricLogger

    def logits(of: str) -> dict[str, str]:
        return {f"{of}_module_path": ".", f"{of}_module_io": "output"}

    kd = {**logits("student"), **logits("teacher"), "temperature": TEMPERATURE, "alpha": ALPHA}
    student = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    terms: dict[str, dict[str, Any]] = {
        PLAIN: {
            "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
            "criterion_wrapper": {
                "key": "SimpleLossWrapper",
                "kwargs": {"input": student, "target": {"uses_label": True}},
            },
            "weight": 1.0,
        },
        TAUGHT: {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0},
    }
    forward = {"forward_proc": "forward_batch_only"}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": loading(work),
        },
        "model": forward,
        "student": forward,
        "teacher": {**forward, "requires_grad": False},
        "optimizer": {"key": "SGD", "kwargs": {**SGD, "nesterov": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {lesson: terms[lesson]}}},
    }
    common = ({"train": pictures(work)}, config, torch.device("cpu"), None, False, 1)
    if lesson == TAUGHT:
        box = get_distillation_box(teacher_of(work), student_of(work), *common)
    else:
        box = get_training_box(student_of(work), *common)
    number = itertools.count()

    def epoch() -> float:
        began = time.perf_counter()
        box.pre_epoch_process(epoch=next(number))
        told = MetricLogger()
        for images, targets, more in told.log_every(box.train_data_loader, 100):
            loss = box.forward_process(images, targets, more)
            box.post_forward_process(loss=loss)
            told.update(loss=loss.item())
        box.post_epoch_process()
        return time.perf_counter() - began

    return epoch


class Enough(Exception):
    """A whole epoch has been seen."""


class Features(nn.Module):
    """A Ghost network as lightly-train wants it: its last map, and the mean of that. Raises Enough at step `steps`."""

    def __init__(self, net: Any, steps: int | None = None) -> None:
        super().__init__()
        self.net, self.steps, self.marks = net, steps, list[float]()

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        self.marks.append(time.perf_counter())
        if self.steps is not None and len(self.marks) > self.steps:
            raise Enough
        x = self.net.stem(x)
        for bottleneck in self.net.bottlenecks:
            x = bottleneck(x)
        return {"features": self.net.tail(x)}

    def forward_pool(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled_features": F.adaptive_avg_pool2d(found["features"], 1)}

    def feature_dim(self) -> int:
        return self.net.head.in_channels

    def get_model(self) -> nn.Module:
        return self.net


def lightly_train(work: Work, lesson: str) -> Epoch:
    """Its distillation, begun anew each turn, and ended at the first step of its second epoch."""
    folder = Path(tempfile.mkdtemp(dir=work.folder))
    (folder / "images").mkdir()
    os.environ |= {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "LIGHTLY_TRAIN_CACHE_DIR": str(folder / "cache")}
    import lightly_train as lightly

    for number, (picture, _) in enumerate(pictures(work, transformed=False)):
        picture.save(folder / "images" / f"{number:05}.png")
    mean, std = SETS["cifar10"].statistics
    transform = {
        "image_size": (32, 32),
        "random_resize": {"min_scale": 0.75, "max_scale": 1.0},
        "normalize": {"mean": mean, "std": std},
        **dict.fromkeys(("color_jitter", "gaussian_blur", "random_gray_scale")),
    }
    turns = itertools.count()

    def epoch() -> float:
        student = Features(student_of(work), steps=work.images // work.batch)
        with contextlib.suppress(Enough):
            lightly.pretrain(
                out=folder / f"out-{next(turns)}",
                data=folder / "images",
                model=student,
                method="distillationv3",
                method_args={"teacher": Features(teacher_of(work))},
                epochs=2,
                batch_size=work.batch,
                num_workers=work.workers,
                accelerator="cpu",
                devices=1,
                precision="32-true",
                optim="sgd",
                optim_args=SGD,
                transform_args=transform,
            )
        return student.marks[-1] - student.marks[0]

    return epoch


LOOPS = {"ghost": ghost, "torchdistill": torchdistill, "tutorial": tutorial, "lightly-train": lightly_train}


def main(way: str, lesson: str, work: Work) -> None:
    """Warm up on one batch, then one epoch a line. What the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    if SETS["cifar10"].state(data_root()) != "ready":
        raise UsageError("CIFAR-10 is not here: ghost data fetch cifar10")
    LOOPS[way](replace(work, images=work.batch), lesson)()
    epoch = LOOPS[way](work, lesson)
    answer(device=describe(torch.device("cpu")), threads=torch.get_num_threads())
    for _ in sys.stdin:
        began = time.perf_counter()
        seconds = epoch()
        answer(seconds=seconds, call=time.perf_counter() - began, peak=round(high_water(), 1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Work(**json.loads(sys.argv[3])))
