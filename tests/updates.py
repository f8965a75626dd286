"""The engine's own update on small random images, for tests of one step and of several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ghostcli import plan, zoo
from ghostcli.data import Data
from ghostcli.data.batches import order, views
from ghostcli.deploy import bench
from ghostcli.distill.teacher import Teacher
from ghostcli.engine import step, train
from ghostcli.engine.capture import Captured
from ghostcli.recipe.models import DistillSection, OptimSection, Recipe

IMAGES, BATCH = 36, 8  # the last of five batches is a short one
#: Ways of being taught, by how many teachers.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (0, {}),
    "from a table": (1, {}),
    "live": (1, {"source": "live"}),
    "dkd": (1, {"kind": "dkd", "warmup_epochs": 3}),
    "dense": (2, {"dense": True, "drop": 1}),
    "patches": (1, {"view": "patch"}),
    "hints": (1, {"kind": "hint"}),
    "adaptive": (2, {"weighting": "adaptive"}),
    "blind": (1, {"blind": True}),
    "blind, live": (1, {"blind": True, "source": "live"}),
    "blind patches": (1, {"blind": True, "view": "patch"}),
    "blind hints": (1, {"blind": True, "kind": "hint"}),
}


def recipe_of(way: str = "alone", ema: float = 0.9, optim: str = "sgd", **engine: Any) -> Recipe:
    recipe = bench.bench_recipe(BATCH, **{"deterministic": True, **engine})
    distill = TypeAdapter(DistillSection).validate_python({"kind": "kd", **WAYS[way][1]})
    changes = {"distill": distill, "train": recipe.train.model_copy(update={"ema": ema})}
    if optim != "sgd":
        changes["optim"] = TypeAdapter(OptimSection).validate_python({"name": optim})
    return recipe.model_copy(update=changes)


def teachers_of(way: str, data: Data, folder: Path, device: torch.device) -> list[Teacher]:
    """Untrained, each with a table of its own below `folder`."""
    found = []
    for number in range(WAYS[way][0]):
        torch.manual_seed(number)
        model = zoo.build("gns:0.2").to(device, memory_format=torch.channels_last).requires_grad_(False)
        model(torch.randn(32, 3, 32, 32).to(device))  # running statistics of its own
        norm = (data.mean, data.std)
        found.append(Teacher(f"t{number}", "gns:0.2", folder / str(number), model.eval(), norm, f"{number}"))
    return found


def made(
    way: str, folder: Path, device: torch.device, student: str = "gns:0.1", **engine: Any
) -> tuple[train.State, step.Update]:
    """A student at its start and its update, the data on `device`."""
    data = train.on_device(bench.noise(IMAGES, 10), device)
    recipe, teachers = recipe_of(way, **engine), teachers_of(way, data, folder, device)
    job = replace(plan.plain(student, 0, recipe, "test"), recipe=recipe)  # a plain job has no [distill] of its own
    state = train.make_state(job, data, teachers, device)
    return state, train.make_update(recipe, state, data, teachers, 0)


def run(once: step.Update | Captured, first: int, last: int, before: Callable[[int], Any] | None = None) -> Tensor:
    """Updates `first` to `last` (from 0) of the training that the loop would do: their results [steps, 4]."""
    update = once.update if isinstance(once, Captured) else once
    results, epoch = [], None
    with train.arithmetic(update.recipe.engine, update.device):
        for number in range(first, last):
            if number // update.batches != epoch:
                epoch = number // update.batches
                sequence = order(IMAGES, 0, epoch).to(update.device)
                update.start_epoch(epoch, views(IMAGES, 0, epoch, update.recipe.augment).to(update.device))
            within = number % update.batches
            index = sequence[within * BATCH : (within + 1) * BATCH]
            with before(number) if before else contextlib.nullcontext():
                update.set_rates(0.01 * (number + 1), number)
                results.append(once(index))
    return torch.stack(results)


def weights(model: nn.Module) -> Tensor:
    """All parameters and running statistics, one after another, in float64 on the CPU."""
    return torch.cat([t.detach().double().flatten().cpu() for t in model.state_dict().values()])
