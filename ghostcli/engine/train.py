"""The training loop, the same for all strategies.

Invariant: a run is a pure function of its job and its data. Order, views and schedule depend on (seed, epoch, step)
only, so a checkpoint has tensors and counters, and no random state.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ghostcli import distill, signals, zoo
from ghostcli.data import Data
from ghostcli.data.batches import Cropper, balanced, generator, order, views
from ghostcli.display import Display
from ghostcli.distill.teacher import Teacher, TeacherLogits
from ghostcli.engine import optimizers, turns
from ghostcli.engine.capture import Captured, why_eager
from ghostcli.engine.device import arithmetic, free_bytes, uncollected
from ghostcli.engine.saving import Saver, resume
from ghostcli.engine.schedule import learning_rate
from ghostcli.engine.step import Update
from ghostcli.errors import Interrupted, NonFiniteError, OutOfMemoryError, UsageError
from ghostcli.plan import Job
from ghostcli.recipe.models import FEW_STEPS, Recipe
from ghostcli.records.record import RunWriter
from ghostcli.zoo import evaluate, weights
from ghostcli.zoo.evaluate import Norm
from ghostcli.zoo.weights import Loaded

#: If a step keeps more than this share of free memory for its backward pass, blocks are recomputed.
MEMORY_SHARE = 0.6


@dataclass
class State:
    """The content of a checkpoint: `epoch` epochs are finished, and `batch` batches of the current one."""

    model: nn.Module
    ema: nn.Module | None
    objective: nn.Module
    optimizers: tuple[Optimizer, ...]
    log: Tensor  # [batches per epoch, 4]: total, hard, soft, correct of each step of the current epoch
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0  # training only, without evaluation and saving
    epoch_seconds: float = 0.0
    teacher_seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)  # the epoch chosen on the validation split
    best_tensors: dict[str, Tensor] = field(default_factory=dict)  # its weights and test logits

    @property
    def evaluated(self) -> nn.Module:
        return self.ema or self.model

    def tensors(self) -> dict[str, Tensor]:
        parts = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
            "objective": self.objective.state_dict(),
            "optimizer": optimizers.tensors(self.optimizers),
            "best": self.best_tensors,
        }
        by_name = {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
        return by_name | {"log": self.log}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.model.load_state_dict(part_of(tensors, "model"))
        if self.ema is not None:
            self.ema.load_state_dict(part_of(tensors, "ema"))
        self.objective.load_state_dict(part_of(tensors, "objective"))
        optimizers.restore(self.optimizers, part_of(tensors, "optimizer"))
        self.best_tensors = {name: t.to(self.log.device) for name, t in part_of(tensors, "best").items()}
        self.log.copy_(tensors["log"])
        for name in ("epoch", "batch", "seconds", "epoch_seconds", "teacher_seconds", "best"):
            setattr(self, name, meta[name])


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `part.`, by the rest of their names."""
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def make_state(
    job: Job, data: Data, teachers: Sequence[Teacher], device: torch.device, start: Loaded | None = None
) -> State:
    """The student at its start. Its weights depend on the seed and on `start` alone, not on earlier work."""
    recipe, seed = job.recipe, job.seed
    if job.generation:  # a born-again network gets new initial weights (Furlanello 2018), not those of its teacher
        seed = generator(seed, "generation", job.generation).initial_seed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The file of a user's own network may have changed since the plan: its id stands for the source it had then.
        how = {"branches": recipe.engine.branches, "pretrained": recipe.model.pretrained}
        model = zoo.build(job.student, len(data.classes), source=job.content.get("source"), **how)
        if recipe.model.init == "kaiming" and not model.spec.pretrained:
            zoo.init_kaiming(model, torch.Generator().manual_seed(seed))
        if start is not None:
            weights.begin_from(model, start)
        objective = distill.build_for(recipe, model, [t.model for t in teachers], data.train.pixels.shape[1])
    if must_recompute(recipe, model, device):
        zoo.recompute(model)
    model = zoo.laid_out(model, device).train()
    objective = objective.to(device)
    ema = copy.deepcopy(model) if recipe.train.ema else None
    batches = math.ceil(len(data.train) / recipe.train.batch_size)
    log = torch.zeros(batches, 4, device=device)
    return State(model, ema, objective, optimizers.make(model, objective, recipe.optim, device), log)


