"""`import ghostcli as ghost`: the verbs as functions, for notebooks and programs. `ghostcli` itself names them.

Invariant: nothing is computed here. Each function does what its verb does, by the same code, and returns a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ghostcli.errors import UsageError, printable
from ghostcli.records import record
from ghostcli.records.model import RunResult
from ghostcli.records.record import RunRecord

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ghostcli.deploy.source import Network as Opened

RUNS = Path("runs")
#: A picture: a file, an image of Pillow's, or pixels as uint8 [H, W, 3] (grey: [H, W]).
Picture = Union[str, Path, "Image", "np.ndarray"]


@dataclass(frozen=True)
class Network:
    """A trained network that answers for pictures. `classes` in the order of its probabilities."""

    opened: Opened

    @property
    def name(self) -> str:
        return self.opened.label

    @property
    def classes(self) -> tuple[str, ...]:
        return self.opened.about.classes

    def __call__(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Probabilities [N, classes] of N pictures, or of an array uint8 [N, H, W, 3]; of one picture [classes]."""
        import numpy as np
        from PIL.Image import Image

        from ghostcli.comparison.calibration import softmax
        from ghostcli.data.pictures import decoders
        from ghostcli.deploy.ask import answers

        one = isinstance(images, str | bytes | Path | Image) or not isinstance(images, Iterable)
        one = one or (isinstance(images, np.ndarray) and images.ndim in (2, 3))
        pictures = [images] if one else list(images)
        if not pictures:
            raise UsageError("net(images): there is no image")
        with decoders():
            pixels = np.stack([_pixels(picture, self.opened.about.size) for picture in pictures])
        probabilities = softmax(answers(self.opened, pixels))
        return probabilities[0] if one else probabilities

    def predict(self, images: Picture | Iterable[Picture]) -> str | list[str]:
        """The likeliest class of each picture; of one picture its name alone."""
        probabilities = self(images)
        if probabilities.ndim == 1:
            return self.classes[int(probabilities.argmax())]
        return [self.classes[int(i)] for i in probabilities.argmax(axis=1)]

    def __repr__(self) -> str:
        return f"Network({printable(self.name)}: {self.opened.about.model}, {len(self.classes)} classes)"


