"""The training verbs: arguments -> recipe -> plan -> run or print.

Invariant: a verb only defines who teaches whom. Everything else is in the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli import plan
from ghostcli.cli import complete
from ghostcli.cli.check import report
from ghostcli.cli.options import TRAINING, Common, with_common, without
from ghostcli.display import console, table, tell, tell_json
from ghostcli.errors import GhostError, Interrupted, UsageError, printable
from ghostcli.packing import packed
from ghostcli.plan import Job, commands, record_of
from ghostcli.recipe import Resolved
from ghostcli.records import record, trained
from ghostcli.run import launch
from ghostcli.run.job import is_fresh, left
from ghostcli.run.prepare import require_possible
from ghostcli.zoo.names import KNOWN

check_app = typer.Typer(
    no_args_is_help=True,
    help="Only the teaching check of a training verb: ghost check distill resnet18 --student gns:1.0.",
)

MODELS = ", ".join(
    ["gns:WIDTH", "gnd:WIDTH", *(name for name in KNOWN if ":" not in name), "timm/NAME", "py:FILE.py:FUNCTION"]
)
Model = Annotated[str, typer.Argument(help=f"{MODELS}.", autocompletion=complete.models)]
TeacherModel = Annotated[
    str,
    typer.Argument(
        help="A model, run/ID or pretrained/NAME.",
        autocompletion=complete.models,
    ),
]
TeacherModels = Annotated[
    list[str], typer.Argument(help="Models, run/ID or pretrained/NAME, first to last.", autocompletion=complete.models)
]
Student = Annotated[
    str,
    typer.Option(
        "--student", metavar="MODEL", help="The network to train, as in gns:1.3.", autocompletion=complete.models
    ),
]
TeacherSeeds = Annotated[
    int,
    typer.Option(
        "--teacher-seeds",
        min=1,
        metavar="K",
        help="Train the teachers K times; the student of seed S learns from number S mod K.",
    ),
]


@dataclass(frozen=True)
class Teaching(Common):
    """The flags of every verb that teaches."""

    kind: Annotated[
        str | None,
        typer.Option("--kind", help="Distillation loss: kd, dkd, dist, hint, at or rkd.", show_default="the recipe's"),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Weight of the hard-label term, equation (1).", show_default="the recipe's"),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="Divides the logits before the softmax.", show_default="the recipe's"),
    ] = None
    teacher_seeds: TeacherSeeds = 1

    def resolve(self, *more: tuple[str, str]) -> Resolved:
        flags = {name: getattr(self, name) for name in ("kind", "alpha", "temperature")}
        ours = [(f"--{name}", f"distill.{name}={value}") for name, value in flags.items() if value is not None]
        return super().resolve(*ours, *more)

    def require_divided(self, teachers: Sequence[str]) -> None:
        """UsageError if --teacher-seeds cannot divide the seeds: a teacher is a finished run, or all seeds get one."""
        count, seeds = self.teacher_seeds, self.seeds
        if count == 1:
            return
        for name in filter(trained.is_trained, teachers):
            raise UsageError(f"--teacher-seeds {count}: {printable(name)} is one training; name a model instead")
        if len(seeds) > 1 and len({seed % count for seed in seeds}) == 1:
            listed = ", ".join(map(str, seeds))
            raise UsageError(
                f"--teacher-seeds {count}: the seeds {listed} all have the same teacher (seed mod {count}); "
                "name other seeds, such as --seed 0 --seed 1"
            )


@with_common
def train_teacher(ctx: typer.Context, model: Model, common: Common) -> None:
    """Train any model without a teacher: a teacher, or a student's baseline.

    ghost train-teacher resnet50        ghost train-teacher gns:1.0 --seed 0 --seed 1 --seed 2
    """
    resolved = common.resolve()
    act(ctx, common, lambda seed: plan.plain(model, seed, resolved.recipe, resolved.name))


@with_common
def distill(
    ctx: typer.Context,
    teacher: TeacherModel,
    common: Teaching,
    student: Student,
    generations: Annotated[
        int,
        typer.Option(
            "--generations", min=1, max=100, help="Born-again networks: each generation teaches the next, N times."
        ),
    ] = 1,
) -> None:
    """Distil one teacher into a student. The teacher is trained first if it has no finished run.

    ghost distill resnet18 --student gns:1.0 --temperature 4 --alpha 0.1
    """
    teach(ctx, common, plan.chain, [teacher, *[student] * (generations - 1)], student)


@with_common
def assist_chain(
    ctx: typer.Context,
    teachers: TeacherModels,
    common: Teaching,
    student: Student,
    dense: Annotated[bool, typer.Option("--dense", help="Each network learns from all earlier ones (DGKD).")] = False,
) -> None:
    """Distil through a chain of teacher assistants: each network teaches the next.

    ghost assist-chain resnet50 resnet34 resnet18 --student gns:1.3
    """
    teach(ctx, common, plan.chain, teachers, student, *([("--dense", "distill.dense=true")] if dense else []))


@with_common
def ensemble(
    ctx: typer.Context,
    teachers: TeacherModels,
    common: Teaching,
    student: Student,
    weighting: Annotated[
        str | None, typer.Option("--weighting", help="mean or adaptive (AMTML-KD).", show_default="the recipe's")
    ] = None,
) -> None:
    """Distil several teachers into a student at once.

    ghost ensemble resnet50 densenet161 vgg13 inceptionv3 --student gns:1.0
    """
    if len(teachers) < 2:
        raise UsageError(f"ensemble: {teachers[0]} is only one teacher; name two or more, or use ghost distill")
    flags = [("--weighting", f"distill.weighting={weighting}")] if weighting else []
    teach(ctx, common, plan.ensemble, teachers, student, *flags)


def register(app: typer.Typer, panel: str) -> None:
    """Register each verb twice: to train, and under `ghost check` for the teaching check."""
    verbs: dict[str, Callable[..., Any]] = {
        "train-teacher": train_teacher,
        "distill": distill,
        "assist-chain": assist_chain,
        "ensemble": ensemble,
    }
    for name, verb in verbs.items():
        takes = f"The arguments are those of ghost {name}."
        if name != "train-teacher":
            takes += " Its teachers must have been trained."
        app.command(name, rich_help_panel=panel)(verb)
        check_app.command(
            name, help=f"Check what teachers would teach in the run of the first --seed, without training.\n\n{takes}"
        )(without(verb, TRAINING))


def teach(
    ctx: typer.Context,
    common: Teaching,
    build: Callable[..., Job],
    teachers: Sequence[str],
    student: str,
    *flags: tuple[str, str],
) -> None:
    """Act on one job per seed, planned by `build` (`plan.chain` or `plan.ensemble`). `flags`: those of the verb."""
    resolved = common.resolve(*flags)
    common.require_divided(teachers)

    def job_of(seed: int) -> Job:
        recipe = plan.teacher_of(resolved.recipe, seed, common.teacher_seeds)
        return build(tuple(teachers), student, seed, recipe, resolved.name, common.runs)

    act(ctx, common, job_of)


def act(ctx: typer.Context, common: Common, job_of: Callable[[int], Job]) -> None:
    """The last step of every verb: plan one job per seed, then print, check or run the plan."""
    todo = plan.order(job_of(seed) for seed in common.seeds)
    if ctx.parent is not None and ctx.parent.info_name == "check":
        report(todo.requested[0], common)
        return
    options = common.options()
    if common.dry_run:
        require_possible(todo, options)
        show_plan(todo, options, common.json)
        show_scripts(todo, options)
    elif options.place.detach:
        leave(todo, options)
        from ghostcli.run import queue

        show_results(todo, common, queue.told(options.runs) if common.json else {})
    else:
        try:
            done = launch.carry_out(todo, packed(todo, options))
        except UsageError:
            raise
        except (GhostError, Interrupted):
            show_results(todo, common)
            raise
        show_results(todo, common)
        draw_curves(done, common.runs)


def leave(todo: plan.Plan, options: launch.Options) -> None:
    """Submit a plan to Slurm and say how to follow it."""
    from ghostcli.run.on_slurm import jobs

    if count := launch.detach(todo, options):
        how = commands.line("runs", "list", runs=options.runs)
        console.print(f"{jobs(count)} in the queue; {how} tells more", markup=False)


def show_scripts(todo: plan.Plan, options: launch.Options) -> None:
    """With --on slurm: print the script of each job that is not done, on stderr beside --json."""
    if options.place.on != "slurm":
        return
    from ghostcli.run.on_slurm import scripts

    typer.echo("\n" + scripts(left(todo, options), options), nl=False, err="--json" in options.command)


def show_results(todo: plan.Plan, common: Common, queued: Mapping[str, tuple[str, str]] = {}) -> None:
    """Print the requested runs: each finished one and its accuracy; with --json all of them, finished or not.

    `queued`: run id -> its state in Slurm's queue, and a phrase.
    """
    if common.json:
        results = [told(job, common.runs, queued.get(job.id)) for job in todo.requested]
        tell_json(results[0] if len(results) == 1 else results)
        return
    view = table("run", "test accuracy (%)")
    for job in todo.requested:
        run = record_of(job, common.runs)
        if run.result:
            view.add_row(f"run/{run.id}", f"{run.result.accuracy.selected:.2f}")
    if view.row_count:
        tell(view)


def told(job: Job, runs: Path, queued: tuple[str, str] | None = None) -> dict[str, Any]:
    """The --json value of a run. Of one that is not done: the reason, and no accuracy. One in a queue has no error."""
    run = record_of(job, runs)
    result, absent = run.result, run.status == "absent"
    facts = result or job
    waits = any(not plan.is_done(teacher, runs) for teacher in job.teachers)
    error = ("its teacher is not done" if waits else "the command ended before it began") if absent else run.problem
    status, why = ("not started" if absent else run.status), {"error": error}
    if queued:
        status, phrase = queued
        why = {"error" if status == "lost" else "queue": phrase}
    accuracy = result and {key: getattr(result.accuracy, key) for key in ("last", "best", "selected")}
    return {
        "run": job.id,
        "status": status,
        **({} if result else why),
        "student": facts.student,
        "strategy": facts.strategy,
        "teachers": list(facts.path),
        "data": facts.data,
        "seed": facts.seed,
        "epochs": result.epochs if result else job.recipe.train.last_epoch,
        "accuracy": accuracy,
        "seconds": result.seconds if result else None,
        "recipe": facts.recipe_name,
        **({"check": [finding.model_dump() for finding in result.check]} if result else {}),
    }


def draw_curves(done: list[record.RunRecord], runs: Path) -> None:
    """Draw curves.png for each run of several epochs: its learning curve, and its baseline's if there is one.

    A folder that cannot be written costs the picture and a warning, not the result.
    """
    done = [run for run in done if run.result.epochs > 1 and not (run.path / "curves.png").exists()]
    if not done:
        return
    from ghostcli.render.figures import save
    from ghostcli.render.plots import Asked, learning_curves

    known = record.scan(runs)
    for run in done:
        drawn = run.path / f".curves.{os.getpid()}.png"  # renamed when complete, so a kill leaves no partial file
        try:
            save(learning_curves(Asked(known, [run])), drawn)
            os.replace(drawn, run.path / "curves.png")
        except (GhostError, OSError) as error:
            console.print(printable(f"ghost: no learning curve was drawn: {error}"), style="yellow", markup=False)
            drawn.unlink(missing_ok=True)
            return


#: Status of a run -> what a plan does with it. Every other run is continued.
STATES = {"done": "reused", "absent": "trained"}
#: What a plan does -> its words for a person.
PLANNED = {"reused": "is done, reused", "trained": "will be trained", "goes on": "will go on"}


def planned(job: Job, runs: Path, fresh: bool = False) -> dict[str, Any]:
    """The --json value of a job that is planned. `fresh`: it is trained, whatever there is."""
    return {
        "run": job.id,
        "student": job.student,
        "strategy": job.strategy,
        "teachers": [teacher.id for teacher in job.teachers],
        "seed": job.seed,
        "recipe": job.recipe_name,
        "epochs": job.recipe.train.last_epoch,
        "state": "trained" if fresh else STATES.get(record_of(job, runs).status, "goes on"),
    }


def show_plan(todo: plan.Plan, options: launch.Options, as_json: bool) -> None:
    """Print what will be trained and what is reused, in order."""
    rows = [planned(job, options.runs, is_fresh(job, todo, options)) for job in todo.jobs]
    if as_json:
        tell_json(rows)
        return
    view = table("", "run", "taught by", "epochs", "plan", words=("run", "taught by", "plan"))
    for number, row in enumerate(rows, 1):
        state = PLANNED[row["state"]]
        view.add_row(str(number), row["run"], "\n".join(row["teachers"]) or "-", str(row["epochs"]), state)
    tell(view)