def start_of(recipe: Recipe, model: nn.Module) -> str:
    """`kaiming`, `native`, `pretrained`, or the checksum of the weights it starts from. It depends on the recipe and
    the network only, never on the teachers."""
    if recipe.model.start_sha256 is not None:
        return f"weights {recipe.model.start_sha256[:12]}"
    return "pretrained" if model.spec.pretrained else recipe.model.init


def must_recompute(recipe: Recipe, model: nn.Module, device: torch.device) -> bool:
    """Whether to run blocks again in the backward pass: the recipe's value, or else if memory is short."""
    if recipe.engine.recompute is not None:
        return recipe.engine.recompute
    return zoo.kept_bytes(model) * recipe.train.batch_size > MEMORY_SHARE * free_bytes(device)


def make_update(recipe: Recipe, state: State, data: Data, teachers: Sequence[Teacher], seed: int) -> Update:
    """The update of this state, with its images, teacher logits and normalisation."""
    norm = (state.model.spec.mean or data.mean, state.model.spec.std or data.std)
    cropper = Cropper(data.train, recipe.augment)
    teacher_logits = TeacherLogits(teachers, recipe, data, cropper, seed=seed)
    return Update(
        recipe=recipe,
        model=state.model,
        ema=state.ema,
        objective=state.objective,
        optimizers=state.optimizers,
        images=data.train,
        cropper=cropper,
        teacher_logits=teacher_logits,
        norm=norm,
        seed=seed,
    )


def require_room(student: str, classes: int, device: torch.device) -> None:
    """OutOfMemoryError if weights, gradients and momentum of a Ghost network need more than the free memory.

    Without this check the system may kill the process without a message.
    """
    if not zoo.is_ghost(student):
        return
    needed, free = 3 * 4 * zoo.count_parameters(zoo.build_shapes(student, classes)), free_bytes(device)
    if needed > free:
        raise OutOfMemoryError(
            f"{student}: its weights, gradients and momentum alone take {needed / 1e9:,.0f} GB, and {free / 1e9:,.1f} "
            "GB of memory are free; use a smaller width"
        )


def require_two_images(job: Job, data: Data) -> None:
    """UsageError if the last batch of an epoch has one image and the student's batch norms need two."""
    size, images = job.recipe.train.batch_size, len(data.train)
    if size > 1 and images % size != 1:
        return
    model = zoo.build(job.student, len(data.classes), branches=job.recipe.engine.branches).train()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *data.train.pixels.shape[1:]).permute(0, 3, 1, 2))
    except ValueError as error:
        better = next((f"train.batch_size={n}" for n in range(size + 1, images + 1) if images % n != 1), "more images")
        raise UsageError(
            f"train.batch_size={size}: the last batch of {images} images has one image, but the batch norms of "
            f"{job.student} need two; use {better}"
        ) from error


