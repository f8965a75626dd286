"""The engine against the obvious way: ratios of time and memory, all contestants taking turns in one run.

    python benchmarks/engine.py --json benchmarks/engine-cpu.json

Invariant: what is compared is measured in the same rounds on the same machine, and only ratios are claimed. "Plain
NCHW" is the network as its authors run it: every branch by itself, NCHW, torch's own SGD.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostcli import bench, zoo
from ghostcli.data import STATISTICS, Data, Images
from ghostcli.data.batches import order, views
from ghostcli.engine.device import describe, pick
from ghostcli.meter import MEBI, Meter, interleave, measured_apart, resident_peak, spread
from ghostcli.recipe.models import KD, DataSection
from ghostcli.zoo import kernels

Call = Callable[[], Any]
PATIENCE = 3600.0  # seconds a contestant may take in all: none is left out of a round
BASE = "plain NCHW"


@dataclass(frozen=True)
class Setting:
    """What everybody is given."""

    model: str
    batch: int
    device: torch.device
    rounds: int

    def images(self, channels_last: bool, batch: int | None = None) -> Tensor:
        x = torch.randn(batch or self.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(self.device)
        return x.to(memory_format=torch.channels_last) if channels_last else x

    def labels(self) -> Tensor:
        return torch.randint(10, (self.batch,), generator=torch.Generator().manual_seed(1)).to(self.device)


@dataclass(frozen=True)
class Contestant:
    """A way of taking one training step. `kernel` is what GHOST_KERNEL is set to while it runs."""

    make: Callable[[Setting], nn.Module]
    channels_last: bool = True
    fused: bool = True
    kernel: str = "auto"

    def step(self, setting: Setting) -> Call:
        """Forward, cross-entropy, backward, SGD on ready images, eagerly."""
        torch.manual_seed(0)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = self.make(setting).to(setting.device, memory_format=layout).train()
        x, y = setting.images(self.channels_last), setting.labels()
        options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
        optimizer = torch.optim.SGD(model.parameters(), **options, **({"fused": True} if self.fused else {}))

        def step() -> None:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def choose_kernel(self) -> None:
        os.environ["GHOST_KERNEL"] = self.kernel


def plain(setting: Setting) -> nn.Module:
    return zoo.build(setting.model, branches="plain")


def folded(setting: Setting) -> nn.Module:
    return zoo.build(setting.model, branches="folded")


def timm_blocks(setting: Setting) -> nn.Module:
    """timm's GhostNetV3 with this project's rows, stem stride and no dropout."""
    from timm.models.ghostnet import GhostNet

    from ghostcli.zoo.ghost import ROWS

    name = zoo.parse(setting.model)
    rows = [[list(row)] for row in ROWS[name.family]]
    net = GhostNet(rows, num_classes=10, width=name.width, drop_rate=0.0, version="v3")
    net.conv_stem.stride = (1, 1)
    return net


def contestants(device: torch.device) -> dict[str, Contestant]:
    """Those that can run here."""
    found = {
        BASE: Contestant(plain, channels_last=False, fused=False),
        "plain channels_last": Contestant(plain),
        "folded, no kernel": Contestant(folded, kernel="pytorch"),
        "folded, kernel": Contestant(folded),
        "timm NCHW": Contestant(timm_blocks, channels_last=False, fused=False),
        "timm channels_last": Contestant(timm_blocks),
    }
    if device.type == "cpu" and kernels.status()["name"] == "pytorch":
        del found["folded, kernel"]
    try:
        import timm.models.ghostnet as ghostnet
    except ImportError:
        ghostnet = None
    if not hasattr(ghostnet, "GhostModuleV3"):
        found = {name: one for name, one in found.items() if not name.startswith("timm")}
    return found


def compare(calls: dict[str, Call | Meter], base: str, setting: Setting) -> dict[str, Any]:
    """Time them in turns: seconds of each, and how many times faster than `base`, as ratios of the medians.

    The quartiles of a ratio are those of the rounds' own ratios.
    """
    warmup = 2 if setting.device.type == "cpu" else 6
    wait = bench.waiter(setting.device)
    meters = {
        name: call if isinstance(call, Meter) else Meter(call, wait, warmup=warmup, budget=PATIENCE)
        for name, call in calls.items()
    }
    interleave(list(meters.values()), setting.rounds, lambda: print(".", end="", file=sys.stderr, flush=True))
    print(file=sys.stderr)
    seconds = {name: meter.seconds for name, meter in meters.items() if not meter.problem}
    medians = {name: spread(values) for name, values in seconds.items()}
    found: dict[str, Any] = {"seconds": {name: vars(one) for name, one in medians.items()}, "times faster": {}}
    for name in seconds:
        if name != base:
            paired = spread([a / b for a, b in zip(seconds[base], seconds[name], strict=False)])
            ratio = medians[base].median / medians[name].median
            found["times faster"][f"{name} / {base}"] = {"ratio": ratio, "low": paired.low, "high": paired.high}
    return found


def meter_of(one: Contestant, call: Call, setting: Setting, warmup: int) -> Meter:
    wait = bench.waiter(setting.device)
    return Meter(call, wait, prepare=one.choose_kernel, warmup=warmup, budget=PATIENCE)


def steps(setting: Setting) -> dict[str, Any]:
    """One training step on ready images; on a GPU also as the engine captures it."""
    calls: dict[str, Call | Meter] = {}
    for name, one in contestants(setting.device).items():
        one.choose_kernel()
        calls[name] = meter_of(one, one.step(setting), setting, 2)
    os.environ["GHOST_KERNEL"] = "auto"
    if setting.device.type == "cuda":
        for precision in ("float32", "bfloat16"):
            recipe = bench.bench_recipe(setting.batch, precision=precision)
            update = bench.make_update(setting.model, recipe, bench.noise(setting.batch, 10), setting.device)
            run, index = bench.captured(update), torch.arange(setting.batch, device=setting.device)
            calls[f"captured, {precision}"] = lambda run=run, index=index: run(index)
    return compare(calls, BASE, setting)


def images_of(count: int | None) -> Data:
    """The first `count` images of CIFAR-10 (None: all); random ones, and a warning, where it is not here."""
    from ghostcli import data
    from ghostcli.data import data_root
    from ghostcli.data.cifar import archive, state

    if state(archive("cifar10"), data_root()) == "ready":
        return data.load(DataSection(limit=count, limit_test=1))
    print("CIFAR-10 is not here (ghost data fetch cifar10): the epoch is timed on random images", file=sys.stderr)
    return bench.noise(count or 50_000, 10)


class Pictures(torch.utils.data.Dataset):
    """Images one by one as PIL pictures through torchvision's transforms, as the authors' loader has them."""

    def __init__(self, images: Images, data: str) -> None:
        from torchvision import transforms

        self.pixels, self.labels = images.pixels.numpy(), images.labels.tolist()
        mean, std = STATISTICS[data]
        own = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*own, transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def epochs(setting: Setting, count: int | None) -> dict[str, Any]:
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
    epoch = iter(range(10**6))

    def ours() -> None:
        number = next(epoch)
        run.start_epoch(number, views(len(data.train), 0, number, update.recipe.augment).to(device))
        for index in order(len(data.train), 0, number).to(device).split(setting.batch):
            run(index)

    wait = bench.waiter(device)
    calls = {
        name: Meter(call, wait, warmup=1, budget=PATIENCE)
        for name, call in {f"{BASE}, 2 loader workers": theirs, "engine, resident data": ours}.items()
    }
    found = compare(calls, f"{BASE}, 2 loader workers", setting)
    return {"images": len(data.train), "data": data.name, **found}


def teaching(setting: Setting, folder: Path) -> dict[str, Any]:
    """The engine's update: alone, taught from a filled table, and by a ResNet-18 asked at every step."""
    from ghostcli.teach.teacher import Teacher

    data = bench.noise(setting.batch, 10)
    teacher_model = zoo.build("resnet18").to(setting.device, memory_format=torch.channels_last).eval()
    norm = (data.mean, data.std)
    teacher = Teacher("benchmark", "resnet18", folder, teacher_model.requires_grad_(False), norm, "benchmark")
    index = torch.arange(setting.batch, device=setting.device)
    recipe = bench.bench_recipe(setting.batch)
    calls: dict[str, Call | Meter] = {}
    for name, teachers, source in (
        ("untaught", (), "auto"),
        ("taught from a table", (teacher,), "table"),
        ("taught live", (teacher,), "live"),
    ):
        taught = recipe.model_copy(update={"distill": KD(source=source)})
        run = bench.captured(bench.make_update(setting.model, taught, data, setting.device, teachers))
        calls[name] = lambda run=run: run(index)
    return {"teacher": "resnet18", **compare(calls, "untaught", setting)}


