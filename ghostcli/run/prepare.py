"""Checks a plan before its first job starts, and loads the data.

Invariant: nothing is written. A problem is one UsageError.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ghostcli.errors import UsageError, printable
from ghostcli.plan import Finished, Job, Plan, commands, is_done, record_of
from ghostcli.records import trained
from ghostcli.records.record import RUN_ID, RunRecord
from ghostcli.records.storage import refuse_link
from ghostcli.run.job import Options, is_fresh, load_data
from ghostcli.zoo import names, own

if TYPE_CHECKING:
    from torch import nn

    from ghostcli.data import Data


def prepare(plan: Plan, options: Options) -> None:
    """Check device, data, class counts and widths.

    Raises UsageError, and OutOfMemoryError for a width that needs too much memory. Torch is not imported if all runs of
    the plan are found.
    """
    checked = cache(own.check)  # so a user's own network is built once for all jobs
    for job in plan.jobs:
        if not RUN_ID.fullmatch(job.id):
            raise UsageError(f"{printable(job.student)}: is not usable in a folder name; name a model as timm/NAME")
        refuse_link((options.runs / job.id).parent, options.runs / job.id)
        done = is_done(job, options.runs) and not is_fresh(job, plan, options)
        if done:
            _require_own_record(job, options.runs)
        if done and not job.data.startswith("folder:"):
            continue  # the files of all other data sets have fixed checksums
        if done:
            _require_same_images(record_of(job, options.runs), load_data(job.recipe.data), options.runs)
            continue
        _prepare_job(job, options, checked)


def require_possible(plan: Plan, options: Options) -> None:
    """The checks that need neither data nor torch, for --dry-run: of what a job starts from, and of its teachers."""
    for job in plan.jobs:
        if not is_done(job, options.runs) or is_fresh(job, plan, options):
            _require_start(job, options.runs)
            for teacher in job.teachers:
                _require_teacher(teacher, job.data, options)


def _prepare_job(job: Job, options: Options, checked: Callable[..., nn.Module]) -> None:
    """Check one job that is to be trained. Device and memory are checked on the machine that trains it."""
    from ghostcli.engine.device import pick
    from ghostcli.engine.train import require_room, require_two_images

    data = load_data(job.recipe.data)
    if not options.place.remote:
        require_room(job.student, len(data.classes), pick(options.device))
    shape = len(data.classes), data.train.pixels.shape[1]
    if names.is_own(job.student):
        checked(job.student, *shape, None)
    if job.taught and job.recipe.distill.needs_features:
        for one in (job, *job.teachers):
            _require_features(job, one, shape, options.runs, checked)
    require_two_images(job, data)
    _require_start(job, options.runs)
    for teacher in job.teachers:
        _require_teacher(teacher, job.data, options)
        if isinstance(teacher, Finished) and teacher.classes != len(data.classes):
            raise UsageError(
                f"{trained.named(teacher.id)}: has {teacher.classes} classes, {data.name} has {len(data.classes)}; "
                "name a teacher that was trained on the same classes"
            )


def _require_features(
    job: Job, one: Job | Finished, shape: tuple[int, int], runs: Path, checked: Callable[..., nn.Module]
) -> None:
    """UsageError if `one` lacks the features that `job` compares. Users' own networks and timm's may, ghost's have all.

    `shape`: classes and side of the images in pixels.
    """
    from ghostcli import distill, zoo

    classes, side = shape
    match names.parse(one.student).family:
        case "py":
            copy = None
            if isinstance(one, Finished):
                source = str(record_of(one, runs).result.source)
                own.require_trusted(one.student, source)
                copy = own.copy_of(one.student, source)
            network = checked(one.student, classes, side, copy)
        case "timm":
            network = zoo.build_shapes(one.student, classes)
        case _:
            return
    distill.feature_shape(job.recipe, network, side)


def _require_start(job: Job, runs: Path) -> None:
    """UsageError if the weights that a network starts from are not those of such a network."""
    start = job.recipe.model.start
    if start is None:
        return
    known = trained.find(runs, start).result
    if known is None or (known.student, known.source) != (job.student, job.content.get("source")):
        theirs = known.student if known else "unfinished"
        raise UsageError(
            f"--from {start}: is {printable(theirs)}, which is not {printable(job.student)}; name a run of "
            f"{printable(job.student)}, or train {printable(theirs)}"
        )


def _require_teacher(teacher: Job | Finished, data: str, options: Options) -> None:
    """UsageError if a teacher's run has no weights, or was trained on another set than `data`."""
    run = record_of(teacher, options.runs)
    _require_own_record(teacher, options.runs)
    if run.status == "done" and not run.weights.exists():
        raise UsageError(
            f"{teacher.id}: cannot teach, because its record has no weights; remove it "
            f"({_remove(teacher.id, options.runs)}) to train it again, or name another folder with --runs"
        )
    known = run.result.data if run.result else data
    if known != data and not any(name.startswith("folder:") for name in (known, data)):
        raise UsageError(
            f"{teacher.id}: was trained on {printable(known)}, not {data}; name a teacher that was trained on {data}"
        )


def _require_own_record(job: Job | Finished, runs: Path) -> None:
    """UsageError if a finished run's folder is a copy of another run's: its seed was never trained."""
    run = record_of(job, runs)
    theirs = run.result.run if run.result else job.id
    if theirs != job.id and not job.id.startswith(trained.PRETRAINED):
        raise UsageError(
            f"{job.id}: its record is that of {printable(theirs)}, so the folder was copied or renamed; remove it "
            f"({_remove(job.id, runs)}), or give it its name back"
        )


def _require_same_images(run: RunRecord, data: Data, runs: Path) -> None:
    """UsageError if the images in the folder have changed since a finished run was trained."""
    if run.result is None or run.result.data_checksum != data.checksum:
        raise UsageError(
            f"{run.id}: the images of {data.name} have changed since its training; restore them, give "
            f"another --runs, or remove the run ({_remove(run.id, runs)}) to train it on the new images"
        )


def _remove(run: str, runs: Path) -> str:
    return commands.line("runs", "rm", run, runs=runs)
