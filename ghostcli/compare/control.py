"""The control that a gain by teaching must beat: untaught runs on labels smoothed as softly as the teachers' targets.

Invariant: a control differs from the row's baseline in `train.label_smoothing` alone, which is the larger, and is
never part of that baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ghostcli.compare.commands import RUNS, baseline_of
from ghostcli.compare.groups import SMOOTHING, Arm, Group, trained_apart
from ghostcli.compare.stats import Difference, Summary

#: The code of the teaching check's finding whose figure is the entropy of the soft targets over log C.
SOFTNESS = "near-one-hot"
#: What is customary, for a record in which no softness was measured.
CUSTOMARY = 0.1


@dataclass(frozen=True)
class Control:
    """What a taught row is set against besides its baseline; all but `command` and `measured` None without such runs.

    `measured`: the smoothing that matches the targets' entropy, or None where the check did not look. `command` makes
    the runs. `delta`: the taught row minus the control. `p_adjusted` and `verdict` come with the whole table.
    """

    command: str
    measured: float | None = None
    arm: Arm | None = None
    smoothing: float | None = None
    ours: Summary | None = None
    delta: Difference | None = None
    p_adjusted: float | None = None
    verdict: str | None = None

    @property
    def matched(self) -> bool:
        """Whether its labels are about as soft as the targets (a tenth either way), as far as that was measured."""
        return self.measured is None or self.smoothing is None or near(self.smoothing, self.measured)


def of(arm: Arm, baseline: Arm, groups: Iterable[Group], metric: str, runs: Path = RUNS) -> Control:
    """The control of `arm`: of several that nearest to the measured softness, then of most seeds, then the newest."""
    softness = measured(arm)
    smoothed = {SMOOTHING: CUSTOMARY if softness is None else softness}
    command = baseline_of(baseline, baseline.about.epochs, smoothed, runs)
    found = [other for group in groups for other in group.arms if _controls(other, baseline)]
    if not found:
        return Control(command, softness)

    def rank(other: Arm) -> tuple[float, int, float]:
        far = 0.0 if softness is None else abs(other.smoothing - softness)
        return -far, len(other.runs), other.newest

    best = max(found, key=rank)
    return Control(command, softness, best, best.smoothing, best.summary(metric), arm.minus(best, metric))


def _controls(other: Arm, baseline: Arm) -> bool:
    if other.teachers or other.student != baseline.student or other.smoothing <= baseline.smoothing:
        return False
    same_images = other.about.data_checksum == baseline.about.data_checksum
    return same_images and all(trained_apart(Arm((run,)), baseline) == {SMOOTHING} for run in other.runs)


def measured(arm: Arm) -> float | None:
    """The label smoothing whose targets are as soft as the check found the arm's, to three decimals, 0.001 at least.

    None where no run's check says. The figure is an entropy as a fraction of log C; the mean over seeds counts.
    """
    findings = [item for run in arm.runs for item in run.result.check]
    figures = [item.figure for item in findings if item.code == SOFTNESS]
    shares = [figure for figure in figures if figure is not None and 0 <= figure <= 1]
    if not shares:
        return None
    return round(min(0.999, max(0.001, matched(sum(shares) / len(shares), arm.about.classes))), 3)


def near(smoothing: float, measured: float) -> bool:
    """Whether labels smoothed so are about as soft (a tenth either way) as targets that were measured."""
    return abs(smoothing - measured) <= max(0.002, 0.1 * measured)


def matched(share: float, classes: int) -> float:
    """The smoothing e whose labels, 1 - e + e/C on their class and e/C on each other, have entropy `share` log C."""
    from scipy import optimize, special

    def excess(epsilon: float) -> float:
        other = epsilon / classes
        return float(special.entr(1 - epsilon + other) + (classes - 1) * special.entr(other)) - share * math.log(
            classes
        )

    if share <= 0 or share >= 1 or classes < 2:
        return 1.0 if share >= 1 else 0.0
    return float(optimize.brentq(excess, 0.0, 1.0))
