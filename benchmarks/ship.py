"""A finished run as a network that comes with ghost, `pretrained/NAME`: its record, float16 weights and a card.

    python benchmarks/ship.py RUN... [--runs runs]

RUN...: all seeds of one run group, as in `run/gns-1.0-plain-1a2b3c4d/s0`. `pretrained/NAME` stands for the seeds whose
accuracies have been shipped already, so seeds can be added when their runs are gone. The network of the lowest seed is
shipped, so no test image has a say in which; the card gives the mean and the spread of all of them. The weights are
those of the train form, so that training can go on from them; batch norm's statistics stay in float32. The accuracy is
measured again after rounding.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ghostcli import zoo
from ghostcli.comparison.calibration import ece
from ghostcli.errors import UsageError
from ghostcli.recipe.digest import digest
from ghostcli.records import record, tensorfile, trained
from ghostcli.records.model import Answers, RunResult, dump
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import read_json, write_bytes, write_json
from ghostcli.run.job import load_data
from ghostcli.share.hub import ALONE, card
from ghostcli.zoo import evaluate, names, weights

LICENCE = "The weights: MIT, as ghost itself."


def rounded(run: RunRecord) -> bytes:
    """The bytes of a run's weights in float16, without batch norm's statistics, whose range is wider."""
    tensors, meta = tensorfile.read(run.weights)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and not name.rpartition(".")[2].startswith("running_"):
            tensors[name] = tensor.half()
    return tensorfile.encode(tensors, meta)


def portable(command: Sequence[str]) -> tuple[str, ...]:
    """The command without `--runs`: where its machine kept the runs changes no result."""
    left = list(command)
    while "--runs" in left:
        place = left.index("--runs")
        del left[place : place + 2]
    return tuple(left)


def measured(result: RunResult, file: Path) -> RunResult:
    """The record with the accuracy of the weights in `file`, in the deploy form, on all test images."""
    loaded = weights.load(file, classes=result.classes, model=result.student)
    data = load_data(result.recipe.data)
    images = data.test
    network = zoo.deploy(loaded.model).to(memory_format=torch.channels_last)
    logits = evaluate.logits(network, images, loaded.norm)
    before, now = result.accuracy.selected, evaluate.score(logits, images.labels)
    note = f"The weights are rounded to float16 for shipping: accuracy {now['accuracy']:.2f} %, before {before:.2f} %."
    stored = evaluate.compact(logits).numpy(), images.labels.numpy()
    return result.model_copy(
        update={
            "command": portable(result.command),
            "class_names": data.classes,
            "accuracy": result.accuracy.model_copy(update={"selected": now["accuracy"]}),
            "nll": now["loss"],
            "test": Answers.of(*stored, ece(*stored), images.checksum),
            "notes": (*result.notes, note),
            "files": {file.name: record.file_digest(file)},
        }
    )


def accuracies(run: RunRecord) -> dict[int, float]:
    """The accuracy of each seed that a run stands for, before rounding, in percent."""
    if run.path.parent == trained.FOLDER:
        return {int(seed): accuracy for seed, accuracy in read_json(run.path / "seeds.json").items()}
    return {run.result.seed: run.result.accuracy.selected}


def ship(runs: list[RunRecord]) -> Path:
    """Write the folder of the network that comes with ghost. `runs`: the finished runs of one group."""
    runs = sorted(runs, key=lambda run: run.result.seed)
    first = runs[0].result
    if len({run.result.of_group for run in runs}) > 1:
        raise UsageError("ship: the runs are not of one group; name the seeds of one run")
    folder = trained.FOLDER / names.slug(first.student)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.safetensors"
    seeds = dict(sorted((seed, accuracy) for run in runs for seed, accuracy in accuracies(run).items()))
    found = first
    if runs[0].path != folder:
        write_bytes(file, rounded(runs[0]), "weights")
        found = measured(first, file)
        content = dump(found)
        write_json(folder / "result.json", {**content, "checksum": digest(content)}, "result")
        write_json(folder / "status.json", {"status": "done"}, "status")
    write_json(folder / "seeds.json", seeds, "seeds")
    spread = ALONE
    if len(seeds) > 1:
        mean, deviation = statistics.mean(seeds.values()), statistics.stdev(seeds.values())
        spread = f"All {len(seeds)} seeds: {mean:.2f} ± {deviation:.2f} %."
    name = f"{trained.PRETRAINED}{folder.name}"
    use = (f"ghost predict {name} photo.jpg", f"ghost export {name} --out {folder.name}.onnx")
    again = "\n".join(
        (
            "",
            "## How to make it again",
            "",
            "```sh",
            shlex.join(("ghost", *found.command)),
            "```",
            "",
            f"Run `{first.run}`, recipe digest `{first.digest}`, training data `{first.data_checksum[:16]}`, "
            f"weights `{hashlib.sha256(file.read_bytes()).hexdigest()}`.",
        )
    )
    text = card(found, use, spread=spread, licence=LICENCE)
    write_bytes(folder / "README.md", (text + again + "\n").encode(), "card")
    return folder


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("run", nargs="+", help="the seeds of one run: run/ID/s0 run/ID/s1 ...")
    asks.add_argument("--runs", type=Path, default=Path("runs"))
    asked = asks.parse_args()
    print(ship([trained.find(asked.runs, name) for name in asked.run]))


if __name__ == "__main__":
    main()
