"""Turns a recipe and seeds into jobs in order (teacher -> assistants -> student), with content ids.

Invariant: jobs with equal ids do the same work, whichever command planned them. So a teacher is trained once, and every
recipe that names it reuses the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from ghostcli.errors import UsageError, printable
from ghostcli.recipe.digest import SEMANTICS, canonical, digest
from ghostcli.recipe.models import KD, ModelSection, Recipe
from ghostcli.records import record, trained
from ghostcli.records.model import Training
from ghostcli.records.record import RUN_ID
from ghostcli.zoo import names, own

#: Jobs travel as JSON (run/spec.py). A key that this version does not know is refused.
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Finished:
    """A trained network, named as `run/ID` or `pretrained/NAME`. It replaces a job that would be trained."""

    __pydantic_config__ = STRICT

    id: str
    student: str
    seed: int
    digest: str
    lineage: tuple[str, ...]
    classes: int
    group: str
    teachers: tuple[()] = ()


@dataclass(frozen=True)
class Job(Training):
    """One training with all settings. `teachers` are the direct teachers, first to last."""

    __pydantic_config__ = STRICT

    student: str
    seed: int
    recipe: Recipe
    recipe_name: str
    teachers: tuple[Job | Finished, ...] = ()

    @property
    def taught(self) -> bool:
        return bool(self.teachers)

    @property
    def strategy(self) -> str:
        """plain | kd | chain | dense | ensemble | adaptive. It follows from the teachers and the recipe."""
        if not self.teachers:
            return "plain"
        distill = self.recipe.distill
        if len(self.teachers) == 1:
            return "chain" if self.teachers[0].lineage[:-1] else "kd"
        if distill.dense:
            return "dense"
        return "adaptive" if distill.weighting == "adaptive" else "ensemble"

    @property
    def generation(self) -> int:
        """The number of networks like its own in its path: 0 if it is not a born-again network."""
        return self.path.count(self.student)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Everything that decides the result, except the seed."""
        recipe = canonical(self.recipe)
        if not self.taught:
            del recipe["distill"]
        if not names.is_ghost(self.student):
            del recipe["engine"]["branches"]
        if not names.has_pretrained(self.student):
            del recipe["model"]["pretrained"]
        teachers = [[teacher.digest, teacher.seed] for teacher in self.teachers]
        content = {"semantics": SEMANTICS, "student": self.student, "recipe": recipe, "teachers": teachers}
        return content | ({"source": own.checksum(self.student)} if names.is_own(self.student) else {})

    @cached_property
    def digest(self) -> str:
        return digest(self.content)

    @cached_property
    def group(self) -> str:
        """Digest of the job without its teachers' seeds. It is equal for all runs of a run group."""
        if not self.taught:
            return self.digest
        content = {**self.content, "teachers": [teacher.group for teacher in self.teachers]}
        content["recipe"] = {**content["recipe"], "distill": {**content["recipe"]["distill"], "teacher_seed": None}}
        return digest(content)

    @cached_property
    def protocol(self) -> str:
        """Digest of data, budget and training without [distill]. Accuracies are comparable if it is equal."""
        recipe = canonical(self.recipe)
        del recipe["distill"]
        del recipe["engine"]["branches"]
        return digest({"semantics": SEMANTICS, **recipe})

    @property
    def id(self) -> str:
        return f"{names.slug(self.student)}-{self.strategy}-{self.digest[:8]}/s{self.seed}"


#: A teacher as a command names it, or a job that another recipe makes.
Named = str | Job
#: The networks of a chain. Only the first may be a job or a trained network.
Chain = tuple[Named, *tuple[str, ...]]


def network(name: str) -> str:
    """The canonical name of a network to train. UsageError for a finished run, which can only teach."""
    if RUN_ID.fullmatch(name):
        raise UsageError(f"{name}: is the id of a run, not the name of a model; type run/{name}")
    parsed = names.parse(name)
    if parsed.family == "trained":
        raise UsageError(
            f"{printable(name)}: a trained network can teach, but it is not trained again; name a model (--from "
            f"{printable(name)} starts it from these weights)"
        )
    if parsed.family == "py":
        own.trust(parsed.canonical)
    return parsed.canonical


def plain(student: str, seed: int, recipe: Recipe, recipe_name: str) -> Job:
    """A training without teachers. It ignores [distill]."""
    return _job(student, seed, recipe.model_copy(update={"distill": KD()}), recipe_name)


def _job(student: str, seed: int, recipe: Recipe, recipe_name: str, teachers: tuple[Job | Finished, ...] = ()) -> Job:
    """A job of a network by name. `model.pretrained` is at its default for a network without such weights.

    There it changes nothing. Its id leaves it out; so must its protocol, by which runs are compared.
    """
    name = network(student)
    if not names.has_pretrained(name):
        recipe = recipe.changed("model", pretrained=ModelSection().pretrained)
    return Job(name, seed, recipe, recipe_name, teachers)


def unstarted(recipe: Recipe) -> Recipe:
    """The recipe of the teachers: `model.start` is for the requested student alone."""
    return recipe.changed("model", start=None, start_sha256=None)


