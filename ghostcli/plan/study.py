"""The paper's tables as one graph of jobs.

Invariant: a printed row is planned like the command that the table names for it, so `ghost table` puts its runs into
that row. A job that several rows need is planned once. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from ghostcli import plan
from ghostcli.errors import UsageError, nearest, one_of, printable
from ghostcli.paper import FAMILIES, PaperRow, paper
from ghostcli.plan import Job, Plan
from ghostcli.recipe import Resolved, load
from ghostcli.zoo import names

#: The authors trained one chain of assistants: that of the GN-D row, unshuffled and without the extra step. They
#: distilled all rows of Table III from its ResNet-18.
PUBLISHED_ASSISTANTS = "published/chain-gnd"


@dataclass(frozen=True)
class Planned:
    """A printed row with one job per seed. A taught row has jobs of its baseline too, and optionally of its control."""

    row: PaperRow
    jobs: tuple[Job, ...]
    baselines: tuple[Job, ...] = ()
    controls: tuple[Job, ...] = ()

    @property
    def all(self) -> tuple[Job, ...]:
        return (*self.baselines, *self.jobs, *self.controls)


@dataclass(frozen=True)
class Study:
    """The rows of the chosen tables, the rows that --skip left out, and the graph of all jobs."""

    tables: tuple[str, ...]
    family: str
    rows: tuple[Planned, ...]
    skipped: tuple[PaperRow, ...]
    plan: Plan

    @cached_property
    def needed_by(self) -> dict[str, tuple[str, ...]]:
        """Job id -> the tables that need it."""
        by_job: dict[str, tuple[str, ...]] = {}
        for table in self.tables:
            for job in self.of_table(table).jobs:
                by_job[job.id] = (*by_job.get(job.id, ()), table)
        return by_job

    def of_table(self, table: str) -> Plan:
        """The part of the graph that a table needs."""
        planned = [planned for planned in self.rows if planned.row.table == table]
        return plan.order(job for each in planned for job in each.all)

    def rows_of(self, job: Job) -> tuple[PaperRow, ...]:
        """The printed rows of a job."""
        return tuple(planned.row for planned in self.rows if job.id in {mine.id for mine in planned.jobs})


def study(
    tables: Sequence[str],
    family: str,
    seeds: int,
    overrides: Sequence[str] = (),
    skip: Sequence[str] = (),
    runs: Path = Path("runs"),
    controls: bool = False,
    teachers: int = 1,
) -> Study:
    """Plan the rows of `tables` for the seeds 0 to `seeds` - 1, without rows that contain a network of `skip`.

    `teachers`: the number of trainings of each teacher; the seeds of the students are divided among them.

    `overrides` (`key.path=value`) apply to every recipe. Taught rows include the baselines of their students, because a
    difference needs them. With `controls` they include the same trainings with image-blind teachers.
    """
    one_of("--family", family, FAMILIES)
    named = chosen(tables)
    without = {names.canonical(name) for name in skip}
    rows = [row for table in named for row in paper().table(table).rows]
    there = dict.fromkeys(name for row in rows for name in (*row.teachers, row.student))
    if lost := [name for name in without if name not in there]:
        raise UsageError(f"--skip {printable(lost[0])}: is in none of these rows{nearest(lost[0], [*there])}")

    @cache
    def resolved(recipe: str) -> Resolved:
        loaded = load(recipe, list(overrides))
        if loaded.recipe.model.start is not None:
            raise UsageError("model.start: all networks of the paper's tables begin with new weights; remove the key")
        return loaded

    plain = {row.student: row for row in paper().table("I").rows}

    def job_of(row: PaperRow, seed: int) -> Job:
        loaded = resolved(row.recipe(family))
        recipe, name = plan.teacher_of(loaded.recipe, seed, teachers), loaded.name
        if not row.teachers:
            return plan.plain(row.student, seed, recipe, name)
        if row.strategy == "ensemble":
            return plan.ensemble(row.teachers, row.student, seed, recipe, name, runs)
        job = plan.chain(row.teachers, row.student, seed, recipe, name, runs)
        if family == "published" and len(row.teachers) > 1:
            first = resolved(PUBLISHED_ASSISTANTS)
            assisted = plan.teacher_of(first.recipe, seed, teachers)
            path, last = row.teachers[:-1], row.teachers[-1]
            assistant = plan.chain(path, last, assisted.distill.teacher_seed, assisted, first.name, runs)
            job = replace(job, teachers=(assistant,))
        return job

    planned, skipped = [], []
    for row in rows:
        if without & {row.student, *row.teachers}:
            skipped.append(row)
            continue
        jobs = tuple(job_of(row, seed) for seed in range(seeds))
        baselines = tuple(job_of(plain[row.student], seed) for seed in range(seeds)) if row.teachers else ()
        controlled = tuple(map(blind, jobs)) if row.teachers and controls else ()
        planned.append(Planned(row, jobs, baselines, controlled))
    graph = plan.order(job for each in planned for job in each.all)
    return Study(named, family, tuple(planned), tuple(skipped), graph)


def blind(job: Job) -> Job:
    """The control of a taught job: the same training with image-blind teachers."""
    return replace(job, recipe=job.recipe.changed("distill", blind=True))


def chosen(tables: Sequence[str]) -> tuple[str, ...]:
    """The names of the tables in the paper's order, each once; `all` means every table. UsageError for other names."""
    known = [table.name for table in paper().tables]
    wanted = [name.upper() for name in tables]
    for name in wanted:
        one_of("table", name, (*known, "ALL"))
    return tuple(name for name in known if name in wanted or "ALL" in wanted)


def settings(data: str | None, limit: int | None, epochs: int | None) -> list[str]:
    """The flags as overrides.

    `limit` also reduces the test images. Otherwise the evaluation of a large teacher after each epoch would take most
    of the time of a small study.
    """
    flags = {"data.name": data, "data.limit": limit, "data.limit_test": limit, "train.epochs": epochs}
    return [f"{key}={value}" for key, value in flags.items() if value is not None]
