"""The keys of a recipe as frozen pydantic models. Unknown keys are forbidden; every default is explicit.

Invariant: a `Recipe` holds all settings that change the result of a training, and the few keys of `UNDIGESTED`. It
holds no device, no seed and no output path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ghostcli.errors import meant, similar
from ghostcli.recipe.sets import SETS

#: Fewer optimiser steps than this are too few to learn from. The paper's students take 39,200.
FEW_STEPS = 100
#: Keys that change speed or safety of a run, never its result. The digest leaves them out.
UNDIGESTED = frozenset(
    {"engine.deterministic", "engine.capture", "engine.checkpoint_minutes", "engine.recompute", "distill.source"}
    # The name of the weights that a network starts from. The digest has their checksum instead.
    | {"model.start"}
)

Family = Literal["paper", "published", "ghost", "smoke"]


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("needs one line of printable characters")
    return text


def _data_name(name: str) -> str:
    if name in SETS:
        return name
    if (path := name.removeprefix("folder:")) not in ("", name):
        return f"folder:{PurePath(path)}"  # pics, pics/ and ./pics are one folder, so one run id
    near = similar(name, SETS)[:1] or [f"folder:{name}" if path and path.isprintable() else "folder:photos"]
    raise ValueError(f"needs {', '.join(SETS)} or folder:PATH{meant(near)}")


Line = Annotated[str, AfterValidator(_one_line)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Conflict(ValueError):
    """Keys that are valid alone but contradict each other. `found` holds (keys, what is wrong)."""

    def __init__(self, found: list[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("; ".join(f"{keys[0]}: {text}" for keys, text in found))
        self.found = found


@dataclass(frozen=True)
class Before:
    """Marks a key that was added after runs were recorded. At `value` it changes nothing (see digest.py).

    Written `mixup: Annotated[float, Before(0.0)] = Field(0.0, ge=0, description=...)`.
    """

    value: Any


class Section(BaseModel):
    # Strict: "yes" is not a boolean and 1.0 is not an integer. An integer for a float key is accepted.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class DataSection(Section):
    """[data]: the images and their order."""

    name: Annotated[Line, AfterValidator(_data_name)] = Field(
        "cifar10", description=f"{', '.join(SETS)} or folder:PATH"
    )
    limit: int | None = Field(None, ge=1, description="only the first N training images")
    limit_test: int | None = Field(None, ge=1, description="only the first N test images")
    validation: int = Field(0, ge=0, description="images held out of the training set, stratified by class")
    split_seed: Seed = Field(0, description="seed of the validation split, apart from the run's seed")
    shuffle: bool = Field(True, description="a new order every epoch; false keeps the file's order")
    balance: Annotated[bool, Before(False)] = Field(
        False, description="an epoch shows each class equally often, however many images the class has"
    )
    size: int = Field(32, ge=8, le=512, description="folder data only: images are resized to SIZE x SIZE")

    @property
    def side(self) -> int:
        """Pixels of a side of an image: 32 of every named set."""
        return self.size if self.name.startswith("folder:") else 32


@dataclass(frozen=True)
class Views:
    """Marks an augmentation. `count(value)` is the number of views of an image; None if views cannot be numbered.

    `keyed`: each value needs its own teacher table. False if the value only changes the number of views. A key without
    this mark adds no views and is keyed, so a table is never read under another augmentation.
    """

    count: Callable[[Any], int | None]
    keyed: bool = True


class AugmentSection(Section):
    """[augment]: random changes to a training image."""

    pad: Annotated[int, Views(lambda pad: (2 * pad + 1) ** 2)] = Field(
        4, ge=0, le=64, description="pixels of padding before a crop of the original size"
    )
    flip: Annotated[Literal["none", "random", "alternating"], Views(lambda how: 1 + (how != "none"), keyed=False)] = (
        Field("random", description="horizontal flips")
    )
    fill: Literal["zeros", "reflect"] = Field("zeros", description="what the padding holds")
    cutout: Annotated[int, Views(lambda side: None if side else 1, keyed=False)] = Field(
        0, ge=0, le=64, description="side of a square that is greyed out; 0 is none"
    )

    def count(self, key: str) -> int | None:
        """Number of views of an image from one key; None if they cannot be numbered."""
        mark = next((mark for mark in type(self).model_fields[key].metadata if isinstance(mark, Views)), None)
        return mark.count(getattr(self, key)) if mark else 1

    @property
    def view_count(self) -> int | None:
        """Number of all views of an image; None if they cannot be numbered."""
        counts = [self.count(key) for key in type(self).model_fields]
        return None if None in counts else math.prod(counts)

    @property
    def view_key(self) -> dict[str, Any]:
        """The keys and values that define a view number, for the description of a teacher's table."""
        return {key: getattr(self, key) for key in type(self).model_fields if self._keyed(key)}

    def _keyed(self, key: str) -> bool:
        marks = type(self).model_fields[key].metadata
        before = any(isinstance(mark, Before) and mark.value == getattr(self, key) for mark in marks)
        return not before and all(mark.keyed for mark in marks if isinstance(mark, Views))


