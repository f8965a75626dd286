"""The control of a taught run group: the same training with image-blind teachers.

Each image gets its teachers' logits for another image of its class (`distill.blind=true`). So the student gets the same
loss, softness and class similarities as in the taught run, but nothing about the image itself. If the control has the
same gain over the baseline, the gain does not come from the teachers' knowledge of the images.

Invariant: a control differs from its taught group in `distill.blind` alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from ghostcli.comparison import commands
from ghostcli.comparison.groups import RunGroup, same_conditions, unlike
from ghostcli.comparison.rows import Control, Options
from ghostcli.recipe.diff import config_diff
from ghostcli.recipe.models import UNDIGESTED

BLIND = "distill.blind"


def of(group: RunGroup, blind: Iterable[RunGroup], options: Options) -> Control | None:
    """The control of a taught group among `blind` groups, or the command for it. None if the group is a control."""
    if group.blind:
        return None
    command = commands.of_control(group, options.runs)
    control = next((other for other in blind if controls(other, group)), None)
    if control is None:
        return Control(command)
    delta = group.minus(control, options.metric)
    return Control(command, group=control, ours=control.summary(options.metric), delta=delta)


def controls(other: RunGroup, group: RunGroup) -> bool:
    """Whether `other` is the control of `group`."""
    if not other.blind or group.blind or (other.student, other.strategy) != (group.student, group.strategy):
        return False
    same = same_conditions(other.about) == same_conditions(group.about)
    same = same and other.lessons == group.lessons and unlike(group, other) is None
    other_keys = UNDIGESTED | {"engine.branches", "distill.teacher_seed"}  # the seed is in `lessons`
    return same and config_diff(other.recipe, group.recipe).keys() - other_keys == {BLIND}
