"""What a network costs: parameters, multiply-accumulates, speed and memory, in train and in deploy form.

Invariant: a speed is a median over rounds in which all networks take turns, so that a machine's drift hits them
alike, with its spread and its number of rounds; a figure that could not be had is None and the row says why.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghostcli import plan
from ghostcli.deploy.timer import MEBI, Meter, interleave, latency, measured_apart, resident_peak, short, spread
from ghostcli.errors import UsageError
from ghostcli.recipe.models import EngineSection, ModelSection, Recipe, TrainSection
from ghostcli.records import record, trained
from ghostcli.zoo import names, own

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ghostcli.data import Data
    from ghostcli.engine.capture import Captured
    from ghostcli.engine.step import Update
    from ghostcli.render.figures import Point

SIDE = 32  # pixels of the images for a network that no run has trained on others


@dataclass(frozen=True)
class Network:
    """A network to be measured: `label` as asked for (`run/ID`), `model` the name it is built by.

    `side`: pixels of its images, those of its training. A network with a size of its own enlarges them itself.
    """

    label: str
    model: str
    classes: int
    side: int = SIDE


def resolve(asked: Iterable[str], classes: int, runs: Path) -> list[Network]:
    """The networks that names and run ids stand for; UsageError for an unknown or unfinished one."""
    networks = []
    for name in asked:
        parsed = names.parse(name)
        if parsed.family != "trained":
            networks.append(Network(plan.network(name), parsed.canonical, classes))
            if parsed.family == "py":
                own.check(parsed.canonical, classes, SIDE)
            continue
        run = trained.find(runs, name)
        if run.result is None:
            raise UsageError(f"{run.id}: cannot be measured, {run.problem}; finish it, or name its network")
        result, data = run.result, run.result.recipe.data
        if names.is_own(result.student) and own.checksum(result.student) != result.source:
            raise UsageError(
                f"{run.id}: its network's source has changed; to measure it as it is now, type ghost bench "
                f"{result.student}"
            )
        networks.append(Network(trained.named(run.id), result.student, result.classes, data.side))
    return networks


def count(network: Network) -> dict[str, Any]:
    """Parameters and MACs of both forms, for one image of its training's size or of the network's native size."""
    from ghostcli import zoo

    model = zoo.build_shapes(network.model, network.classes)
    deployed = zoo.deploy(model)
    side = model.spec.input_size or network.side
    return {
        "model": network.label,
        "image_size": network.side,
        "parameters": zoo.count_parameters(model),
        "deploy_parameters": zoo.count_parameters(deployed),
        "macs": zoo.count_macs(deployed, (3, side, side)),
        "train_macs": zoo.count_macs(model, (3, side, side)),
    }


def bench_recipe(batch: int, **engine: Any) -> Recipe:
    """The paper's training step at this batch, without a download."""
    return Recipe(
        train=TrainSection(batch_size=batch),
        model=ModelSection(pretrained=False),
        engine=EngineSection(**engine),
    )


def noise(images: int, classes: int, side: int = SIDE) -> Data:
    """A data set of random pixels and labels, for what depends on shapes alone."""
    import torch

    from ghostcli.data import SETS, Data, Images

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, side, side, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    drawn = Images(pixels, labels)
    mean, std = SETS["cifar10"].statistics
    return Data("noise", tuple(map(str, range(classes))), drawn, None, drawn, mean, std, "noise")


def make_update(model: str, recipe: Recipe, data: Data, device: torch.device, teachers: Sequence[Any] = ()) -> Update:
    """The engine's own update of a student at its start, on `data`, with its first epoch begun."""
    from ghostcli.data.batches import views
    from ghostcli.engine import train

    data = train.on_device(data, device)
    state = train.make_state(plan.plain(model, 0, recipe, "bench"), data, teachers, device)
    update = train.make_update(recipe, state, data, teachers, 0)
    update.start_epoch(0, views(len(data.train), 0, 0, recipe.augment).to(device))
    return update