class ModelSection(Section):
    """[model]: the initial weights of every network, with or without teachers. Pretrained weights replace `init`."""

    init: Literal["kaiming", "native"] = Field(
        "kaiming", description="kaiming: normal, fan-out, ReLU gain, zero biases; native: the network's own rule"
    )
    pretrained: bool = Field(
        True, description="ImageNet weights, if available, for networks that work at ImageNet's size"
    )
    start: Line | None = Field(
        None, description="run/ID: the student starts from this run's weights, with a new last layer (--from)"
    )
    start_sha256: Annotated[Line | None, Before(None)] = Field(
        None, description="checksum of the weights that `start` names; ghost fills it in"
    )


class TrainSection(Section):
    """[train]: length of the training, batches and labels."""

    epochs: int = Field(200, ge=1, le=100_000, description="passes over the training set; the schedule spans all")
    stop: int | None = Field(None, ge=1, description="end after so many epochs of the full schedule")
    batch_size: int = Field(256, ge=1, le=1_000_000, description="the last short batch of an epoch is kept")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of the label spread over all classes")
    ema: float = Field(
        0.0, ge=0.0, lt=1.0, description="decay of the weights' moving average that is evaluated; 0 is none"
    )

    @property
    def last_epoch(self) -> int:
        """Number of trained epochs: all of the schedule, or `stop`."""
        return min(self.epochs, self.stop or self.epochs)


class OptimBase(Section):
    """[optim]: the optimiser and its learning rate schedule."""

    lr: float = Field(0.01, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="sgd: L2 penalty, added to the gradient; others: decoupled")
    decay: Literal["all", "weights"] = Field("all", description="weights: norms and biases are not decayed")
    warmup: float = Field(0.3, ge=0, lt=1, description="fraction of all steps that rise linearly to the peak")
    anneal: Literal["cosine", "linear"] = Field("cosine", description="shape of the way from the peak to the end")
    lr_start: float = Field(1e-8, ge=0, description="rate of the first step")
    lr_end: float = Field(1e-8, ge=0, description="rate of the last step")


class SGD(OptimBase):
    """Stochastic gradient descent with momentum (the paper's optimiser)."""

    name: Literal["sgd"] = Field("sgd", description="the optimiser: sgd, adamw or muon")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last update that the next one keeps")
    nesterov: bool = Field(True, description="Nesterov's form of the momentum")


class AdamW(OptimBase):
    """Adam with decoupled weight decay (Loshchilov 2019)."""

    name: Literal["adamw"]
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's mean")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's mean")
    eps: float = Field(1e-8, gt=0, description="added to the root of the squared gradient's mean")


class Muon(OptimBase):
    """Orthogonalised momentum for matrices (Jordan 2024); SGD for all other parameters."""

    name: Literal["muon"]
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of the matrices")
    nesterov: bool = Field(True, description="Nesterov's form of the momentum, for all parameters")
    rest_lr: float = Field(0.2, gt=0, description="peak learning rate of all parameters that are no matrix")
    rest_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of all parameters that are no matrix")


OptimSection = Annotated[SGD | AdamW | Muon, Field(discriminator="name")]


