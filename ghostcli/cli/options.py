"""The options of all training verbs, declared once.

Invariant: a verb's function has its own parameters and one of the dataclasses here. `with_common` adds its flags.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ghostcli import plan
from ghostcli.cli import complete
from ghostcli.errors import UsageError, printable
from ghostcli.recipe.load import Resolved, load
from ghostcli.run.job import AUTO, Options
from ghostcli.run.place import Place, place
from ghostcli.run.streams import MOST


def folder(text: str | Path) -> Path:
    """The folder of --runs. UsageError for empty text (e.g. from an unset variable), which Path reads as `.`."""
    if not str(text).strip():
        raise UsageError("--runs: is empty; name a folder, as in --runs runs (the default) or --runs . (this folder)")
    return Path(text)


Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the run directories.", parser=folder)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout and nothing else.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and reused, and exit.")]
Set = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, as in train.batch_size=128."),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME", help="cifar10, cifar100, digits or folder:PATH.", show_default="the recipe's"
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, metavar="N", help="Epochs.", show_default="the recipe's")
]


def at_a_time(text: str | int) -> int:
    """The number of --jobs, or AUTO."""
    if text in ("auto", AUTO):
        return AUTO
    if not str(text).isdecimal() or int(text) < 1:
        raise UsageError(f"--jobs {printable(text)}: must be a number from 1, or auto")
    return int(text)


PANEL = "On a cluster"


def cluster(*names: str, metavar: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=PANEL, **more)


@dataclass(frozen=True)
class Where:
    """The flags that say where jobs run."""

    on: Annotated[str, cluster("--on", metavar="WHERE", help="local, ray, ray://HOST:PORT or slurm.")] = "local"
    cpus_per_job: Annotated[
        int | None,
        cluster("--cpus-per-job", metavar="N", min=1, help="Threads of a job.", show_default="a share; 1 on a cluster"),
    ] = None
    gpus_per_job: Annotated[
        float, cluster("--gpus-per-job", metavar="N", help="GPUs of a job. On Ray also a fraction, as in 0.5.")
    ] = 0.0
    partition: Annotated[str | None, cluster("--partition", metavar="NAME", help="Slurm's partition.")] = None
    gres: Annotated[str | None, cluster("--gres", metavar="LIST", help="Slurm's resources, as in gpu:1.")] = None
    time: Annotated[
        str | None,
        cluster(
            "--time", metavar="LIMIT", help="Slurm's time limit. A job that reaches it saves, and is queued again."
        ),
    ] = None
    account: Annotated[str | None, cluster("--account", metavar="NAME", help="Slurm's account.")] = None
    slurm: Annotated[
        list[str], cluster("--slurm", metavar="KEY=VALUE", help="Any other option of sbatch, as in qos=long.")
    ] = ()  # type: ignore[assignment]
    detach: Annotated[bool, typer.Option("--detach", help="Submit to Slurm and leave.", rich_help_panel=PANEL)] = False

    def place(self) -> Place:
        """The flags as a checked value."""
        flags = {name: getattr(self, name) for name in ("partition", "gres", "time", "account")}
        return place(self.on, self.cpus_per_job, self.gpus_per_job, self.slurm, flags, self.detach)


@dataclass(frozen=True)
class Running(Where):
    """The flags that say how a plan is run."""

    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="K|auto",
            parser=at_a_time,
            help="Number of runs at a time, each in its own process. auto: as many as are fastest here, measured.",
            show_default="1; on a cluster as many as it holds",
        ),
    ] = None
    streams: Annotated[
        int,
        typer.Option(
            "--streams",
            metavar="K",
            min=1,
            max=MOST,
            help="Number of runs at a time in this process, each on a stream of its own, for one GPU.",
        ),
    ] = 1
    runs: Runs = Path("runs")
    device: Device = "auto"
    dry_run: DryRun = False
    json: Json = False

    def options(self) -> Options:
        """The flags as a checked value. Without --jobs there is one run at a time here, and any number on a cluster."""
        place = self.place()
        if self.jobs == AUTO and place.remote:
            raise UsageError(
                "--jobs auto: is for this machine; a cluster takes as many runs as it holds, so leave it out"
            )
        if self.streams > 1 and (self.jobs is not None or place.remote):
            beside = "--on" if place.remote else "--jobs"
            raise UsageError(f"--streams: cannot be given with {beside}; it is for runs in one process on this machine")
        jobs = self.jobs if self.jobs is not None else 0 if place.remote else 1
        return Options(self.runs, self.device, jobs=jobs, streams=self.streams, command=words(), place=place)


@dataclass(frozen=True)
class Common(Running):
    """The flags of every training verb."""

    recipe: Annotated[
        str,
        typer.Option(
            *("--recipe", "-r"),
            metavar="NAME|FILE",
            help="See [bold]ghost recipe list[/]; or your own file.",
            autocompletion=complete.recipes,
        ),
    ] = "paper"
    overrides: Set = ()  # type: ignore[assignment]
    data: Data = None
    epochs: Epochs = None
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="run/ID|pretrained/NAME",
            help="Start from the weights of a trained network, with a new last layer.",
            show_default="new weights",
            autocompletion=complete.models,
        ),
    ] = None
    seed: Annotated[
        list[int], typer.Option("--seed", min=0, max=2**63 - 1, metavar="S", help="Repeatable: one run per seed.")
    ] = (0,)  # type: ignore[assignment]
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Continue an unfinished run, or start over (the old run is renamed and kept)."
        ),
    ] = True

    def options(self) -> Options:
        return replace(super().options(), resume=self.resume)

    def resolve(self, *more: tuple[str, str]) -> Resolved:
        """The recipe with all overrides: common flags, then `more` (flags of the verb), then --set."""
        flags = [("--data", f"data.name={quoted(self.data)}")] if self.data is not None else []
        flags += [("--epochs", f"train.epochs={self.epochs}")] if self.epochs is not None else []
        flags += [("--from", f"model.start={quoted(self.start)}")] if self.start is not None else []
        resolved = load(self.recipe, list(self.overrides), [*flags, *more])
        return replace(resolved, recipe=plan.started(resolved.recipe, self.runs))

    @property
    def seeds(self) -> list[int]:
        if len(set(self.seed)) < len(self.seed):
            raise UsageError(f"--seed: {max(self.seed, key=list(self.seed).count)} is given twice; name each seed once")
        return list(self.seed)


def words() -> tuple[str, ...]:
    """The command line for the record, without --no-resume, so it continues the run."""
    return tuple(word for word in sys.argv[1:] if word != "--no-resume")


def quoted(value: str) -> str:
    """`value` as a TOML string, so no character of a user's path is read as TOML syntax."""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise UsageError(f"{printable(value)}: contains control characters; type a name without them")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def with_common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add common flags to a verb. `function(..., common: Common)` becomes a command with its own parameters and the
    flags of that dataclass."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    [common] = [p for p in parameters if is_dataclass(p.annotation)]
    own = [p for p in parameters if p is not common]
    hints = get_type_hints(common.annotation, include_extras=True)
    # The flags of the class itself before those that it inherits, for the help.
    declared = [field for kind in common.annotation.__mro__[:-1] for field in fields(kind) if field.name in vars(kind)]
    flags = []
    for field in declared:
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        flags.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        chosen = {flag.name: kwargs.pop(flag.name) for flag in flags}
        return function(*args, **{common.name: common.annotation(**chosen)}, **kwargs)

    return as_command(command, [*own, *flags])


#: The flags of `Common` that say how training goes on.
TRAINING = (*(field.name for field in fields(Where)), "jobs", "streams", "dry_run", "resume")


def without(verb: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """A command made by `with_common` without some of its flags, which keep their defaults."""
    known = inspect.signature(verb).parameters
    defaults = {name: known[name].default for name in names}

    @functools.wraps(verb)
    def command(*args: Any, **kwargs: Any) -> Any:
        return verb(*args, **kwargs, **defaults)

    return as_command(command, [parameter for name, parameter in known.items() if name not in names])


def as_command(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """`function`, made by `functools.wraps`, with these parameters for typer to see."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    del function.__wrapped__  # type: ignore[attr-defined]
    return function