def captured(update: Update) -> Update | Captured:
    """The update as the engine runs it: replayed as a graph where the device has graphs."""
    from ghostcli.engine.capture import Captured, why_eager

    return update if why_eager(update) else Captured(update, update.recipe.train.batch_size)


def stepper(run: Update | Captured) -> Callable[[Tensor], Tensor]:
    """What the engine's loop does for one batch of images, to be called under the engine's `arithmetic`."""
    from ghostcli.engine.capture import Captured

    update = run.update if isinstance(run, Captured) else run
    numbers = itertools.count()

    def step(index: Tensor) -> Tensor:
        update.set_rates(0.01, next(numbers))
        return run(index)

    return step


def training_speed(
    student: str,
    batch: int,
    device: torch.device,
    seconds: float,
    ready: Callable[[], None] = lambda: None,
    side: int = SIDE,
) -> float:
    """Images per second of training steps on noise of `side` pixels.

    A few steps warm up; after `ready` the others go on for `seconds`. At least three steps count.
    """
    import torch

    from ghostcli.engine.device import arithmetic

    recipe = bench_recipe(batch)
    with arithmetic(recipe.engine, device):
        step = stepper(captured(make_update(student, recipe, noise(batch, 10, side), device)))
        index, wait = torch.arange(batch, device=device), waiter(device)
        for _ in range(4 if device.type == "cuda" else 2):
            step(index)
        wait()
        ready()
        began, steps = time.perf_counter(), 0
        while steps < 3 or time.perf_counter() - began < seconds:
            step(index)
            wait()
            steps += 1
        return steps * batch / (time.perf_counter() - began)


def train_form(model: nn.Module) -> nn.Module:
    """A copy in eval mode with its branches apart, each of them run."""
    from ghostcli.zoo.branches import RepConv

    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, RepConv):
            module.mode = "plain"
    return model


