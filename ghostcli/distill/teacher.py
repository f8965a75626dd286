"""Who teaches: trained networks in eval mode, asked live or through their tables of views.

Invariant: a teacher gets the student's own uint8 view and applies its own normalisation and input size; it
never has gradients and is never in train mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ghostcli import signals
from ghostcli.data import Data, Images
from ghostcli.data.batches import Cropper, generator, normalise
from ghostcli.distill.table import Ask, TeacherTable, describe
from ghostcli.errors import GhostError, UsageError
from ghostcli.recipe.models import AugmentSection, Recipe
from ghostcli.zoo import weights
from ghostcli.zoo.evaluate import BATCH, Norm
from ghostcli.zoo.stages import Features, Tap

#: Images a teacher is asked about at a time. Always so many: the size of a batch decides how an answer is rounded.
ASKED = {"cpu": 64, "cuda": 512, "mps": 128}

ENLARGED = 224  # pixels of the image that the published EfficientNetV2 row cuts its patches from


@dataclass(frozen=True)
class Teacher:
    """A finished run's network, ready to be asked."""

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


def load(run_id: str, run: Path, classes: int, device: torch.device) -> Teacher:
    """The teacher that a finished run's weights are. GhostError naming the file where they cannot be used."""
    try:
        loaded = weights.load(run / "model.safetensors", device, classes)
    except UsageError:
        raise
    except GhostError as error:
        remedy = f"ghost runs verify, or ghost runs rm {run_id} to have it trained again"
        raise GhostError(f"{error} ({remedy})") from error
    loaded.model.requires_grad_(False)
    return Teacher(run_id, loaded.name, run, loaded.model, loaded.norm, loaded.sha256)


class TeacherLogits:
    """What the teachers say in each epoch of one run, as the training step asks for it.

    From tables, where the views can be numbered and only logits are wanted: then `targets` [T, N, C] holds an
    epoch's answers before its first step, and a step costs what a plain one costs. Live otherwise.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        recipe: Recipe,
        data: Data,
        cropper: Cropper,
        *,
        seed: int = 0,
    ) -> None:
        self.teachers = tuple(teachers)
        self.cropper, self.images, self.seed = cropper, data.train, seed
        self.seconds, self.epoch = 0.0, 0
        # All are refilled in place: a captured step reads this very memory.
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
        self.taps = [Tap(teacher.model) for teacher in self.teachers] if recipe.distill.needs_features else []
        if self.why_live is None and self.teachers:
            self.tables = [open_table(teacher, data, recipe.augment) for teacher in self.teachers]

    def start_epoch(self, epoch: int, views: Tensor) -> None:
        """Fetch the epoch's answers; what no table holds yet is asked for now, in large batches."""
        self.draw(epoch, views)
        if not self.tables:
            return
        began = time.perf_counter()
        numbers = views.cpu().numpy()
        device = self.images.pixels.device
        for teacher, table in zip(self.teachers, self.tables, strict=True):
            table.fill(numbers, self.ask(teacher), BATCH[device.type])
        rows = torch.stack([table.read(numbers) for table in self.tables])
        if self.partners is not None:
            rows = rows[:, self.partners.cpu()]
        if self.targets is None:
            self.targets = rows.to(device)
        else:
            self.targets.copy_(rows)
        self.seconds += time.perf_counter() - began

    def draw(self, epoch: int, views: Tensor) -> None:
        """Set which pictures the teachers see in this epoch, without asking them."""
        self.epoch = epoch
        self.views.copy_(views)
        if self.draws is not None:
            self.draws.copy_(patch_draws(len(self.images), self.images.pixels.shape[1], self.seed, epoch))
        if self.partners is not None:
            self.partners.copy_(partners(self.images.labels.cpu(), self.seed, epoch))

    def shown(self, index: Tensor) -> Tensor:
        """The images that the teachers see in the place of images `index`: the same, or their partners."""
        return index if self.partners is None else self.partners[index]

    def ask(self, teacher: Teacher) -> Ask:
        """The teacher as its table asks it: about views of this run's images."""
        return ask_about_views(teacher, self.cropper, self.images.pixels.device)

    def answer(self, index: Tensor, pixels: Tensor) -> tuple[Tensor | None, list[Features] | None]:
        """Logits [T, B, C] (and features) for the step's images `index`, whose view is `pixels`."""
        if not self.teachers:
            return None, None
        if self.targets is not None:
            return self.targets[:, index].float(), None
        index = self.shown(index)
        if self.draws is not None:
            shown = patch(self.images, index, self.draws)
            return torch.stack([ask_bare(teacher, shown) for teacher in self.teachers]), None
        if self.partners is not None:
            pixels = self.cropper.crop(index, self.views[index], self.seed, self.epoch)
        if self.taps:
            with torch.no_grad():
                pairs = [tap(normalise(pixels, *t.norm)) for tap, t in zip(self.taps, self.teachers, strict=True)]
            return torch.stack([logits.float() for logits, _ in pairs]), [features for _, features in pairs]
        return torch.stack([teacher.logits(pixels) for teacher in self.teachers]), None


