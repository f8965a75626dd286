"""What rows are called in lists, notes and figures. Invariant: no two rows of a table have one name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ghostcli.compare.groups import Arm, own
from ghostcli.paper import joined, label

if TYPE_CHECKING:
    from ghostcli.compare.tables import Row


def names(rows: Sequence[Row]) -> list[str]:
    """A name a row: student, teachers and way of teaching, and of rows that this leaves alike what tells them apart."""
    found = [_plainly(row) for row in rows]
    alike: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(found):
        alike[name].append(i)
    for name, where in alike.items():
        arms = [arm for i in where if (arm := rows[i].arm)]
        if len(arms) < 2 or len(arms) < len(where):
            continue
        facets = [facet for facet in FACETS if len({facet(arm) for arm in arms}) > 1]
        for i, arm in zip(where, arms, strict=True):
            said = ", ".join(word for facet in facets if (word := facet(arm)))
            found[i] = f"{name} ({said})" if said else name
    return _numbered(found, rows)


def _plainly(row: Row) -> str:
    if not row.taught:
        return label(row.student)
    name = f"{label(row.student)} < {joined(row.teachers, row.strategy)}"
    how = "" if row.arm is None else row.arm.setting if row.printed else row.arm.how
    return f"{name}, {how}" if how else name


def _numbered(found: list[str], rows: Sequence[Row]) -> list[str]:
    """Rows that only their files tell apart get their folder's digest."""
    return [
        f"{name} [{row.arm.runs[0].id.partition('/')[0].rpartition('-')[2]}]"
        if row.arm and found.count(name) > 1
        else name
        for name, row in zip(found, rows, strict=True)
    ]


def _order(arm: Arm) -> str:
    return "" if arm.about.shuffled else "unshuffled"


def _smoothed(arm: Arm) -> str:
    return f"smoothed {arm.smoothing:g}" if arm.smoothing else ""


def _own(arm: Arm) -> str:
    """What its training has of its own; the order has a word already."""
    return own({key: value for key, value in arm.departs.items() if key != "data.shuffle"})


def budget(arm: Arm) -> str:
    return f"{arm.about.train_images:,} × {arm.about.epochs}"


#: What sets protocols apart, in few words or none.
FACETS: tuple[Callable[[Arm], str], ...] = (
    lambda arm: arm.about.family,
    lambda arm: arm.about.data,
    budget,
    _order,
    _smoothed,
    _own,
)


def protocol(arm: Arm) -> str:
    """All of an arm's protocol, its budget on a line of its own."""
    rest = ", ".join(word for word in (budget(arm), _order(arm), _smoothed(arm), _own(arm)) if word)
    return f"{arm.about.family}: {arm.about.data},\n{rest}"