def train(
    job: Job,
    data: Data,
    teachers: Sequence[Teacher],
    run: RunWriter,
    device: torch.device,
    show: Display,
    start: Loaded | None = None,
) -> tuple[State, Tensor, Norm]:
    """Train `job`, or continue it. Returns the final state, the last test logits and the normalisation.

    Raises Interrupted (a signal; the state is saved), NonFiniteError, and GhostError if saving fails.
    """
    recipe, seed = job.recipe, job.seed
    data = on_device(data, device)
    state = make_state(job, data, teachers, device, start)
    origin = {"job": job.digest, "seed": seed, "data": data.checksum, "teachers": [t.sha256 for t in teachers]}
    origin["start"] = start_of(recipe, state.model)
    if recipe.model.pretrained and state.model.spec.note and not state.model.spec.pretrained:
        show.warn(f"{job.id}: {state.model.spec.note}")
    resume(state, origin, run, show)
    update = make_update(recipe, state, data, teachers, seed)
    teacher_logits, norm = update.teacher_logits, update.norm
    teacher_logits.seconds = state.teacher_seconds
    if teacher_logits.why_live and teachers:
        show.line(f"{job.id}: teacher logits are computed at every step ({teacher_logits.why_live})")
    if zoo.recomputing(state.model):
        show.line(f"{job.id}: blocks are recomputed in the backward pass (engine.recompute), to save memory")
    step_once = update if why_eager(update) else Captured(update, recipe.train.batch_size)

    images, batches, labels = len(data.train), len(state.log), data.train.labels.cpu()
    total = recipe.train.epochs * batches
    last_epoch = recipe.train.last_epoch
    if state.epoch == state.batch == 0 and last_epoch * batches < FEW_STEPS:
        show.warn(f"{job.id}: {last_epoch * batches} steps are too few to learn from: this only shows that it runs")
    ahead = 1 if job.taught and recipe.distill.extra_step else 0  # schedule steps beyond the updates, per epoch
    test_logits: Tensor | None = None
    saver = Saver(state, origin, run, 60 * recipe.engine.checkpoint_minutes)
    show.begin(job.id, last_epoch * batches, state.epoch * batches + state.batch)

    with arithmetic(recipe.engine, device), signals.polled(), uncollected():
        while state.epoch < last_epoch:
            epoch = state.epoch
            drawn = balanced(labels, seed, epoch) if recipe.data.balance else order(images, seed, epoch, job.shuffled)
            sequence = drawn.to(device)  # [N]
            update.start_epoch(epoch, views(images, seed, epoch, recipe.augment).to(device))
            state.teacher_seconds = teacher_logits.seconds
            mark = time.perf_counter()
            for batch in range(state.batch, batches):
                index = sequence[batch * recipe.train.batch_size : (batch + 1) * recipe.train.batch_size]
                step = epoch * batches + batch
                update.set_rates(learning_rate(step, total, recipe.optim, extra=ahead * epoch), step)
                state.log[batch] = step_once(index)
                state.batch = batch + 1
                show.advance()
                turns.pass_on()
                if (saver.due() or signals.received()) and state.batch < batches:
                    require_finite(state, job)  # waits for the device, so the time below is that of the steps
                    state.epoch_seconds += time.perf_counter() - mark
                    saver.save()
                    mark = time.perf_counter()
                    signals.raise_if_received()

            with turns.away():
                log = state.log.cpu().tolist()  # the only synchronisation of the epoch
            state.epoch_seconds += time.perf_counter() - mark
            require_finite(state, job)
            try:
                test_logits = evaluate.logits(state.evaluated, data.test, norm)
                held_out = evaluate.logits(state.evaluated, data.validation, norm) if data.validation else None
            except Interrupted:
                saver.save()  # all batches of the epoch are trained; only the evaluation is missing
                raise
            rate = learning_rate((epoch + 1) * batches - 1, total, recipe.optim, extra=ahead * epoch)
            if not all(logits.isfinite().all() for logits in (test_logits, held_out) if logits is not None):
                raise non_finite(job, "an evaluated logit", f"epoch {epoch + 1}")
            row = summarise(state, log, images, rate, evaluate.score(test_logits, data.test.labels))
            if held_out is not None:
                row["validation"] = evaluate.score(held_out, data.validation.labels)
                choose(state, row, test_logits)
            run.append_metrics(row)
            state.seconds += state.epoch_seconds
            state.epoch, state.batch, state.epoch_seconds = epoch + 1, 0, 0.0
            if state.epoch == last_epoch or saver.worth_it() or signals.received():
                saver.save()
            show.epoch(job.id, row, last_epoch)
            if isinstance(step_once, Captured) and (seconds := step_once.capture_seconds) is not None:
                show.line(f"{job.id}: compiling the step and capturing it as a CUDA graph took {seconds:.1f} s")
                step_once.capture_seconds = None
            if isinstance(step_once, Captured) and step_once.refused:
                show.warn(f"{job.id}: no CUDA graph, steps run one by one: {step_once.refused}")
                step_once = update
            signals.raise_if_received()

        if test_logits is None:  # all epochs are trained, but a kill came before the result was written
            test_logits = evaluate.logits(state.evaluated, data.test, norm)
    return state, test_logits, norm


