"""Run directories made by hand, for the report's tests: real files, invented numbers."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ghostcli.plan import Finished, Job
from ghostcli.recipe import Recipe, digest, load
from ghostcli.recipe.digest import SEMANTICS

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PARAMETERS = {"gns:1.0": 483_554, "gns:2.8": 2_426_850, "gnd:1.0": 6_860_838}


def scores(
    accuracy: float, seed: int, n: int = 1000, classes: int = 10, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] that are right on `accuracy` percent of the images, hard images hard for every seed."""
    labels = np.arange(n) % classes
    ease = np.random.default_rng(7).normal(size=n) + noise * np.random.default_rng(seed + 100).normal(size=n)
    right = np.argsort(np.argsort(-ease)) < round(n * accuracy / 100)
    choice = np.where(right, labels, (labels + 1 + np.arange(n) % (classes - 1)) % classes)
    logits = np.random.default_rng([seed, round(100 * accuracy)]).normal(size=(n, classes))
    logits[np.arange(n), choice] += 8 + ease - ease.min() / 2
    return logits.astype(np.float16), labels.astype(np.int64)


def write_run(
    runs: Path,
    student: str = "gns:1.0",
    strategy: str = "plain",
    teachers: tuple[str, ...] = (),
    seed: int = 0,
    accuracy: float = 91.0,
    *,
    family: str = "paper",
    recipe_name: str | None = None,
    data: str = "cifar10",
    epochs: int = 200,
    train_images: int = 50_000,
    limit: int | None = None,
    validation: int = 0,
    status: str = "done",
    error: str | None = None,
    predictions: bool = True,
    test_images: int = 1000,
    teacher_runs: tuple[str, ...] = (),
    planned: tuple[int, ...] = (),
    best: float | None = None,
    best_epoch: int | None = None,
    environment: dict[str, Any] | None = None,
    data_checksum: str | None = None,
    sections: dict[str, dict[str, Any]] | None = None,
    distill: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    **result: Any,
) -> str:
    """Write one run; returns its id. `result` overrides keys of result.json, `sections` values of the recipe.

    `best` is the accuracy of its best test epoch, which is not the last.
    """
    recipe = shipped(family)
    recipe["data"] |= {"name": data, "limit": limit, "validation": validation}
    recipe["train"] |= {"epochs": epochs, "batch_size": 256, "label_smoothing": 0.0, **(train or {})}
    if (distill or {}).get("kind", "kd") != "kd":
        recipe["distill"] = distill_defaults(distill["kind"])
    recipe["distill"] |= {"alpha": 0.5, "temperature": 1.0, "shuffle": True, **(distill or {})}
    for section, values in (sections or {}).items():
        recipe[section] |= values
    resolved = Recipe.model_validate(recipe)
    described = taught_by(strategy, teachers, teacher_runs)
    finished = tuple(
        Finished(
            one["run"],
            one["network"],
            one["seed"],
            digest_of(runs, one["run"]),
            (*one["path"], one["network"]),
            10,
            digest_of(runs, one["run"], "group"),
        )
        for one in described
    )
    job = Job(student, seed, resolved, recipe_name or family, finished)
    run = f"{slug(student)}-{strategy}-{job.digest[:8]}/s{seed}"
    folder = runs / run
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"status": status, "error": error, "host": "elsewhere"}))
    setup = {
        "schema": 2, "semantics": SEMANTICS, "run": run, "student": student, "seed": seed, "strategy": strategy,
        "teachers": described, "recipe_name": recipe_name or family, "digest": job.digest, "protocol": job.protocol,
        "group": job.group, "planned": planned, "command": [], "recipe": resolved.model_dump(mode="json"),
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(setup))
    logits, labels = scores(accuracy, seed, test_images)
    right = logits.argmax(1) == labels
    measured = 100 * float(np.mean(right))
    top = measured + 0.2 if best is None else best
    best_epoch = best_epoch or max(1, epochs - 5)
    rows = [_epoch(i + 1, epochs, measured) for i in range(epochs)]
    rows[best_epoch - 1]["test"]["accuracy"] = top if best_epoch < epochs else measured
    rows = [row if row["epoch"] in (best_epoch, epochs) else _at_most(row, min(top, measured)) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status != "done":
        return run
    tops = {"last": measured, "best": max(row["test"]["accuracy"] for row in rows), "best_epoch": best_epoch}
    chosen = {"selected": measured, "selected_epoch": epochs, "selected_by": "validation" if validation else "last"}
    made = {
        "ghost": "0", "commit": None, "python": "3", "platform": "any", "torch": "2", "torchvision": "0", "numpy": "2",
        "device": "a CPU", "device_type": "cpu", "threads": 1, "kernel": "pytorch",
        "data_checksum": data_checksum or sha(data, train_images), **(environment or {}),
    }  # fmt: skip
    files = {"model.safetensors": sha(run)}
    if predictions:
        np.savez(folder / "predictions.npz", logits=logits, labels=labels)
        files["predictions.npz"] = hashlib.sha256((folder / "predictions.npz").read_bytes()).hexdigest()
    content = {
        **setup, "environment": made, "start": "kaiming", "parameters": PARAMETERS.get(student, 1_000_000),
        "classes": 10, "class_names": CLASSES if data == "cifar10" else [],
        "train_images": train_images, "validation_images": validation, "test_images": test_images,
        "epochs": epochs, "accuracy": {**tops, **chosen}, "nll": 0.31,
        "test": answers(logits, labels) if predictions else None, "agreement": {t: 93.0 for t in teachers[-1:]},
        "seconds": 4380.0, "train_seconds": 3600.0, "teacher_seconds": 0.0, "check": [], "notes": [], "files": files,
        **result,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content))
    edit(folder / "result.json")
    return run


