"""Teachers: trained networks in eval mode. Their logits are computed live or read from a table of views.

Invariant: a teacher gets the student's uint8 view and applies its own normalisation and input size. It has no gradients
and is never in train mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ghostcli import signals, zoo
from ghostcli.data import Data, Images
from ghostcli.data.batches import Cropper, generator, normalise
from ghostcli.distill.table import LogitsOfViews, TeacherTable, describe
from ghostcli.errors import GhostError, UsageError
from ghostcli.recipe.models import AugmentSection, Recipe
from ghostcli.records import trained
from ghostcli.zoo import weights
from ghostcli.zoo.evaluate import BATCH, Norm
from ghostcli.zoo.stages import Features, Tap
from ghostcli.zoo.teachers import bare

#: Batch size of a teacher's forward pass for a table of many images. The batch size changes the rounding.
TEACHER_BATCH = {"cpu": 256, "cuda": 512, "mps": 128}

ENLARGED = 224  # side in pixels of the enlarged image in the published EfficientNetV2 row


@dataclass(frozen=True)
class Teacher:
    """A trained network, in eval mode. `run`: the folder under which its tables lie. `sha256`: of its weights."""

    id: str
    name: str
    run: Path
    model: nn.Module
    norm: Norm
    sha256: str

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """float32 [B, C] for uint8 pixels [B, H, W, 3]."""
        return self.model(normalise(pixels, *self.norm)).float()


def load(run_id: str, runs: Path, classes: int, device: torch.device) -> Teacher:
    """The teacher from a trained network's weights, in its deploy form: it only answers.

    GhostError, naming the file, if the weights cannot be used.
    """
    try:
        loaded = weights.load(trained.at(runs, run_id).weights, classes=classes)
    except UsageError:
        raise
    except GhostError as error:
        remedy = f"ghost runs verify, or ghost runs rm {run_id} to train it again"
        raise GhostError(f"{error} ({remedy})") from error
    network = zoo.laid_out(zoo.deploy(loaded.model), device)
    return Teacher(run_id, loaded.name, runs / run_id, network, loaded.norm, loaded.sha256)


class TeacherLogits:
    """The teachers' logits for the steps of one run.

    They come from tables if views have numbers and only logits are needed: `targets` [T, N, C] then holds the logits of
    a whole epoch before its first step, and a step costs as much as without teachers. Otherwise they are computed live.
    """

    def __init__(
        self, teachers: Sequence[Teacher], recipe: Recipe, data: Data, cropper: Cropper, *, seed: int = 0
    ) -> None:
        self.teachers = tuple(teachers)
        self.cropper, self.images, self.seed = cropper, data.train, seed
        self.seconds, self.epoch = 0.0, 0
        # These are refilled in place, because a captured step reads this memory.
        self.targets: Tensor | None = None
        self.views = torch.zeros_like(data.train.labels)
        self.draws: Tensor | None = None
        self.partners: Tensor | None = None
        if recipe.distill.view == "patch":
            self.draws = self.views.new_zeros(len(data.train), 3)
        if recipe.distill.blind:
            self.partners = torch.arange(len(data.train), device=self.views.device)
        self.why_live = next(iter(recipe.why_live.values()), None)
        self.tables: list[TeacherTable] = []
        size, tapped = self.images.pixels.shape[1], self.teachers if recipe.distill.needs_features else ()
        self.taps = [Tap(teacher.model, size) for teacher in tapped]
        if self.why_live is None and self.teachers:
            self.tables = [open_table(teacher, data, recipe.augment) for teacher in self.teachers]

    def start_epoch(self, epoch: int, views: Tensor) -> None:
        """Load the epoch's logits. Entries missing in a table are computed now, in large batches."""
        self.draw(epoch, views)
        if not self.tables:
            return
        began = time.perf_counter()
        numbers = views.cpu().numpy()
        device = self.images.pixels.device
        for teacher, table in zip(self.teachers, self.tables, strict=True):
            table.fill(numbers, self.logits_of_views(teacher), BATCH[device.type])
        rows = torch.stack([table.read(numbers) for table in self.tables])
        if self.partners is not None:
            rows = rows[:, self.partners.cpu()]
        if self.targets is None:
            self.targets = rows.to(device)
        else:
            self.targets.copy_(rows)
        self.seconds += time.perf_counter() - began

    def draw(self, epoch: int, views: Tensor) -> None:
        """Set which images the teachers see in this epoch. Computes no logits."""
        self.epoch = epoch
        self.views.copy_(views)
        if self.draws is not None:
            self.draws.copy_(patch_draws(len(self.images), self.images.pixels.shape[1], self.seed, epoch))
        if self.partners is not None:
            self.partners.copy_(partners(self.images.labels.cpu(), self.seed, epoch))

    def shown(self, index: Tensor) -> Tensor:
        """The images that the teachers see for images `index`: the same images, or their partners in a blind run."""
        return index if self.partners is None else self.partners[index]

    def logits_of_views(self, teacher: Teacher) -> LogitsOfViews:
        """The function that fills this teacher's table, for this run's images."""
        return teacher_logits_of_views(teacher, self.cropper, self.images.pixels.device)

    def of_batch(self, index: Tensor, pixels: Tensor) -> tuple[Tensor | None, list[Features] | None]:
        """Logits [T, B, C], and features if needed, for the images `index` of a step, whose views are `pixels`."""
        if not self.teachers:
            return None, None
        if self.targets is not None:
            return self.targets[:, index].float(), None
        index = self.shown(index)
        if self.draws is not None:
            patches = patch(self.images, index, self.draws)
            bare_ones = [replace(teacher, model=bare(teacher.model)) for teacher in self.teachers]
            return torch.stack([teacher.logits(patches) for teacher in bare_ones]), None
        if self.partners is not None:
            pixels = self.cropper.crop(index, self.views[index], self.seed, self.epoch)
        if self.taps:
            with torch.no_grad():
                pairs = [tap(normalise(pixels, *t.norm)) for tap, t in zip(self.taps, self.teachers, strict=True)]
            return torch.stack([logits.float() for logits, _ in pairs]), [features for _, features in pairs]
        return torch.stack([teacher.logits(pixels) for teacher in self.teachers]), None


