"""Runs on a model hub (huggingface_hub): a run's record and weights with a model card, and back.

Invariant: what is pulled is a fixed list of files, none of which can run code. It becomes a run only after its record
has been re-checked. Nothing else of a repository is downloaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ghostcli.comparison.stats import interval_of
from ghostcli.deploy.about import LICENCES
from ghostcli.deploy.onnxfile import read
from ghostcli.errors import GhostError, UsageError, printable
from ghostcli.paper import label
from ghostcli.records.contents import without_places
from ghostcli.records.model import RunResult
from ghostcli.records.record import RUN_ID, RunRecord
from ghostcli.records.storage import read_json, write_json
from ghostcli.records.verify import verify_run

#: The files of a run that travel. The first two make a repository a ghost model.
NEEDED, MORE = ("result.json", "model.safetensors"), ("recipe.json", "metrics.jsonl", "predictions.npz")
#: Endings of files that can hold a pickle, which runs code when it is read.
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def push(
    run: RunRecord, repository: str, exported: Sequence[Path] = (), private: bool = False, paths: bool = False
) -> str:
    """Upload a finished run with its card and exported .onnx files; returns the address. It replaces what was there.

    UsageError where the run is not finished, does not pass its checks, or names folders of this machine (but for
    `private` or `paths`); GhostError where the hub refuses.
    """
    _require_repository(repository)
    if run.status != "done" or run.result is None or not run.weights.exists():
        raise UsageError(f"{run.id}: cannot be pushed, {run.problem or 'its weights are not here'}; finish it first")
    if problems := verify_run(run):
        raise UsageError(f"{run.id}: cannot be pushed, {problems[0]}")
    if (named := _places(run.result)) and not (private or paths):
        raise UsageError(
            f"{run.id}: its record would publish {', '.join(map(printable, named))}; add --paths if everybody may see "
            "it, or --private. A run of a relative path, such as folder:photos, does not name other folders"
        )
    for file in exported:
        if file.suffix != ".onnx" or not file.is_file():
            raise UsageError(f"--onnx {printable(file)}: is no .onnx file; `ghost export` writes one")
        if (theirs := read(file.read_bytes(), str(file))[1].run) != run.id:
            raise UsageError(f"--onnx {printable(file)}: is the network of {printable(theirs)}, not of {run.id}")
    if len({file.name for file in exported}) < len(exported):
        raise UsageError("--onnx: two files have one name; rename one")
    api = _api()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in (*(run.path / part for part in (*NEEDED, *MORE)), *exported):
            if file.suffix == ".json" and file.exists():
                write_json(folder / file.name, without_places(read_json(file)))
            elif file.exists():
                shutil.copyfile(file, folder / file.name)
        use = (f"ghost pull {repository}", f"ghost predict run/{run.id} photo.jpg")
        text = card(run.result, use, exported=[file.name for file in exported])
        (folder / "README.md").write_text(text, "utf-8")
        with _refusals(repository):
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=name,
                commit_message=f"ghost: {run.id}",
                delete_patterns=["*.onnx", *NEEDED, *MORE],  # of the run that was there; what is uploaded stays
            )
    return str(getattr(commit, "repo_url", None) or repository)


def pull(repository: str, runs: Path) -> RunRecord:
    """Download a run into `runs`, where it is found by its id.

    UsageError where the repository holds no ghost model, files that could run code or leave the folder, or a record
    that does not agree with itself.
    """
    _require_repository(repository)
    api = _api()
    with _refusals(repository):
        files = list(api.list_repo_files(repository))
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise UsageError(f"{repository}: is refused, its file {printable(file)} leads out of its folder")
        if path.suffix.lower() in PICKLES:
            raise UsageError(f"{repository}: is refused, {printable(file)} can run code when it is read")
    if missing := [file for file in NEEDED if file not in files]:
        raise UsageError(f"{repository}: is no ghost model, it has no {missing[0]}")
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix=".pull-") as name:
        folder = Path(name) / "run"  # the temporary directory is closed to others, the run is not to be
        folder.mkdir()
        for file in (*NEEDED, *MORE):
            if file in files:
                with _refusals(repository):
                    source = Path(api.hf_hub_download(repository, file))
                shutil.copyfile(source, folder / file)
        write_json(folder / "status.json", {"status": "done"})
        result = RunRecord(folder, "").result
        if result is None or not RUN_ID.fullmatch(result.run) or "/s" not in result.run:
            raise UsageError(f"{repository}: its result.json is no record of a run that this ghost reads")
        run = RunRecord(folder, result.run)
        if problems := verify_run(run):
            raise UsageError(f"{repository}: its record is not to be believed: {problems[0].replace(f'{folder}/', '')}")
        place = runs / result.run
        if place.exists():
            raise UsageError(f"{printable(place)}: is there already; remove it first with `ghost runs rm {result.run}`")
        place.parent.mkdir(exist_ok=True)
        os.rename(folder, place)
    return RunRecord(place, result.run)


def _places(result: RunResult) -> list[str]:
    """The absolute paths in a record, as the names of data and networks. An id comes from them, so they stay."""
    names = (result.data, result.student, *result.path)
    return [name for name in dict.fromkeys(names) if name.startswith(("folder:/", "py:/"))]


def _require_repository(name: str) -> None:
    if not REPOSITORY.fullmatch(name):
        raise UsageError(f"{printable(name)}: is no repository; type OWNER/NAME, as in ada/digits-small")


ALONE = "One seed: another training would differ."
OWNERS = "The weights are their owner's to license."


def card(
    result: RunResult, use: Sequence[str], spread: str = ALONE, licence: str = OWNERS, exported: Sequence[str] = ()
) -> str:
    """The model card: what the network is, how good, how it was taught, what the check said, and how to use it.

    `use`: commands. `spread`, `licence`: sentences on the runs of other seeds and on the weights. `exported`: names of
    files beside it.
    """
    accuracy = result.accuracy.selected
    low, high = interval_of(accuracy, result.test_images)
    taught = "Without a teacher."
    if result.path:
        taught = f"Taught by {_text(', '.join(map(label, result.path)))} ({result.strategy})."
    data = LICENCES.get(result.data, "the owner's own images, whose licence ghost does not know")
    lines = [
        "---",
        "library_name: ghostcli",
        "tags: [ghostnet, image-classification, knowledge-distillation]",
        "---",
        f"# {_text(label(result.student))} on {_text(result.data.partition(':')[0])}",
        "",
        f"An image classifier with {result.parameters:,} parameters in training and {result.classes} classes. Test "
        f"accuracy **{accuracy:.2f} %** (95 % interval {low:.2f} to {high:.2f}, n = {result.test_images:,} test "
        f"images, seed {result.seed}). {spread}",
    ]
    if result.class_names:
        lines += ["", f"The classes: {', '.join(map(_text, result.class_names))}."]
    lines += [
        *("", "## How it was trained", ""),
        f"{taught} Recipe {_code(result.recipe_name)}, {result.epochs} epochs of {result.train_images:,} images.",
        *(f"- Check of the {_text(finding.subject)}: {_text(finding.message)}" for finding in result.check),
        *(f"- {_text(note)}" for note in result.notes),
        *("", "## How to use it", "", "```sh", *use, "```"),
        *(f"- {_code(name)} is the deploy form for other programs." for name in exported),
        *("", "## Licence", "", f"The training data: {data}. {licence}", ""),
    ]
    return "\n".join(lines)


def _text(value: str) -> str:
    """Text from a record in a page of Markdown: no control characters, no markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", printable(value))


def _code(value: str) -> str:
    """The same as code, where a backslash escapes nothing: between more backticks than are in it."""
    text = printable(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UsageError("the hub needs huggingface_hub; type pip install 'ghostcli[hub]'") from error
    return HfApi()


@contextlib.contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """What the hub says no with, as one line."""
    try:
        yield
    except Exception as error:
        reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise GhostError(f"{repository}: the hub refused ({reason})") from error
