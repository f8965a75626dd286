"""`ghost check`: the teaching check alone, with a training verb and its arguments.

Invariant: nothing is trained. The findings printed are those that the run's record would contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ghostcli.cli.options import Common
from ghostcli.display import apart, tell_json
from ghostcli.errors import UsageError, printable
from ghostcli.plan import Finished, Job, commands, is_done, record_of
from ghostcli.records import trained
from ghostcli.run.job import load_data

if TYPE_CHECKING:
    from ghostcli.records.model import Finding


def report(job: Job, common: Common) -> None:
    """Check the teaching of `job` and print the findings. Warnings are findings, not failures.

    UsageError if a teacher has no finished run; it names the command that trains the teacher.
    """
    missing = [teacher for teacher in job.teachers if not is_done(teacher, common.runs)]
    if missing:
        problem = record_of(missing[0], common.runs).problem
        raise UsageError(
            f"ghost check: the teacher {missing[0].id} has no finished run ({problem}); train it first: "
            f"{command(missing[0], common)}"
        )
    findings = inspect(job, common)
    if common.json:
        tell_json([finding.model_dump() for finding in findings])
    else:
        _print(job, findings)


def inspect(job: Job, common: Common) -> list[Finding]:
    """The findings of the check that the engine makes before the first step of `job`."""
    with apart():
        from ghostcli.check import findings
        from ghostcli.distill import teacher
        from ghostcli.engine.device import pick

        device = pick(common.device)
        data = load_data(job.recipe.data)
        classes = len(data.classes)
        teachers = [teacher.load(t.id, common.runs, classes, device) for t in job.teachers]
        return findings.inspect(job, data, teachers, device)


def _print(job: Job, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": Text("ok", "green"), "info": Text("info", "cyan"), "warn": Text("warn", "yellow")}
    view = Table("", "checked", "found", box=None, pad_edge=False)
    for finding in findings:
        view.add_row(marks[finding.level], finding.subject, Text(printable(finding.message)))
    console = Console()
    console.print(view)
    warnings = sum(finding.level == "warn" for finding in findings)
    count = {0: "no warnings", 1: "1 warning"}.get(warnings, f"{warnings} warnings")
    console.print(Text(f"{job.id}: {count}"))


def command(job: Job, common: Common) -> str:
    """The command that trains `job` alone, with the recipe of `common`."""
    names = [trained.named(t.id) if isinstance(t, Finished) else t.student for t in _ancestors(job)]
    flags = commands.settings(common.recipe, job.recipe, job.taught)
    return commands.training(job.student, job.strategy, names, common.recipe, flags, (job.seed,), common.runs)


def _ancestors(job: Job) -> list[Job | Finished]:
    """The networks to name in the command for `job`: all of a chain, first to last, or the teachers."""
    if len(job.teachers) != 1:
        return list(job.teachers)
    teacher = job.teachers[0]
    return [*(_ancestors(teacher) if isinstance(teacher, Job) else []), teacher]