def started(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe with the checksum of the weights that `model.start` names. Every verb calls this before it plans.

    UsageError if they are not there, or are not those that `model.start_sha256` names.
    """
    start, known = recipe.model.start, recipe.model.start_sha256
    if start is None and known is None:
        return recipe
    if start is None:
        raise UsageError("model.start_sha256: needs model.start (--from run/ID), which says where the weights are")
    if not trained.is_trained(start):
        raise UsageError(
            f"--from {printable(start)}: is not a trained network; name a finished run, as run/ID, or pretrained/NAME"
        )
    run = trained.find(runs, start)
    if run.status != "done" or run.result is None:
        raise UsageError(f"--from {start}: has no final weights ({run.problem}); name a finished run")
    sha256 = run.result.files.get("model.safetensors")
    if sha256 is None or not run.weights.exists():
        raise UsageError(f"--from {start}: its weights are not here; use it where it was trained, or ghost pull it")
    if known not in (None, sha256):
        raise UsageError(
            f"--from {start}: its weights are not those of the recipe (model.start_sha256 {printable(known)[:16]}); "
            "remove that key to start from what is there"
        )
    return recipe.changed("model", start=trained.named(run.id), start_sha256=sha256)


def root_teacher(name: Named, recipe: Recipe, recipe_name: str, runs: Path) -> Job | Finished:
    """A teacher: a model name (trained with the same recipe), a trained network, or a job of another recipe."""
    if isinstance(name, Job):
        return name
    if trained.is_trained(name):
        return finished(name, runs)
    own, epochs = unstarted(recipe), recipe.distill.teacher_epochs
    if epochs is not None:  # all of them are no `stop`: so the teacher is the run of ghost train-teacher
        own = own.changed("train", stop=None if epochs == recipe.train.epochs else epochs)
    return plain(name, recipe.distill.teacher_seed, own, recipe_name)


def finished(name: str, runs: Path) -> Finished:
    run = trained.find(runs, name)
    if run.status != "done" or run.result is None:
        raise UsageError(f"{run.id}: cannot teach ({run.problem}); name a finished run")
    result = run.result
    digest, group = result.digest, result.of_group
    if run.id.startswith(trained.PRETRAINED):  # its weights were rounded, so they are not quite those of the run
        digest = group = result.files[run.weights.name]
    return Finished(run.id, result.student, result.seed, digest, result.lineage, result.classes, group)


def teacher_of(recipe: Recipe, seed: int, teachers: int) -> Recipe:
    """The recipe for a student's `seed`, if the seeds are divided among `teachers` trainings of the teachers."""
    number = recipe.distill.teacher_seed + seed % teachers
    return recipe.changed("distill", teacher_seed=number)


def chain(path: Chain, student: str, seed: int, recipe: Recipe, recipe_name: str, runs: Path) -> Job:
    """TAKD (Mirzadeh 2020): each network teaches the next. DGKD (Son 2021) if the recipe is dense."""
    if recipe.distill.weighting == "adaptive":
        raise UsageError("distill.weighting=adaptive: needs several teachers at once; use ghost ensemble")
    # In the control of a chain only the teachers of the last student are blind. The assistants are the same.
    seeing = recipe.changed("distill", blind=False)
    stages: list[Job | Finished] = [root_teacher(path[0], recipe, recipe_name, runs)]
    for name in path[1:]:
        if trained.is_trained(name):
            raise UsageError(
                f"{printable(name)}: only the first teacher of a chain can be a trained network; name a model"
            )
        stages.append(_stage(name, stages, recipe.distill.teacher_seed, unstarted(seeing), recipe_name))
    return _stage(student, stages, seed, recipe, recipe_name)


def _stage(name: str, stages: list[Job | Finished], seed: int, recipe: Recipe, recipe_name: str) -> Job:
    teachers = tuple(stages) if recipe.distill.dense else (stages[-1],)
    if len(teachers) == 1:  # a dense stage with one teacher is plain KD, so both are the same job
        recipe = recipe.changed("distill", dense=False, drop=0, weighting="mean", combine="logits")
    return _job(name, seed, recipe, recipe_name, teachers)


def ensemble(teachers: Sequence[Named], student: str, seed: int, recipe: Recipe, recipe_name: str, runs: Path) -> Job:
    """All teachers teach at once. Each is trained without a teacher, or is a finished run."""
    if recipe.distill.dense:
        raise UsageError("distill.dense=true: is only for chains; use ghost assist-chain --dense")
    roots = tuple(root_teacher(name, recipe, recipe_name, runs) for name in teachers)
    if len({teacher.id for teacher in roots}) < len(roots):
        raise UsageError(f"{' '.join(map(printable, teachers))}: a teacher is named twice; name each teacher once")
    return _job(student, seed, recipe, recipe_name, roots)


@dataclass(frozen=True)
class Plan:
    """Jobs in order: each teacher before its students. `requested`: the jobs of the command itself."""

    jobs: tuple[Job, ...]
    requested: tuple[Job, ...]

    @cached_property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Run group -> its planned seeds."""
        by_group: dict[str, set[int]] = {}
        for job in self.jobs:
            by_group.setdefault(job.group, set()).add(job.seed)
        return {group: tuple(sorted(seeds)) for group, seeds in by_group.items()}


def order(requested: Iterable[Job]) -> Plan:
    """The graph of the `requested` jobs and all their teachers, each once, teachers first."""
    jobs: dict[str, Job] = {}

    def visit(job: Job | Finished) -> None:
        if isinstance(job, Finished) or job.id in jobs:
            return
        for teacher in job.teachers:
            visit(teacher)
        jobs.setdefault(job.id, job)

    requested = tuple(requested)
    for job in requested:
        visit(job)
    return Plan(tuple(jobs.values()), tuple({job.id: job for job in requested}.values()))


def record_of(job: Job | Finished, runs: Path) -> record.RunRecord:
    """The run of a job under `runs`. It may not exist yet."""
    return trained.at(runs, job.id)


def is_done(job: Job | Finished, runs: Path) -> bool:
    return record_of(job, runs).status == "done"