def inference(setting: Setting, batch: int) -> dict[str, Any]:
    """A forward pass in eval mode: train form with its branches apart, and the deploy form."""
    train = bench.train_form(plain(setting)).to(setting.device)
    deployed = zoo.deploy(train)
    calls: dict[str, Call | Meter] = {}
    for name, model in (("train form", train), ("deploy form", deployed)):
        calls[f"{name} NCHW"] = bench.ask(copy.deepcopy(model), setting.images(False, batch))
        there = copy.deepcopy(model).to(memory_format=torch.channels_last)
        calls[f"{name} channels_last"] = bench.ask(there, setting.images(True, batch))
    found = compare(calls, "train form NCHW", setting)
    medians = {name: one["median"] for name, one in found["seconds"].items()}
    like = medians["train form channels_last"] / medians["deploy form channels_last"]
    found["times faster"]["deploy form channels_last / train form channels_last"] = {"ratio": like}
    return found


def memory(setting: Setting) -> dict[str, Any]:
    """Peak memory of one training step in MiB, each contestant in a process of its own, as shares of plain NCHW."""
    found: dict[str, float] = {}
    for name, one in contestants(setting.device).items():
        one.choose_kernel()
        command = [sys.executable, __file__, "--peak", name, "--model", setting.model]
        command += ["--batch", str(setting.batch), "--device", str(setting.device)]
        peak, problem = measured_apart(command, f"batch {setting.batch}")
        print(f"  {name}: {problem or f'{peak:.0f} MiB'}", file=sys.stderr)
        if peak is not None:
            found[name] = peak
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

    if setting.device.type != "cuda":
        return resident_peak(work)
    before = torch.cuda.memory_allocated(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    work()
    return (torch.cuda.max_memory_allocated(setting.device) - before) / MEBI


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
        "kernel": kernels.status()["name"],
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
        parts: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
            "step": ("one training step", lambda: steps(setting)),
            "epoch": ("one epoch", lambda: epochs(fewer, count)),
            "teaching": ("one training step, taught", lambda: teaching(setting, Path(folder))),
            "inference": (f"inference, batch {setting.batch}", lambda: inference(setting, setting.batch)),
            "latency": ("inference, batch 1", lambda: inference(setting, 1)),
            "memory": ("peak memory of a training step", lambda: memory(setting)),
        }
        print(f"{setting.model}, batch {setting.batch}, {report['machine']['device']}, torch {torch.__version__}")
        for name, (title, part) in parts.items():
            report[name] = part()
            show(title, report[name])
            if asked.json:
                asked.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