def answers(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What result.json keeps of the test images."""
    right = logits.argmax(1) == labels
    exact = np.asarray(logits, dtype=np.float64)
    shares = np.exp(exact - exact.max(1, keepdims=True))
    sure = (shares / shares.sum(1, keepdims=True)).max(1)
    parts = [(sure > k / 15) & (sure <= (k + 1) / 15) for k in range(15)]
    ece = sum(abs(sure[part].sum() - right[part].sum()) for part in parts) / len(labels)
    correct = base64.b64encode(np.packbits(right).tobytes()).decode()
    about = {"images": len(labels), "labels": sha(labels.tolist()), "answered": len(np.unique(logits.argmax(1)))}
    return {**about, "correct": correct, "ece": float(ece)}


def replace_predictions(folder: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Give a run other test logits and labels, and all that follows from them."""
    np.savez(folder / "predictions.npz", logits=logits, labels=labels)
    file = folder / "result.json"
    files = json.loads(file.read_text())["files"]
    files["predictions.npz"] = hashlib.sha256((folder / "predictions.npz").read_bytes()).hexdigest()
    edit(file, test=answers(logits, labels), files=files)


def edit(file: Path, seal: bool = True, **values: Any) -> None:
    """Give keys of a result other values and, with `seal`, the checksum that fits them."""
    content = json.loads(file.read_text()) | values
    if seal:
        content.pop("checksum", None)
        content["checksum"] = digest(content)
    file.write_text(json.dumps(content))


def sha(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _shipped(*named: str) -> str:
    return load(named[0], named[1:]).recipe.model_dump_json()


def shipped(family: str) -> dict[str, Any]:
    """The recipe that a family ships, as JSON values."""
    return json.loads(_shipped(family))


def distill_defaults(kind: str) -> dict[str, Any]:
    return json.loads(_shipped("paper", f"distill.kind={kind}"))["distill"]


def slug(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")


def taught_by(strategy: str, teachers: tuple[str, ...], runs: tuple[str, ...]) -> list[dict[str, Any]]:
    """The teachers of a record: of a chain only the last, with the path that leads to it."""
    path: list[str] = []
    if strategy in ("kd", "chain"):
        teachers, path = teachers[-1:], list(teachers[:-1])
    runs = runs or tuple(f"{slug(name)}-plain-{i:08x}/s0" for i, name in enumerate(teachers))  # records that are gone
    pairs = zip(teachers, runs, strict=True)
    return [{"run": run, "network": name, "seed": int(run.rpartition("/s")[2]), "path": path} for name, run in pairs]


def digest_of(runs: Path, run: str, which: str = "digest") -> str:
    """The digest of a teacher's run, or one of its job's name where it has no record."""
    file = runs / run / "recipe.json"
    return json.loads(file.read_text())[which] if file.exists() else sha(run.rpartition("/s")[0])


def _epoch(epoch: int, epochs: int, final: float) -> dict[str, Any]:
    done = epoch / epochs
    accuracy = 10 + (final - 10) * (1 - (1 - done) ** 2) + (0 if epoch == epochs else np.sin(epoch * 2.3))
    return {
        "epoch": epoch, "step": 196 * epoch, "lr": 0.01, "loss": 2.3 - 2 * done, "hard": 2.3 - 2 * done, "soft": 0.0,
        "train_accuracy": min(100.0, accuracy + 5 * done), "validation": None,
        "test": {"accuracy": accuracy, "loss": 2.3 - 1.9 * done}, "seconds": 20.0, "images_per_second": 2500.0,
    }  # fmt: skip


def _at_most(row: dict[str, Any], most: float) -> dict[str, Any]:
    return row | {"test": row["test"] | {"accuracy": min(most, row["test"]["accuracy"])}}


CHAIN = ("resnet50", "resnet34", "resnet18")
ENSEMBLE = ("resnet50", "densenet161", "vgg13", "inceptionv3")


def study(runs: Path, seeds: int = 3) -> Path:
    """A small study: baselines, each strategy, both of the paper's families, and some runs that must be set aside."""
    base = {"gns:1.0": 91.4, "gns:1.3": 92.4, "gns:1.6": 92.6, "gns:2.8": 93.9, "gnd:1.0": 91.2, "resnet18": 93.1}
    for student, accuracy in base.items():
        for seed in range(seeds):
            write_run(runs, student, seed=seed, accuracy=accuracy + 0.1 * seed)
    resnet50 = write_run(runs, "resnet50", accuracy=93.7)
    warned = [
        {"code": "near-one-hot", "level": "warn", "message": "soft targets at T = 1 hold 0.02 nats: near one-hot"}
    ]
    for seed in range(seeds):
        shift = 0.1 * seed
        common = {"seed": seed, "check": warned}
        write_run(runs, "gns:1.0", "kd", ("resnet50",), accuracy=93.2 + shift, teacher_runs=(resnet50,), **common)
        write_run(runs, "gns:1.0", "kd", ("vgg13",), accuracy=91.5 + shift, **common)
        write_run(runs, "gns:1.0", "chain", CHAIN, accuracy=90.1 + shift, **common)
        write_run(runs, "gns:1.0", "ensemble", ENSEMBLE[::-1], accuracy=92.9 + shift, **common)
    published = {"family": "published", "recipe_name": "published/chain", "distill": {"shuffle": False}}
    write_run(runs, "gns:1.0", "chain", CHAIN, accuracy=90.2, check=warned, **published)
    write_run(runs, "gns:1.0", "kd", ("resnet18",), status="failed", error="the loss became non-finite in epoch 3")
    write_run(runs, "gns:1.0", "kd", ("resnet18",), seed=1, status="interrupted")
    write_run(runs, "gns:1.0", "kd", ("resnet18",), accuracy=60, epochs=2, limit=2000, train_images=2000)
    write_run(runs, "gns:1.0", "kd", ("resnet50",), accuracy=92.0, distill={"temperature": 4.0})
    write_run(runs, "gns:0.5", "kd", ("resnet18",), accuracy=85.0, distill={"kind": "dkd"})
    return runs