class DistillBase(Section):
    """[distill]: how a run learns from its teachers. Runs without teachers ignore it."""

    alpha: float = Field(0.5, ge=0, le=1, description="weight of the hard-label term, equation (1)")
    temperature: float = Field(1.0, gt=0, description="softens teacher and student logits, equation (1)")
    standardize: bool = Field(False, description="logits standardised per example before the softmax (Sun 2024)")
    combine: Literal["logits", "probabilities", "standardized"] = Field(
        "logits", description="the quantity that an ensemble averages"
    )
    weighting: Literal["mean", "adaptive"] = Field("mean", description="adaptive: AMTML-KD (Liu 2020)")
    adaptive_angle: float = Field(1.0, ge=0, description="adaptive: weight of the angle loss")
    adaptive_hint: float = Field(1.0, ge=0, description="adaptive: weight of the grouped hints")
    dense: bool = Field(False, description="a chain in which every larger network teaches (DGKD, Son 2021)")
    drop: int = Field(
        0, ge=0, description="dense: how many of the teachers' terms are dropped each step; one is always kept"
    )
    view: Literal["student", "patch"] = Field(
        "student", description="patch: the teacher sees a patch of its own, cut from the enlarged image, as published"
    )
    blind: Annotated[bool, Before(False)] = Field(
        False,
        description="the control: each image gets the teachers' logits for another image of its class, new each epoch",
    )
    shuffle: bool = Field(True, description="false: taught runs are not shuffled, as published")
    extra_step: bool = Field(False, description="the schedule steps once more after each epoch, as published")
    teacher_seed: Seed = Field(0, description="the seed its teachers are trained with")
    teacher_epochs: int | None = Field(
        None, ge=1, description="epochs of the teachers, whatever train.stop; a chain's assistants follow train.stop"
    )
    source: Literal["auto", "table", "live"] = Field(
        "auto", description="teacher logits from a table of views, or computed live at every step"
    )
    #: Whether the kind compares features. If so, its class in `distill/kinds.py` computes terms from them.
    features: ClassVar[bool] = False

    @property
    def needs_features(self) -> bool:
        return self.features or self.weighting == "adaptive"


class KD(DistillBase):
    """Hinton 2015; the paper's equation (1)."""

    kind: Literal["kd"] = Field("kd", description="the soft term: kd, dkd, dist, hint, at or rkd")


class DKD(DistillBase):
    """Decoupled KD (Zhao 2022)."""

    kind: Literal["dkd"]
    target_weight: float = Field(1.0, ge=0, description="weight of the target-class term (their alpha)")
    other_weight: float = Field(8.0, ge=0, description="weight of the other classes' term (their beta)")
    warmup_epochs: int = Field(
        20, ge=0, description="epochs over which the soft term rises linearly to its full weight"
    )


class DIST(DistillBase):
    """Relations between and within classes by correlation (Huang 2022)."""

    kind: Literal["dist"]
    inter_weight: float = Field(1.0, ge=0, description="weight of the relation between an image's classes (their beta)")
    intra_weight: float = Field(
        1.0, ge=0, description="weight of the relation within a class over the batch (their gamma)"
    )


class Hint(DistillBase):
    """FitNets (Romero 2015): a regressor from the student's stage to the teacher's."""

    features = True
    kind: Literal["hint"]
    stage: int = Field(2, ge=1, le=3, description="1: full resolution, 2: half, 3: a quarter")
    weight: float = Field(1.0, ge=0, description="weight of the squared distance to the teacher's stage")
    kd_weight: float = Field(0.0, ge=0, description="weight of KD on the logits beside the features")


class AT(DistillBase):
    """Attention transfer (Zagoruyko 2017) at every stage."""

    features = True
    kind: Literal["at"]
    weight: float = Field(1000.0, ge=0, description="weight of the attention maps' distance, summed over stages")
    kd_weight: float = Field(0.0, ge=0, description="weight of KD on the logits beside the features")


