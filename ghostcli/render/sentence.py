"""A comparison in one sentence, for readers without statistics. Invariant: it says no more than the table."""

from __future__ import annotations

from ghostcli.compare.rows import Row
from ghostcli.compare.verdicts import UNDECIDED
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
    delta = row.delta
    if delta is None or row.verdict is None or delta.low is None or delta.high is None:
        return None
    ours, theirs = len(row.group.runs), len(row.baseline.runs)
    if delta.of_two_networks:
        return f"{UNDECIDED}, because one side has one run (difference {delta.mean:+.2f} points)"
    seeds = f"{ours} seed{'s' * (ours != 1)}" if ours == theirs else f"{ours} seeds against {theirs}"
    text = f"{VERDICTS[row.verdict]}: {delta.mean:+.2f} points, 95 % interval {delta.low:+.2f} to {delta.high:+.2f}"
    teachers = row.group.teacher_count
    scope = f"{teachers} trainings of the teachers" if teachers > 1 else "for this teacher"
    if len(row.group.about.teachers) > 1 and teachers == 1:
        scope = "for these teachers"
    return f"{text}, {seeds}, {scope}"


def subject(row: Row) -> str:
    """Student and teachers: `GN-S 0.3x taught by GN-S 0.5x`."""
    return f"{label(row.student)} taught by {row.name.partition(' < ')[2] or 'itself'}"
