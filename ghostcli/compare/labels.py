"""What rows are called in lists, notes and figures. Invariant: no two rows of a table have one name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ghostcli.compare.groups import RunGroup, with_changes
from ghostcli.compare.rows import Row
from ghostcli.paper import joined, label


def names(rows: Sequence[Row]) -> list[str]:
    """A name for each row: student, teachers and method; where these are equal, also what differs."""
    found = [_plain_name(row) for row in rows]
    alike: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(found):
        alike[name].append(i)
    for name, where in alike.items():
        groups = [group for i in where if (group := rows[i].group)]
        if len(groups) < 2 or len(groups) < len(where):
            continue
        facets = [facet for facet in FACETS if len({facet(group) for group in groups}) > 1]
        for i, group in zip(where, groups, strict=True):
            words = ", ".join(word for facet in facets if (word := facet(group)))
            found[i] = f"{name} ({words})" if words else name
    return _with_digests(found, rows)


def _plain_name(row: Row) -> str:
    if not row.taught:
        return label(row.student)
    name = f"{label(row.student)} < {joined(row.teachers, row.strategy)}"
    how = "" if row.group is None else row.group.setting if row.printed else row.group.how
    return f"{name}, {how}" if how else name


def _with_digests(found: list[str], rows: Sequence[Row]) -> list[str]:
    """The digest of its folder behind the name of each row that still has another's name."""
    return [
        f"{name} [{row.group.about.digest[:8]}]" if row.group and found.count(name) > 1 else name
        for name, row in zip(found, rows, strict=True)
    ]


def _order(group: RunGroup) -> str:
    return "" if group.about.shuffled else "unshuffled"


def _smoothed(group: RunGroup) -> str:
    return f"smoothed {group.smoothing:g}" if group.smoothing else ""


def _changes(group: RunGroup) -> str:
    """What its training changes; `_order` names the order already."""
    return with_changes({key: value for key, value in group.changes.items() if key != "data.shuffle"})


def budget(group: RunGroup) -> str:
    return f"{group.about.train_images:,} × {group.about.epochs}"


#: What tells protocols apart, in few words or none.
FACETS: tuple[Callable[[RunGroup], str], ...] = (
    lambda group: group.family,
    lambda group: group.about.data,
    budget,
    _order,
    _smoothed,
    _changes,
)


def protocol(group: RunGroup) -> str:
    """A group's whole protocol, the budget on a line of its own."""
    rest = ", ".join(word for word in (budget(group), _order(group), _smoothed(group), _changes(group)) if word)
    return f"{group.family}: {group.about.data},\n{rest}"