@torch.no_grad()
def ask_bare(teacher: Teacher, pixels: Tensor) -> Tensor:
    """float32 [B, C] of the teacher's network without the wrapper that enlarges images, where it has one."""
    body = getattr(teacher.model, "net", teacher.model)
    return body(normalise(pixels, *teacher.norm)).float()


def patch_draws(n: int, size: int, seed: int, epoch: int) -> Tensor:
    """Where in its enlarged image each image's patch lies in an epoch, and whether it is flipped: int64 [n, 3]."""
    rng = generator(seed, "patch", epoch)
    places = torch.randint(ENLARGED + 8 - size + 1, (n, 2), generator=rng)
    return torch.cat([places, torch.randint(2, (n, 1), generator=rng)], 1)


def partners(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """For each image another of its class: int64 [N], a permutation within each class of `labels` [N], on the CPU.

    A cyclic shift of a random order, so no image keeps its own place unless it is alone in its class.
    """
    drawn = torch.randperm(len(labels), generator=generator(seed, "blind", epoch))
    by_class = drawn[labels[drawn].argsort(stable=True)]
    sizes = torch.bincount(labels)
    ends = sizes.cumsum(0)
    following = torch.arange(1, len(labels) + 1)
    following[(ends - 1)[sizes > 0]] = (ends - sizes)[sizes > 0]
    found = torch.empty_like(by_class)
    found[by_class] = by_class[following]
    return found


def patch(images: Images, index: Tensor, draws: Tensor) -> Tensor:
    """The published fault of the EfficientNetV2 row: uint8 [B, H, W, 3] cut from the enlarged image.

    A patch of the small image's size, at its own random place (4 pixels of padding) and flip (`draws` [N, 3]): a
    49th of the picture, and not the student's view. Kept because a reproduction must contain it.
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


def ask_about_views(teacher: Teacher, cropper: Cropper, device: torch.device) -> Ask:
    """The teacher as a function of (image numbers, views), which is how its table asks it.

    An answer has the same bits whatever else is asked: a short batch is filled up with copies of its last image,
    and cuDNN is kept from choosing its algorithms by what happens to be fastest at the time.
    """
    size = ASKED[device.type]

    def ask(index: Tensor, views: Tensor) -> Tensor:
        answers = []
        with fixed_algorithms():
            for images, crops in zip(index.to(device).split(size), views.to(device).split(size), strict=True):
                filler = torch.arange(size, device=device).clamp(max=len(images) - 1)
                answers.append(teacher.logits(cropper.crop(images[filler], crops[filler])))
        return torch.cat(answers)[: len(index)]

    return ask


@contextmanager
def fixed_algorithms() -> Iterator[None]:
    """Convolutions whose algorithm follows from their shapes and the device alone, whatever the engine's setting."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def open_table(teacher: Teacher, data: Data, augment: AugmentSection) -> TeacherTable:
    """The table of this teacher over this data's training images, made where there is none."""
    views = {**augment.view_key, "count": augment.view_count}
    meta = describe(teacher.sha256, data.checksum, len(data.train), len(data.classes), views)
    return TeacherTable(teacher.run, meta)


def fill_table(
    teacher: Teacher,
    data: Data,
    augment: AugmentSection,
    device: torch.device,
    advance: Callable[[int], None],
) -> TeacherTable:
    """Every view of every training image (`ghost teach fill`); what is there already is not asked again."""
    table = open_table(teacher, data, augment)
    cropper = Cropper(data.train.to(device), augment)
    _, views, _ = table.shape
    ask = ask_about_views(teacher, cropper, device)
    for view in range(views):
        signals.stop_if_asked()
        table.fill(torch.full((len(data.train),), view).numpy(), ask, BATCH[device.type], advance)
    return table
