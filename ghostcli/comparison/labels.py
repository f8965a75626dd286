"""The names of rows in lists, notes and figures. Invariant: the names in a table are unique."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ghostcli.comparison.groups import RunGroup, grouped, with_changes
from ghostcli.comparison.rows import Row
from ghostcli.paper import joined, label


def names(rows: Sequence[Row]) -> list[str]:
    """A name for each row: student, teachers and method. If these are equal, also the settings that differ."""
    row_names = [_plain_name(row) for row in rows]
    for name, where in grouped(range(len(row_names)), row_names.__getitem__).items():
        groups = [group for i in where if (group := rows[i].group)]
        if len(groups) < 2 or len(groups) < len(where):
            continue
        facets = [facet for facet in FACETS if len({facet(group) for group in groups}) > 1]
        for i, group in zip(where, groups, strict=True):
            words = ", ".join(word for facet in facets if (word := facet(group)))
            row_names[i] = f"{name} ({words})" if words else name
    # The digest tells apart the names that are still not unique.
    return [
        f"{name} [{row.group.about.digest[:8]}]" if row.group and row_names.count(name) > 1 else name
        for name, row in zip(row_names, rows, strict=True)
    ]


def _plain_name(row: Row) -> str:
    if not row.taught:
        return label(row.student)
    name = f"{label(row.student)} < {joined(row.teachers, row.strategy)}"
    how = "" if row.group is None else row.group.setting if row.printed else row.group.how
    return f"{name}, {how}" if how else name


def _order(group: RunGroup) -> str:
    return "" if group.about.shuffled else "unshuffled"


def _smoothing(group: RunGroup) -> str:
    return f"smoothed {group.smoothing:g}" if group.smoothing else ""


def _changes(group: RunGroup) -> str:
    """The changes of its training, without the order (see `_order`)."""
    return with_changes({key: value for key, value in group.changes.items() if key != "data.shuffle"})


def budget(group: RunGroup) -> str:
    return f"{group.about.train_images:,} × {group.about.epochs}"


#: The differences between protocols, each in a few words, or empty.
FACETS: tuple[Callable[[RunGroup], str], ...] = (
    lambda group: group.family,
    lambda group: group.about.data,
    lambda group: f"{group.about.start} start",
    budget,
    _order,
    _smoothing,
    _changes,
)


def protocol(group: RunGroup) -> str:
    """The whole protocol of a group, with the budget on a separate line."""
    rest = ", ".join(word for word in (budget(group), _order(group), _smoothing(group), _changes(group)) if word)
    return f"{group.family}: {group.about.data},\n{rest}"
