"""The engine against the obvious way: ratios of time and memory, all contestants taking turns in one run.

    python benchmarks/engine.py --json benchmarks/engine-cpu.json

Invariant: what is compared is measured in the same rounds on the same machine under the engine's arithmetic, and only
ratios are claimed; every round is written down when it is over. "Plain NCHW" is the network as its authors run it:
every branch by itself, NCHW, torch's own SGD.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contestants import BASE, Call, Setting, contestants, plain
from ghostcli import zoo
from ghostcli.data import SETS, Data, Images
from ghostcli.data.batches import order, views
from ghostcli.deploy import bench
from ghostcli.deploy.timer import Meter, interleave, measured_apart, resident_peak, spread
from ghostcli.engine.device import arithmetic, describe, pick, uncollected
from ghostcli.recipe.models import KD, DataSection, EngineSection
from ghostcli.records.storage import write_json
from ghostcli.zoo import kernels

Keep = Callable[[dict[str, Any]], None]
PATIENCE = 3600.0  # seconds a contestant may take in all: none is left out of a round


def compare(calls: dict[str, Call | Meter], base: str, setting: Setting, keep: Keep) -> dict[str, Any]:
    """Time them in turns: seconds of each, and how many times faster than `base`, as ratios of the medians.

    The quartiles of a ratio are those of the rounds' own ratios. `keep` is handed what is known after each round.
    """
    warmup = 2 if setting.device.type == "cpu" else 6
    wait = bench.waiter(setting.device)
    meters = {
        name: call if isinstance(call, Meter) else Meter(call, wait, warmup=warmup, budget=PATIENCE)
        for name, call in calls.items()
    }
    turns = itertools.count(1)

    def turn() -> None:
        print(".", end="", file=sys.stderr, flush=True)
        rounds, within = divmod(next(turns), len(meters))
        if rounds > 1 and not within:  # the first round is the warm-up
            keep(ratios(meters, base))

    with arithmetic(EngineSection(), setting.device), uncollected():  # as in the training loop
        interleave(list(meters.values()), setting.rounds, turn)
    print(file=sys.stderr)
    return ratios(meters, base)


def ratios(meters: dict[str, Meter], base: str) -> dict[str, Any]:
    seconds = {name: meter.seconds for name, meter in meters.items() if meter.seconds and not meter.problem}
    medians = {name: spread(values) for name, values in seconds.items()}
    found: dict[str, Any] = {"seconds": {name: vars(one) for name, one in medians.items()}, "times faster": {}}
    for name in seconds:
        if name != base and base in seconds:
            paired = spread([a / b for a, b in zip(seconds[base], seconds[name], strict=False)])
            ratio = medians[base].median / medians[name].median
            found["times faster"][f"{name} / {base}"] = {"ratio": ratio, "low": paired.low, "high": paired.high}
    return found


def steps(setting: Setting, keep: Keep) -> dict[str, Any]:
    """One training step on ready images; on a GPU also as the engine captures it."""
    calls: dict[str, Call | Meter] = {}
    for name, one in contestants(setting.device).items():
        one.choose_kernel()
        wait = bench.waiter(setting.device)
        calls[name] = Meter(one.step(setting), wait, prepare=one.choose_kernel, budget=PATIENCE)
    os.environ["GHOST_KERNEL"] = "auto"
    if setting.device.type == "cuda":
        for precision in ("float32", "bfloat16"):
            recipe = bench.bench_recipe(setting.batch, precision=precision)
            update = bench.make_update(setting.model, recipe, bench.noise(setting.batch, 10), setting.device)
            step, index = bench.stepper(bench.captured(update)), torch.arange(setting.batch, device=setting.device)
            calls[f"captured, {precision}"] = lambda step=step, index=index: step(index)
    return compare(calls, BASE, setting, keep)


def images_of(count: int | None) -> Data:
    """The first `count` images of CIFAR-10 (None: all); random ones, and a warning, where it is not here."""
    from ghostcli import data
    from ghostcli.data import data_root

    if SETS["cifar10"].state(data_root()) == "ready":
        return data.load(DataSection(limit=count, limit_test=1))
    print("CIFAR-10 is not here (ghost data fetch cifar10): the epoch is timed on random images", file=sys.stderr)
    return bench.noise(count or 50_000, 10)


class Pictures(torch.utils.data.Dataset):
    """Images one by one as PIL pictures through torchvision's transforms, as the authors' loader has them."""

    def __init__(self, images: Images, data: str) -> None:
        from torchvision import transforms

        self.pixels, self.labels = images.pixels.numpy(), images.labels.tolist()
        mean, std = SETS[data].statistics
        own = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*own, transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def epochs(setting: Setting, count: int | None, keep: Keep) -> dict[str, Any]:
    """A whole epoch of training: loader and plain NCHW, against resident data and the engine's update."""
    data = images_of(count)
    device = setting.device
    torch.manual_seed(0)
    model = plain(setting).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01)
    loader = torch.utils.data.DataLoader(
        Pictures(data.train, "cifar10"),
        setting.batch,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def theirs() -> None:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    update = bench.make_update(setting.model, bench.bench_recipe(setting.batch), data, device)
    run = bench.captured(update)
    step = bench.stepper(run)
    epoch = iter(range(10**6))

    def ours() -> None:
        number = next(epoch)
        update.start_epoch(number, views(len(data.train), 0, number, update.recipe.augment).to(device))
        for index in order(len(data.train), 0, number).to(device).split(setting.batch):
            step(index)

    wait = bench.waiter(device)
    calls = {
        name: Meter(call, wait, warmup=1, budget=PATIENCE)
        for name, call in {f"{BASE}, 2 loader workers": theirs, "engine, resident data": ours}.items()
    }
    about = {"images": len(data.train), "data": data.name}
    return about | compare(calls, f"{BASE}, 2 loader workers", setting, lambda found: keep(about | found))


def teaching(setting: Setting, folder: Path, keep: Keep) -> dict[str, Any]:
    """The engine's update: alone, taught from a filled table, and by a ResNet-18 asked at every step."""
    from ghostcli.distill.teacher import Teacher

    data = bench.noise(setting.batch, 10)
    teacher_model = zoo.deploy(zoo.build("resnet18")).to(setting.device, memory_format=torch.channels_last)
    norm = (data.mean, data.std)
    teacher = Teacher("benchmark", "resnet18", folder, teacher_model, norm, "benchmark")
    index = torch.arange(setting.batch, device=setting.device)
    recipe = bench.bench_recipe(setting.batch)
    calls: dict[str, Call | Meter] = {}
    for name, teachers, source in (
        ("untaught", (), "auto"),
        ("taught from a table", (teacher,), "table"),
        ("taught live", (teacher,), "live"),
    ):
        taught = recipe.model_copy(update={"distill": KD(source=source)})
        update = bench.make_update(setting.model, taught, data, setting.device, teachers)
        step = bench.stepper(bench.captured(update))
        calls[name] = lambda step=step: step(index)
    about = {"teacher": "resnet18"}
    return about | compare(calls, "untaught", setting, lambda found: keep(about | found))


def inference(setting: Setting, batch: int, keep: Keep) -> dict[str, Any]:
    """A forward pass in eval mode: train form with its branches apart, and the deploy form."""
    train = bench.train_form(plain(setting)).to(setting.device)
    deployed = zoo.deploy(train)
    calls: dict[str, Call | Meter] = {}
    for name, model in (("train form", train), ("deploy form", deployed)):
        calls[f"{name} NCHW"] = bench.ask(copy.deepcopy(model), setting.images(False, batch))
        there = copy.deepcopy(model).to(memory_format=torch.channels_last)
        calls[f"{name} channels_last"] = bench.ask(there, setting.images(True, batch))
    found = compare(calls, "train form NCHW", setting, keep)
    medians = {name: one["median"] for name, one in found["seconds"].items()}
    like = medians["train form channels_last"] / medians["deploy form channels_last"]
    found["times faster"]["deploy form channels_last / train form channels_last"] = {"ratio": like}
    return found


def memory(setting: Setting, keep: Keep) -> dict[str, Any]:
    """Peak memory of one training step in MiB, each contestant in a process of its own, as shares of plain NCHW."""
    found: dict[str, float] = {}
    for name, one in contestants(setting.device).items():
        one.choose_kernel()
        command = [sys.executable, __file__, "--peak", name, "--model", setting.model]
        command += ["--batch", str(setting.batch), "--device", str(setting.device)]
        peak, problem = measured_apart(command, f"a training step at batch {setting.batch}")
        print(f"  {name}: {problem or f'{peak:.0f} MiB'}", file=sys.stderr)
        if peak is not None:
            found[name] = peak
            keep({"MiB": found})
    os.environ["GHOST_KERNEL"] = "auto"
    shares = {f"{name} / {BASE}": round(peak / found[BASE], 3) for name, peak in found.items() if name != BASE}
    return {"MiB": found, "share": shares}


def peak_of(name: str, setting: Setting) -> float:
    """MiB that two steps of one contestant need. The body of a process of its own."""
    one = contestants(setting.device)[name]
    small = Setting("gns:0.25", 4, setting.device, 1)
    one.step(small)()  # what is loaded at first use is no part of a step

    def work() -> None:
        step = one.step(setting)
        step()
        step()

    with arithmetic(EngineSection(), setting.device):
        if setting.device.type != "cuda":
            return resident_peak(work)
        return bench.cuda_peak(work, setting.device)


def machine(device: torch.device) -> dict[str, Any]:
    import torchvision

    return {
        "device": describe(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "kernel": kernels.status(device.type)["name"],
    }


def show(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, one in found.get("seconds", {}).items():
        quartiles = f"[{1000 * one['low']:.1f}, {1000 * one['high']:.1f}]"
        print(f"  {name:34} {1000 * one['median']:10.1f} ms  {quartiles}, n = {one['n']}")
    for name, one in found.get("times faster", {}).items():
        quartiles = f"  [{one['low']:.2f}, {one['high']:.2f}]" if "low" in one else ""
        print(f"  {name:64} {one['ratio']:6.2f} x{quartiles}")
    for name, peak in found.get("MiB", {}).items():
        print(f"  {name:34} {peak:10.0f} MiB")
    for name, share in found.get("share", {}).items():
        print(f"  {name:64} {share:6.2f} x the memory")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which all take turns (epochs: 3 at most)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--model", default="gns:1.0", help="gns:WIDTH or gnd:WIDTH")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, help="in the timed epoch (default: 5120 on a CPU, all on a GPU)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if min(asked.rounds, asked.batch, asked.images or 1) < 1:
        parser.error("--rounds, --batch and --images: need 1 or more")
    warnings.filterwarnings("ignore", category=UserWarning)
    device = pick(asked.device)
    setting = Setting(zoo.canonical(asked.model), asked.batch, device, asked.rounds)
    if asked.peak:
        print(round(peak_of(asked.peak, setting), 1))
        return

    report: dict[str, Any] = {
        "machine": machine(device),
        "date": time.strftime("%Y-%m-%d"),
        "model": setting.model,
        "batch": setting.batch,
        "rounds": setting.rounds,
    }
    fewer = Setting(setting.model, setting.batch, device, min(setting.rounds, 3))
    count = asked.images or (5120 if device.type == "cpu" else None)
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, tuple[str, Callable[[Keep], dict[str, Any]]]] = {
            "step": ("one training step", lambda keep: steps(setting, keep)),
            "epoch": ("one epoch", lambda keep: epochs(fewer, count, keep)),
            "teaching": ("one training step, taught", lambda keep: teaching(setting, Path(folder), keep)),
            "inference": (f"inference, batch {setting.batch}", lambda keep: inference(setting, setting.batch, keep)),
            "latency": ("inference, batch 1", lambda keep: inference(setting, 1, keep)),
            "memory": ("peak memory of a training step", lambda keep: memory(setting, keep)),
        }

        def write(name: str, found: dict[str, Any]) -> None:
            report[name] = found
            if asked.json:
                write_json(asked.json, report)

        print(f"{setting.model}, batch {setting.batch}, {report['machine']['device']}, torch {torch.__version__}")
        for name, (title, part) in parts.items():
            write(name, part(functools.partial(write, name)))
            show(title, report[name])


if __name__ == "__main__":
    main()