def on_device(data: Data, device: torch.device) -> Data:
    """The whole data set on the device, as uint8."""
    validation = data.validation.to(device) if data.validation is not None else None
    return replace(data, train=data.train.to(device), validation=validation, test=data.test.to(device))


def summarise(state: State, log: list[list[float]], images: int, rate: float, test: dict[str, float]) -> dict[str, Any]:
    """One line of metrics.jsonl. Losses are means over the steps of the epoch; accuracies are in percent."""
    total, hard, soft, correct = (math.fsum(column) for column in zip(*log, strict=True))
    steps = len(log)
    return {
        "epoch": state.epoch + 1,
        "step": (state.epoch + 1) * steps,
        "lr": rate,
        "loss": total / steps,
        "hard": hard / steps,
        "soft": soft / steps,
        "train_accuracy": round(100 * correct / images, 4),
        "validation": None,
        "test": test,
        "seconds": round(state.epoch_seconds, 3),
        "images_per_second": round(images / max(state.epoch_seconds, 1e-9), 1),
    }


def choose(state: State, row: dict[str, Any], test_logits: Tensor) -> None:
    """Keep the weights and test logits of the epoch with the best validation accuracy."""
    if not state.best or row["validation"]["accuracy"] > state.best["validation"]:
        state.best = {
            "epoch": row["epoch"],
            "validation": row["validation"]["accuracy"],
            "test": row["test"]["accuracy"],
        }
        weights = {f"weights.{name}": t.clone() for name, t in state.evaluated.state_dict().items()}
        state.best_tensors = weights | {"logits": evaluate.compact(test_logits)}


def require_finite(state: State, job: Job) -> None:
    """NonFiniteError, which names the step, if a loss or a weight is not finite. It costs one synchronisation."""
    losses = state.log[: state.batch, 0]
    bad = (~losses.isfinite()).nonzero()
    tensors = [t for t in (*state.model.parameters(), *state.model.buffers()) if t.is_floating_point()]
    norms = torch.stack(torch._foreach_norm(tensors))
    if len(bad) or not norms.isfinite().all():
        step = int(bad[0]) + 1 if len(bad) else state.batch
        where = f"epoch {state.epoch + 1}, step {step} of {len(state.log)}"
        raise non_finite(job, "the loss" if len(bad) else "a weight", where)


def non_finite(job: Job, what: str, where: str) -> NonFiniteError:
    optim, distill = job.recipe.optim, job.recipe.distill
    key = "weight" if hasattr(distill, "weight") else "temperature"
    taught = f"a lower distill.{key} (now {getattr(distill, key):g}), " if job.taught else ""
    return NonFiniteError(
        f"{job.id}: {what} became non-finite in {where}. Try a lower optim.lr (now {optim.lr:g}), a longer "
        f"optim.warmup (now {optim.warmup:g}), {taught}engine.precision=float32. The last good checkpoint is kept"
    )


def final_weights(state: State) -> nn.Module:
    """The final network of the run: of the epoch chosen on validation, or of the last epoch."""
    if not state.best_tensors:
        return state.evaluated
    model = copy.deepcopy(state.evaluated)
    model.load_state_dict(part_of(state.best_tensors, "weights"))
    return model
