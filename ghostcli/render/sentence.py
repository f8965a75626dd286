"""A comparison in one sentence, for readers without statistics. Invariant: it says no more than the table."""

from __future__ import annotations

from ghostcli.comparison.rows import Row
from ghostcli.comparison.verdicts import UNDECIDED
from ghostcli.paper import label

VERDICTS = {
    "better": "teaching helped",
    "worse": "teaching hurt",
    "equivalent": "teaching made no difference that matters",
    UNDECIDED: "no difference was shown",
}


def verdict(row: Row) -> str | None:
    """`teaching helped: +2.10 points, 95 % interval +0.90 to +3.40, 3 seeds, for this teacher`; None for a row without
    a verdict. With several teachers their number stands at the end."""
    if row.verdict is None:
        return None
    delta = row.delta
    ours, theirs = len(row.group.runs), len(row.baseline.runs)
    if delta.of_two_networks:
        return f"{UNDECIDED}, because one side has one run (difference {delta.mean:+.2f} points)"
    said = VERDICTS[row.verdict]
    if row.verdict == UNDECIDED and not delta.low <= 0 <= delta.high:
        said += f" after the correction for all comparisons (p = {row.p_adjusted:.3f})"
    text = f"{said}: {delta.mean:+.2f} points, 95 % interval {delta.low:+.2f} to {delta.high:+.2f}"
    seeds = f"{ours} seeds" if ours == theirs else f"{ours} seeds against {theirs}"
    if row.group.one_teacher:
        scope = "for this teacher" if len(row.group.about.teachers) == 1 else "for these teachers"
    else:
        scope = f"{row.group.teacher_count} trainings of the teachers"
    return f"{text}, {seeds}, {scope}"


def subject(row: Row) -> str:
    """Student and teachers: `GN-S 0.3x taught by GN-S 0.5x`."""
    return f"{label(row.student)} taught by {row.name.partition(' < ')[2] or 'itself'}"