def _pixels(picture: Picture, size: int) -> np.ndarray:
    """A picture through the steps that training images go through."""
    import numpy as np
    from PIL import Image

    from ghostcli.data.pictures import decode, fitted

    if isinstance(picture, str | Path):
        return decode(Path(picture), size)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] == 3)):
            raise UsageError(
                f"net(images): an array must be uint8 [H, W, 3] or [H, W], got {picture.dtype} {list(picture.shape)}"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise UsageError(
            f"net(images): an image is {type(picture).__name__}; give a file's name, an image of Pillow's, or an array "
            "uint8 [H, W, 3]"
        )
    try:
        return fitted(picture, size, "net(images): an image")
    except (OSError, ValueError) as error:
        raise UsageError(f"net(images): an image cannot be read ({error})") from error


@dataclass(frozen=True)
class Run:
    """A run's record; in a notebook it shows itself."""

    record: RunRecord

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def result(self) -> RunResult:
        """What came out. UsageError where the run is not finished."""
        if self.record.result is None:
            raise UsageError(f"{self.id}: has no result ({self.record.problem})")
        return self.record.result

    @property
    def accuracy(self) -> float:
        """Test accuracy in percent: the run's result."""
        return self.result.accuracy.selected

    def metrics(self) -> list[dict[str, Any]]:
        """One dict an epoch."""
        return self.record.metrics()

    def network(self) -> Network:
        return load(f"run/{self.id}", runs=self.record.path.parent.parent)

    def __repr__(self) -> str:
        return f"Run({self.id}: {self.record.status})"

    def _repr_html_(self) -> str:
        from ghostcli.render.facts import page

        return _table(page(self.record))


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs: `a` minus `b` in points of test accuracy, with the interval and the verdict of `ghost table`.

    `low`, `high` and `verdict` are None where nothing can be said. `differs`: what differs between the trainings,
    key -> (value of `b`, value of `a`).
    """

    mean: float
    low: float | None
    high: float | None
    verdict: str | None
    p: float | None
    a: tuple[str, ...]
    b: tuple[str, ...]
    differs: dict[str, tuple[Any, Any]]

    def __str__(self) -> str:
        within = "" if self.low is None else f", 95 % interval {self.low:+.2f} to {self.high:+.2f}"
        runs = f"{len(self.a)} runs against {len(self.b)}"
        return f"{self.verdict or 'no verdict'}: {self.mean:+.2f} points{within}, {runs}; {self._differences()}"

    def _differences(self) -> str:
        return "; ".join(f"{key}: {b} → {a}" for key, (b, a) in self.differs.items()) or "nothing else differs"

    def _repr_html_(self) -> str:
        sides = [("a", ", ".join(self.a)), ("b", ", ".join(self.b)), ("b → a", self._differences())]
        return f"<p>{escape(str(self))}</p>" + _table(sides)


def load(model: str | Run, *, pretrained: str | None = None, runs: str | Path = RUNS) -> Network:
    """A trained network by run, id (`run/ID`, `ID`, or its folder) or exported file, in its deploy form, on the CPU.

    `pretrained/NAME` is one that comes with ghost; so is a model's name with the data set it was `pretrained` on, as in
    `load("gns:1.0", pretrained="cifar10")`. UsageError, with the nearest names, where there is none.
    """
    from ghostcli.deploy.source import open_network
    from ghostcli.records import trained
    from ghostcli.zoo import names

    if pretrained is not None:
        if isinstance(model, Run):
            raise UsageError(f"pretrained={pretrained!r}: goes with a model's name, not with a run; leave it out")
        name = trained.PRETRAINED + names.slug(names.canonical(model))
        result = trained.find(Path(runs), name).result
        if result.data != pretrained:
            raise UsageError(f"pretrained={pretrained!r}: {name} was trained on {result.data}; name that")
        model = name
    folder = (model.record.path if isinstance(model, Run) else Path(model)).resolve()
    if (folder / "status.json").is_file():
        return load(f"run/{folder.parent.name}/{folder.name}", runs=folder.parent.parent)
    return Network(open_network(str(model), Path(runs)))


def train(
    student: str,
    teachers: str | Sequence[str] = (),
    *,
    recipe: str = "paper",
    settings: Mapping[str, object] | None = None,
    seeds: int | Sequence[int] = (0,),
    together: bool = False,
    start: str | None = None,
    runs: str | Path = RUNS,
    device: str = "auto",
    jobs: int = 1,
) -> list[Run]:
    """Train `student`, one run a seed, and return the finished runs; finished work is found, not made again.

    No teachers: alone. One: distilled. Several: a chain, first to last, or an ensemble where `together`. `settings`:
    recipe key -> value, as `{"train.epochs": 20}`. `start`: `run/ID`, whose weights the student starts from. `jobs`
    above 1 needs `if __name__ == "__main__"` in a program. The errors are those of the verbs: GhostError and its kinds.
    """
    from ghostcli import plan
    from ghostcli.recipe import load as load_recipe
    from ghostcli.run import launch

    seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    whole = all(isinstance(seed, Integral) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds={seeds}: must be different whole numbers from 0, as in [0, 1, 2]")
    names = (teachers,) if isinstance(teachers, str) else tuple(teachers)
    chosen = {**(settings or {}), **({} if start is None else {"model.start": start})}
    resolved, folder = load_recipe(recipe, [f"{key}={_typed(key, value)}" for key, value in chosen.items()]), Path(runs)
    common = (plan.started(resolved.recipe, folder), resolved.name)

    def job(seed: int) -> plan.Job:
        if not names:
            return plan.plain(student, seed, *common)
        return (plan.ensemble if together else plan.chain)(names, student, seed, *common, folder)

    todo = plan.order(job(int(seed)) for seed in seeds)
    return [Run(done) for done in launch.carry_out(todo, launch.Options(folder, device, jobs=jobs))]


def _typed(key: str, value: object) -> str:
    """A value of a recipe's key as --set takes it."""
    import json

    import numpy as np

    def plain(other: object) -> object:
        if isinstance(other, np.generic):
            return other.item()
        if isinstance(other, Path):
            return str(other)
        raise UsageError(f"settings[{key!r}]: is {type(other).__name__}; give text, a number, a bool, a list or None")

    # Half an emoji, as JSON escapes it, is no TOML, so letters stay as they are.
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=plain)


ONE_JOB = "compare: each side must be runs of one job, which differ in their seeds alone; and no run twice"


def compare(
    a: Iterable[Run | str] | Run | str, b: Iterable[Run | str] | Run | str, *, runs: str | Path = RUNS
) -> Comparison:
    """Runs `a` minus runs `b`, with the interval, the verdict and the differences that `ghost compare` gives.

    Each side is runs of one job. UsageError where a record cannot be believed, or where the test images differ.
    """
    from ghostcli.comparison import against
    from ghostcli.comparison.admission import admit
    from ghostcli.comparison.groups import cohorts
    from ghostcli.comparison.rows import MARGIN
    from ghostcli.comparison.verdicts import judge

    sides = [_records(side, Path(runs)) for side in (a, b)]
    if len({one.id for side in sides for one in side}) < sum(map(len, sides)):
        raise UsageError(ONE_JOB)
    admitted = admit([one for side in sides for one in side])
    if admitted.left_out:
        first = admitted.left_out[0]
        raise UsageError(f"{first.run}: cannot be compared, {first.reason}")
    groups = []
    for side in sides:
        ids = {one.id for one in side}
        matches = [group for cohort in cohorts(admitted.runs) for group in cohort.groups if group.ids & ids]
        if len(matches) != 1 or matches[0].ids != ids:
            raise UsageError(ONE_JOB)
        groups += matches
    row = against.row(*groups)
    [judged] = judge([row.delta], MARGIN)
    ids = (tuple(one.id for one in group.runs) for group in groups)
    return Comparison(row.delta.mean, row.delta.low, row.delta.high, judged.verdict, judged.p, *ids, row.differs)


def _records(side: Iterable[Run | str] | Run | str, runs: Path) -> list[RunRecord]:
    named = [side] if isinstance(side, Run | str) else list(side)
    return [one.record if isinstance(one, Run) else record.find(runs, one) for one in named]


def runs(folder: str | Path = RUNS) -> list[Run]:
    """Every run in a folder, by id."""
    return [Run(run) for run in record.scan(Path(folder))]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(printable(k))}</th><td>{escape(printable(v))}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"
