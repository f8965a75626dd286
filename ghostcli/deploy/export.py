"""From a finished run to a file that deploys it, proven on the run's own test images before it is written.

Invariant: what is written is what was proven: the file's very bytes were loaded again and asked.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ghostcli import zoo
from ghostcli.data import Data
from ghostcli.data.batches import normalise
from ghostcli.deploy.program import Program
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.records.record import RunRecord
from ghostcli.records.storage import write_bytes
from ghostcli.run.job import load_data
from ghostcli.zoo import evaluate, weights
from ghostcli.zoo.evaluate import Norm

SUFFIXES = (".pt2", ".safetensors")
BATCH = 500
COMPARED = 1000  # images on which the logits of the three forms are compared; accuracy is of all
PROGRAM_TOLERANCE = 1e-3  # largest difference of logits that rounding may make between program and network
ACCURACY_TOLERANCE = 0.1  # points, and one image: ties may fall the other way


@dataclass(frozen=True)
class Proof:
    """What was measured on the run's test images; accuracies in percent, differences in logits."""

    file: str
    bytes: int
    form: str
    parameters: int
    images: int
    recorded: float
    accuracy: float
    from_train_form: float  # largest difference of the deploy form's logits from the train form's
    from_deploy_form: float  # largest difference of the reloaded file's logits from the deploy form's


def export(run: RunRecord, out: Path, half: bool = False) -> Proof:
    """Fold the run's network, write it to `out`, and say how the written file does on the test set.

    `.safetensors`: the deploy form's weights (float16 where `half`), for ghost and for whoever reads tensors.
    `.pt2`: a program that torch runs without ghost. UsageError where the run cannot be exported; GhostError,
    and no file, where the reloaded one does not answer as the network does.
    """
    _check(run, out, half)
    result = run.result
    data = load_data(result.recipe.data)
    if data.checksum != result.data_checksum:
        raise UsageError(f"{run.id}: the images of {data.name} are no longer those it was tested on; put them back")
    trained = weights.load(run.weights, classes=result.classes, model=result.student)
    deployed = zoo.deploy(trained.model).to(memory_format=torch.channels_last)
    theirs, wanted = (evaluate.logits(form, data.test[:COMPARED], trained.norm) for form in (trained.model, deployed))
    if out.suffix == ".pt2":
        content = program_bytes(deployed, trained.norm, data, run)
        found = _ask_program(content, data)
    else:
        content = weights.encode(deployed.half() if half else deployed, trained.norm, form="deploy")
        found = _ask_weights(content, trained.name, data, trained.norm)
    proof = Proof(
        file=str(out),
        bytes=len(content),
        form="float16" if half else "float32",
        parameters=zoo.count_parameters(deployed),
        images=len(data.test),
        recorded=result.accuracy.selected,
        accuracy=evaluate.score(found, data.test.labels)["accuracy"],
        from_train_form=_difference(theirs, wanted),
        from_deploy_form=_difference(wanted, found[:COMPARED]),
    )
    _accept(proof, wanted, half)
    write_bytes(out, content, "export")
    return proof


def _check(run: RunRecord, out: Path, half: bool) -> None:
    if run.status != "done" or run.result is None:
        raise UsageError(f"{run.id}: cannot be exported, {run.problem}; finish it with the command that began it")
    if not run.weights.exists():
        raise UsageError(
            f"{run.id}: its weights are not here (records travel without them); export where it was trained"
        )
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {printable(out)}: its name must end in {' or '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise UsageError(f"--out {printable(out)}: there is no folder {printable(out.parent)}; make it first")
    if half and out.suffix == ".pt2":
        raise UsageError(
            f"--half: a .pt2 program computes in float32; use --out {printable(out.with_suffix('.safetensors'))}"
        )


def program_bytes(deployed: nn.Module, norm: Norm, data: Data, run: RunRecord) -> bytes:
    """A `torch.export` program for any batch size, with what its user must know as the extra file `ghost.json`."""
    side = data.test.pixels.shape[1]
    program = Program(deployed, norm).eval()
    example = torch.rand(2, 3, side, side)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(program, (example,), dynamic_shapes=({0: batch},))
    about = {
        "input": f"float32 [N, 3, {side}, {side}], red, green, blue in 0..1; it normalises them itself",
        "output": f"logits [N, {len(data.classes)}]",
        "classes": list(data.classes),
        "model": deployed.spec.name,
        "run": run.id,
        "accuracy": run.result.accuracy.selected,
    }
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights in channels_last, which it keeps as they are
        torch.export.save(exported, content, extra_files={"ghost.json": json.dumps(about, indent=1)})
    return content.getvalue()


@torch.no_grad()
def _ask_program(content: bytes, data: Data) -> Tensor:
    """Logits of the test images, given as anybody would give them: float32 in 0..1."""
    program = torch.export.load(io.BytesIO(content)).module()
    parts = data.test.pixels.split(BATCH)
    return torch.cat([program((part.permute(0, 3, 1, 2) / 255).contiguous()) for part in parts])


@torch.no_grad()
def _ask_weights(content: bytes, name: str, data: Data, norm: Norm) -> Tensor:
    from safetensors.torch import load

    network = zoo.build_deployed(name, len(data.classes))
    network.load_state_dict(load(content))
    network = network.to(memory_format=torch.channels_last)
    return torch.cat([network(normalise(part, *norm)) for part in data.test.pixels.split(BATCH)])


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def _accept(proof: Proof, wanted: Tensor, half: bool) -> None:
    """GhostError where the reloaded file is not the network, by more than rounding explains."""
    allowed = PROGRAM_TOLERANCE * max(1.0, wanted.abs().max().item())
    if not half and not proof.from_deploy_form <= allowed:
        raise GhostError(f"{printable(proof.file)}: not written: its logits are off by {proof.from_deploy_form:.3g}")
    gap, image = abs(proof.accuracy - proof.recorded), 100 / proof.images
    if gap > ACCURACY_TOLERANCE + image:
        raise GhostError(
            f"{printable(proof.file)}: not written, it reaches {proof.accuracy:.2f} % where the run recorded "
            f"{proof.recorded:.2f} %"
        )