def patch_draws(n: int, size: int, seed: int, epoch: int) -> Tensor:
    """Position of each image's patch in the enlarged image, and its flip, in one epoch: int64 [n, 3], (y, x, flip)."""
    rng = generator(seed, "patch", epoch)
    places = torch.randint(ENLARGED + 8 - size + 1, (n, 2), generator=rng)
    return torch.cat([places, torch.randint(2, (n, 1), generator=rng)], 1)


def partners(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Another image of the same class for each image: int64 [N]. `labels` [N] is on the CPU.

    It is a permutation within each class: a cyclic shift of a random order. So no image is its own partner, unless it
    is alone in its class.
    """
    drawn = torch.randperm(len(labels), generator=generator(seed, "blind", epoch))
    by_class = drawn[labels[drawn].argsort(stable=True)]
    sizes = torch.bincount(labels)
    ends = sizes.cumsum(0)
    following = torch.arange(1, len(labels) + 1)
    following[(ends - 1)[sizes > 0]] = (ends - sizes)[sizes > 0]
    partner_of = torch.empty_like(by_class)
    partner_of[by_class] = by_class[following]
    return partner_of


def patch(images: Images, index: Tensor, draws: Tensor) -> Tensor:
    """The teacher's input in the published EfficientNetV2 row: uint8 [B, H, W, 3], cut from the enlarged image.

    `draws` [N, 3] gives each patch a random position (with 4 pixels of padding) and flip. The patch has the size of the
    small image, so it is 1/49 of the picture and not the student's view. This is a fault of the published code, kept
    because a reproduction needs it.
    """
    whole = images.pixels[index]  # [B, H, W, 3]
    size = whole.shape[1]
    at, flip = draws[index, :2], draws[index, 2:].bool()
    large = nn.functional.interpolate(whole.permute(0, 3, 1, 2).float(), size=(ENLARGED, ENLARGED), mode="bilinear")
    large = nn.functional.pad(large, (4, 4, 4, 4)).permute(0, 2, 3, 1)  # [B, S + 8, S + 8, 3]
    span = torch.arange(size, device=index.device)
    rows, columns = at[:, :1] + span, at[:, 1:] + torch.where(flip, span.flip(0), span)
    batch = torch.arange(len(index), device=index.device)[:, None, None]
    return large[batch, rows[:, :, None], columns[:, None, :]].round().to(torch.uint8)


def teacher_logits_of_views(teacher: Teacher, cropper: Cropper, device: torch.device) -> LogitsOfViews:
    """The function (image numbers [B], views [B]) -> logits [B, C] that fills a teacher's table.

    The logits of an image do not depend on the other images: a short batch is padded with copies of its last image, and
    cuDNN does not choose its algorithms by timing. Of few images the batch is all.
    """
    size = min(TEACHER_BATCH[device.type], cropper.count)

    def compute(index: Tensor, views: Tensor) -> Tensor:
        logits = []
        with fixed_algorithms():
            for images, crops in zip(index.to(device).split(size), views.to(device).split(size), strict=True):
                filler = torch.arange(size, device=device).clamp(max=len(images) - 1)
                logits.append(teacher.logits(cropper.crop(images[filler], crops[filler])))
        return torch.cat(logits)[: len(index)]

    return compute


@contextmanager
def fixed_algorithms() -> Iterator[None]:
    """cuDNN algorithms that depend only on shapes and device, and float32 in full, for any [engine] setting."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32 = False, True, False, False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32 = before


def open_table(teacher: Teacher, data: Data, augment: AugmentSection) -> TeacherTable:
    """The table of this teacher for these training images. It is created if there is none."""
    views = {**augment.view_key, "count": augment.view_count}
    meta = describe(teacher.sha256, data.checksum, len(data.train), len(data.classes), views)
    return TeacherTable(teacher.run, meta)


def fill_table(
    teacher: Teacher, data: Data, augment: AugmentSection, device: torch.device, advance: Callable[[int], None]
) -> TeacherTable:
    """Compute all missing entries: every view of every training image (`ghost teach fill`)."""
    table = open_table(teacher, data, augment)
    cropper = Cropper(data.train.to(device), augment)
    _, views, _ = table.shape
    compute = teacher_logits_of_views(teacher, cropper, device)
    for view in range(views):
        signals.raise_if_received()
        table.fill(torch.full((len(data.train),), view).numpy(), compute, BATCH[device.type], advance)
    return table
