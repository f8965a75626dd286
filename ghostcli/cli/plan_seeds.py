"""`ghost plan-seeds`: how many seeds an effect takes, from recorded spreads. Invariant: it reads and trains nothing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostcli.cli.options import Json, Runs
from ghostcli.errors import UsageError, printable


@dataclass(frozen=True)
class Recorded:
    """Two run groups with a recorded spread: counts, standard deviations and the images' standard error, in points.

    `pairs`: the correlation of runs with the same start and order, where they are compared in pairs.
    """

    name: str
    runs: tuple[int, int]
    sd: tuple[float, float]
    images: float
    pairs: float | None = None


def plan_seeds(
    effect: Annotated[float, typer.Option("--effect", metavar="POINTS", help="The difference to be found, in points.")],
    runs: Runs = Path("runs"),
    spread: Annotated[
        float | None,
        typer.Option("--spread", metavar="SD", help="Spread over seeds in points; no records are read then."),
    ] = None,
    comparisons: Annotated[
        int, typer.Option("--comparisons", min=1, metavar="M", help="How many comparisons the answer will hold.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Say how many seeds on each side find an effect with 80 % probability, from the spreads of recorded runs."""
    if not effect > 0:
        raise UsageError(f"--effect {effect:g}: is a difference above 0 points; type one, as in --effect 0.5")
    if spread is not None and not spread >= 0:
        raise UsageError(f"--spread {spread:g}: is a standard deviation in points; type one, as in --spread 0.5")
    known = [Recorded("as typed", (0, 0), (spread, spread), 0.0)] if spread is not None else _recorded(runs)
    rows = [_row(one, effect, comparisons) for one in known]
    typer.echo(json.dumps(rows, indent=1) if as_json else "\n".join(_lines(rows, effect, comparisons)))


def _recorded(folder: Path) -> list[Recorded]:
    """Every taught group with its baseline where both have two runs or more; UsageError where there are none."""
    from ghostcli.compare.admission import admit
    from ghostcli.compare.groups import cohorts
    from ghostcli.records import record

    found = []
    for cohort in cohorts(admit(record.scan(folder)).runs):
        for ours in cohort.groups:
            baseline = cohort.baseline(ours.student) if ours.teachers else None
            if baseline is None or min(len(ours.runs), len(baseline.runs)) < 2:
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
            found.append(Recorded(f"{ours.student} {ours.how}", runs, sd, images, pairs))
    if not found:
        raise UsageError(
            f"{folder}: no comparison with two runs on both sides, so no spread is recorded; train a pilot "
            "(--seed 0 --seed 1 --seed 2) or type a spread, as in --spread 0.5"
        )
    return found


def _row(one: Recorded, effect: float, comparisons: int) -> dict[str, Any]:
    from ghostcli.compare import power

    spread = power.Spread(*one.sd, one.images, one.pairs)
    now = None
    if min(one.runs) > 1:
        now = round(power.smallest(*spread.design(*one.runs), comparisons=comparisons), 3)
    return {
        "comparison": one.name,
        "runs": list(one.runs),
        "sd": [round(sd, 3) for sd in one.sd],
        "images_error": round(one.images, 3),
        "effect": effect,
        "power": power.POWER,
        "comparisons": comparisons,
        "seeds": power.plan_seeds(effect, spread, comparisons=comparisons),
        "finds_now": now,
    }


def _lines(rows: list[dict[str, Any]], effect: float, comparisons: int) -> list[str]:
    from ghostcli.compare.power import MOST

    lines = [f"Seeds on each side that find {effect:g} points with 80 % probability ({comparisons} compared):"]
    for row in rows:
        seeds = row["seeds"]
        line = f"{row['comparison']}: {seeds} seeds" if seeds else f"{row['comparison']}: not with {MOST} seeds"
        line += f" (SD {row['sd'][0]:.2f} and {row['sd'][1]:.2f}"
        line += f", test images ±{row['images_error']:.2f}" if row["images_error"] else ""
        line += f"; {row['runs'][0]} and {row['runs'][1]} runs find {row['finds_now']:.2f}" if row["finds_now"] else ""
        lines.append(printable(line + ")"))
    lines.append("A spread from three runs is itself known within a factor of 0.5 to 6: plan for more than it says.")
    return lines