class RKD(DistillBase):
    """Relational KD (Park 2019) on the penultimate features."""

    features = True
    kind: Literal["rkd"]
    distance_weight: float = Field(25.0, ge=0, description="weight of the distances between pairs of images")
    angle_weight: float = Field(50.0, ge=0, description="weight of the angles between triples of images")
    kd_weight: float = Field(0.0, ge=0, description="weight of KD on the logits beside the features")


DistillSection = Annotated[KD | DKD | DIST | Hint | AT | RKD, Field(discriminator="kind")]


class EngineSection(Section):
    """[engine]: arithmetic, speed and checkpoints."""

    branches: Literal["plain", "folded"] = Field("folded", description="how re-parameterizable sums are trained")
    precision: Literal["float32", "bfloat16", "tf32"] = Field(
        "float32",
        description="of activations; weights stay float32. tf32: NVIDIA GPUs only, float32 with 10 bits in products",
    )
    deterministic: bool | None = Field(None, description="bit-identical repeats; default: true on CPU, false on GPU")
    capture: bool = Field(True, description="CUDA only: the step is captured as a graph")
    recompute: bool | None = Field(
        None, description="efficientnetv2: run blocks again in the backward pass; default: if memory is short"
    )
    checkpoint_minutes: float = Field(
        5.0, gt=0, description="the most minutes between checkpoints; an epoch ends with one, if worth its time"
    )


class Recipe(Section):
    """One protocol with all values. `family` is its label in tables."""

    family: Family = Field("paper", description="the protocol it belongs to, a column of the tables")
    summary: Line = Field("", description="one line for `ghost recipe list`")
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = SGD()
    distill: DistillSection = KD()
    engine: EngineSection = EngineSection()

    @property
    def why_live(self) -> dict[str, str]:
        """Key -> why teacher logits must be computed at every step. Empty if tables can hold them."""
        distill, reasons = self.distill, {}
        if distill.source == "live":
            reasons["distill.source"] = "distill.source is live"
        if distill.weighting == "adaptive":
            reasons["distill.weighting"] = "distill.weighting=adaptive needs the teacher's features"
        if distill.features:
            reasons["distill.kind"] = f"distill.kind={distill.kind} needs the teacher's features"
        if distill.view == "patch":
            reasons["distill.view"] = "distill.view=patch: the teacher does not see the student's view"
        for key in AugmentSection.model_fields:
            if self.augment.count(key) is None:
                value = getattr(self.augment, key)
                reasons[f"augment.{key}"] = f"augment.{key}={value}: these views cannot be numbered"
        return reasons

    def changed(self, section: str, **values: Any) -> Recipe:
        """A copy with other values in a section. They are not validated."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if conflicts := list(_conflicts(self)):
            raise Conflict(conflicts)
        return self


def _conflicts(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    data, augment, train, distill, side = recipe.data, recipe.augment, recipe.train, recipe.distill, recipe.data.side
    if augment.fill == "reflect" and augment.pad >= side:
        text = f"an image of {side} pixels reflects at most {side - 1}; make it smaller, or augment.fill zeros"
        yield ("augment.pad", "augment.fill"), text
    if data.balance and not (data.shuffle and distill.shuffle):
        key = "data.shuffle" if not data.shuffle else "distill.shuffle"
        yield ("data.balance", key), f"a balanced epoch has an order of its own; set {key} true, or data.balance false"
    for key, epochs in (("train.stop", train.stop), ("distill.teacher_epochs", distill.teacher_epochs)):
        if epochs is not None and epochs > train.epochs:
            yield (key, "train.epochs"), f"{epochs} is past the last of {train.epochs} epochs (train.epochs)"
    if distill.dense and distill.weighting == "adaptive":
        text = "dense teaches a chain term by term, adaptive weighs an ensemble; set one of them"
        yield ("distill.weighting", "distill.dense"), text
    if distill.view == "patch" and side > 224:
        yield ("distill.view", "data.size"), "a patch is cut from an image of 224 pixels; make data.size smaller"
    if distill.view == "patch" and distill.needs_features:
        text = "features are compared on the student's own view; use view student"
        yield ("distill.view", "distill.kind"), text
    if distill.source == "table":
        for key in recipe.why_live:
            yield ("distill.source", key), f"no table can hold the teacher outputs that {key} needs; use auto or live"