def ask(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """One forward pass without gradients, to be timed."""
    import torch

    def call() -> None:
        with torch.inference_mode():
            model(images)

    return call


def waiter(device: torch.device) -> Callable[[], None]:
    """What waits until `device` has done all it was told."""
    import torch

    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def measure(
    networks: Sequence[Network],
    batch: int,
    device: torch.device,
    rounds: int,
    step: Callable[[str], None] = lambda note: None,
) -> list[dict[str, Any]]:
    """Speeds of all networks, interleaved, under the engine's arithmetic, and the memory of their training steps; a
    dict a network.

    Throughputs in images a second at `batch`, latencies in milliseconds at batch 1, memory in MiB.
    """
    from ghostcli.engine.device import arithmetic
    from ghostcli.engine.train import require_room

    for network in networks:
        require_room(network.model, network.classes, device)
    rows: list[dict[str, Any]] = []
    meters: list[dict[str, Meter]] = []
    for network in networks:
        step(f"{network.label}: memory")
        memory, problem = training_peak(network, batch, device)
        rows.append({"device": str(device), "batch": batch, "peak_memory_mb": memory, "note": problem})
        step(f"{network.label}: building")
        meters.append(_meters(network, batch, device, train=problem is None))
    with arithmetic(EngineSection(), device):
        interleave([meter for each in meters for meter in each.values()], rounds, lambda: step("timing"))
    for row, each in zip(rows, meters, strict=True):
        row |= _figures(each, batch)
        row["note"] = row["note"] or next((meter.problem for meter in each.values() if meter.problem), None)
    return rows


THROUGHPUTS = ("train_images_per_second", "images_per_second", "deploy_images_per_second")
LATENCIES = ("train_latency_ms", "latency_ms")
FIGURES = THROUGHPUTS + LATENCIES


def _meters(network: Network, batch: int, device: torch.device, train: bool) -> dict[str, Meter]:
    import torch

    from ghostcli import zoo

    side = network.side
    update = make_update(network.model, bench_recipe(batch), noise(batch, network.classes, side), device)
    step, index = stepper(captured(update)), torch.arange(batch, device=device)
    apart = train_form(update.model)
    deployed = zoo.laid_out(zoo.deploy(apart))
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    one = images[:1].clone(memory_format=torch.channels_last)
    calls = {
        "train_images_per_second": lambda: step(index),
        "images_per_second": ask(apart, images),
        "deploy_images_per_second": ask(deployed, images),
        "train_latency_ms": ask(apart, one),
        "latency_ms": ask(deployed, one),
    }
    if not train:
        del calls["train_images_per_second"]
    warmup = 2 if device.type == "cpu" else 6  # a captured step is eager for its first calls
    wait = waiter(device)
    return {name: Meter(call, wait, apart=name in LATENCIES, warmup=warmup) for name, call in calls.items()}


def _figures(meters: dict[str, Meter], batch: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(FIGURES)
    spreads: dict[str, Any] = dict.fromkeys(FIGURES)
    for name, meter in meters.items():
        if seconds := meter.seconds:
            summary = spread([1000 * s if name in LATENCIES else batch / s for s in seconds])
            row[name] = latency(seconds) if name in LATENCIES else short(summary.median)
            spreads[name] = {"low": short(summary.low), "high": short(summary.high), "n": summary.n}
    return row | {"spread": spreads}


def training_peak(network: Network, batch: int, device: torch.device) -> tuple[float | None, str | None]:
    """(peak memory of a training step in MiB, None) or (None, why it could not be had).

    All that training needs beyond the program: weights, gradients, momentum, activations. On a GPU as its
    allocator counts; elsewhere as the rise of a fresh process's resident memory.
    """
    if device.type != "cpu":
        return _device_peak(network, batch, device)
    work = {"network": asdict(network), "batch": batch}
    return measured_apart(
        [sys.executable, "-m", "ghostcli.deploy.bench", json.dumps(work)], f"a training step at batch {batch}"
    )


def _device_peak(network: Network, batch: int, device: torch.device) -> tuple[float | None, str | None]:
    import torch

    if device.type != "cuda":
        return None, None
    try:
        return round(cuda_peak(lambda: two_steps(network, batch, device), device), 1), None
    except torch.OutOfMemoryError:
        return None, f"a training step at batch {batch} does not fit into memory"
    finally:
        torch.cuda.empty_cache()


def cuda_peak(work: Callable[[], None], device: torch.device) -> float:
    """MiB by which the memory that torch has allocated on a GPU rose at most while `work` ran."""
    import torch

    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / MEBI


def two_steps(network: Network, batch: int, device: torch.device) -> None:
    """A step of two images, which makes the momentum, then one of the whole batch, eagerly."""
    import torch

    from ghostcli.engine.device import arithmetic

    recipe = bench_recipe(batch)
    data = noise(batch, network.classes, network.side)
    step = stepper(make_update(network.model, recipe, data, device))
    with arithmetic(recipe.engine, device):
        for size in (min(2, batch), batch):
            step(torch.arange(size, device=device))


def points(rows: Sequence[dict[str, Any]], runs: Path) -> list[Point]:
    """Accuracy against deploy-form MACs of every run group whose student was measured."""
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.groups import cohorts
    from ghostcli.paper import label
    from ghostcli.render.figures import Point

    cost = {row["model"]: row["macs"] / 1e6 for row in rows}
    group_points = []
    for cohort in cohorts(admit(record.scan(runs)).runs):
        for group in cohort.groups:
            names_of = [group.student, *(f"run/{run.id}" for run in group.runs)]
            macs = next((cost[name] for name in names_of if name in cost), None)
            if macs is not None:
                summary = group.summary()
                series = f"{group.strategy} ({group.family}: {cohort.describe()})"
                group_points.append(Point(label(group.student), macs, summary.mean, summary.sd, series))
    return group_points


def _main(argument: str) -> None:
    """The body of the process that `training_peak` measures in."""
    import torch

    request = json.loads(argument)
    cpu = torch.device("cpu")
    two_steps(Network("", "gns:0.25", 10), 4, cpu)  # what is loaded at first use is no part of a step
    print(round(resident_peak(lambda: two_steps(Network(**request["network"]), request["batch"], cpu)), 1))


if __name__ == "__main__":
    _main(sys.argv[1])
