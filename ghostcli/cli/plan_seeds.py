"""`ghost plan-seeds`: how many seeds detect an effect, from recorded spreads. Invariant: it only reads run records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.display import tell_json
from ghostcli.errors import UsageError, printable

if TYPE_CHECKING:
    from ghostcli.comparison.power import Spread
    from ghostcli.comparison.stats import Difference


#: Standard error of a difference from the choice of 10,000 test images, in points: twice that of runs/studies/cifar10.
IMAGES_ERROR = 0.1
#: The smallest effect, in points: one image of 100,000.
SMALLEST = 0.001


def plan_seeds(
    effect: Annotated[
        float, typer.Option("--effect", metavar="POINTS", help="The difference to detect, in points of accuracy.")
    ],
    runs: Runs = Path("runs"),
    spread: Annotated[
        float | None,
        typer.Option(
            "--spread", metavar="SD", help="Standard deviation over seeds, in points, instead of recorded ones."
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            min=1,
            metavar="N",
            help="With --spread: number of test images. Their choice adds 0.1 points at 10,000.",
            show_default="not counted",
        ),
    ] = None,
    comparisons: Annotated[
        int, typer.Option("--comparisons", min=1, metavar="M", help="How many comparisons will be made together.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Print how many seeds per side detect an effect with 80 % probability, given the spread of recorded runs."""
    if not SMALLEST <= effect <= 100:
        raise UsageError(f"--effect {effect:g}: must be from {SMALLEST:g} to 100 points, as in --effect 0.5")
    if spread is not None and not 0 <= spread <= 100:
        raise UsageError(f"--spread {spread:g}: must be a standard deviation from 0 to 100 points, as in --spread 0.5")
    if images is not None and spread is None:
        raise UsageError("--images: is for --spread; recorded runs say how much their test images add")
    from ghostcli.comparison.power import Spread

    error = 0.0 if images is None else IMAGES_ERROR * math.sqrt(10_000 / images)
    typed = [Pilot("as typed", (0, 0), Spread(spread, spread, error))] if spread is not None else []
    rows = [_row(pilot, effect, comparisons) for pilot in typed or _recorded(runs)]
    tell_json(rows) if as_json else typer.echo("\n".join(_lines(rows, effect, comparisons)))


@dataclass(frozen=True)
class Pilot:
    """A comparison whose spreads are known. `runs` per side; `delta` is set if its units are several teachers."""

    name: str
    runs: tuple[int, int]
    spread: Spread
    delta: Difference | None = None


def _recorded(folder: Path) -> list[Pilot]:
    """All taught groups and their baselines, if both have at least two runs. UsageError if there are none."""
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.groups import cohorts, unlike
    from ghostcli.comparison.power import Spread
    from ghostcli.records import record

    pilots = []
    for cohort in cohorts(admit(record.scan(folder)).runs):
        for ours in cohort.groups:
            baseline = cohort.baseline(ours) if ours.teachers else None
            if baseline is None or unlike(ours, baseline) or min(len(ours.runs), len(baseline.runs)) < 2:
                continue
            delta = ours.minus(baseline)
            if not delta.parts:
                continue
            whole = delta.parts[0]
            images = math.sqrt(whole.down[-1]) if math.isinf(whole.dfs[-1]) else 0.0
            sd = (ours.summary().sd, baseline.summary().sd)
            pairs = None
            if delta.paired and min(sd) > 0:
                pairs = (sd[0] ** 2 + sd[1] ** 2 - delta.units[0] * whole.down[0]) / (2 * sd[0] * sd[1])
            runs = (len(ours.runs), len(baseline.runs))
            by_teacher = delta if ours.teacher_count > 1 else None
            pilots.append(Pilot(f"{ours.student} {ours.how}", runs, Spread(*sd, images, pairs), by_teacher))
    if not pilots:
        raise UsageError(
            f"{folder}: no comparison has two runs per side, so no spread is known; train a pilot "
            "(--seed 0 --seed 1 --seed 2) or give a spread, as in --spread 0.5"
        )
    return pilots


def _row(pilot: Pilot, effect: float, comparisons: int) -> dict[str, Any]:
    from ghostcli.comparison import power

    spread, now = pilot.spread, None
    if pilot.delta is not None:
        now = power.could_find(pilot.delta, comparisons)
    elif min(pilot.runs) > 1:
        now = power.smallest(*spread.design(*pilot.runs), comparisons=comparisons)
    return {
        "comparison": pilot.name,
        "runs": list(pilot.runs),
        "teachers": pilot.delta.units[0] if pilot.delta else None,
        "sd": [round(sd, 3) for sd in (spread.ours, spread.baseline)],
        "images_error": round(spread.images, 3),
        "effect": effect,
        "power": power.POWER,
        "comparisons": comparisons,
        "seeds": None if pilot.delta else power.plan_seeds(effect, spread, comparisons=comparisons),
        "finds_now": None if now is None else round(now, 3),
    }


def _lines(rows: list[dict[str, Any]], effect: float, comparisons: int) -> list[str]:
    from ghostcli.comparison.power import MOST

    compared = f"{comparisons} comparison{'s' * (comparisons != 1)}"
    lines = [f"Seeds per side that detect {effect:g} points with 80 % probability ({compared}):"]
    for row in rows:
        seeds = row["seeds"]
        line = f"{row['comparison']}: {seeds} seeds" if seeds else f"{row['comparison']}: {MOST} seeds are not enough"
        if row["teachers"]:
            line = (
                f"{row['comparison']}: more teachers instead of seeds, since {row['teachers']} teachers are its units"
            )
        line += f" (SD {row['sd'][0]:.2f} and {row['sd'][1]:.2f}"
        line += f", test images ±{row['images_error']:.2f}" if row["images_error"] else ""
        if row["finds_now"]:
            line += f"; {row['runs'][0]} and {row['runs'][1]} runs detect {row['finds_now']:.2f}"
        lines.append(printable(line + ")"))
    if uncounted := [row for row in rows if not row["images_error"]]:
        ways = " (--images N)" if uncounted[0]["runs"] == [0, 0] else "; these runs do not show how much it adds"
        where = "" if len(uncounted) == len(rows) else " where the line does not name it"
        lines.append(
            f"The choice of the test images is not counted{where}: with few images more seeds are needed{ways}."
        )
    if any(min(row["runs"]) in (2, 3) for row in rows):
        lines.append(
            "A spread from three runs is itself uncertain (factor 0.5 to 6), so plan for more seeds than this."
        )
    return lines
