"""The record of a run as typed values, for writing and reading.

`RunSetup` (recipe.json) is written when a run starts. `RunResult` (result.json) adds the results; `ghost table` reads
nothing else. Invariant: a record is read completely, with all types checked, or refused with a one-line error.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ghostcli.errors import GhostError, printable
from ghostcli.recipe.models import Recipe
from ghostcli.records.storage import read_json

if TYPE_CHECKING:
    import numpy as np

#: The version of these files. Raise it when a field changes its name or meaning, not when a field is added.
SCHEMA = 2


class Refused(GhostError):
    """This version cannot read a file of a record. The message says why and what to do."""


class _Frozen(BaseModel):
    # Unknown fields (of a later version) are ignored here. Unknown keys of a recipe are an error.
    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True)


@lru_cache(maxsize=4096)
def shared(recipe: Recipe) -> Recipe:
    """The first of equal recipes. In a sweep most of the memory would be copies of recipes."""
    return recipe


class TeacherRun(_Frozen):
    """A teacher of a run: its run id, network and seed, and the chain of networks that taught it, first to last.

    `weights`: sha256 of its weights file. A teacher that was trained again can have other weights under the same id.
    """

    run: str
    network: str
    seed: int
    path: tuple[str, ...] = ()
    weights: str = ""

    @property
    def lineage(self) -> tuple[str, ...]:
        """The chain of networks that ends with this one."""
        return (*self.path, self.network)


class Environment(_Frozen):
    """env.json: everything that must be equal for an identical result. `changes` happened during the run."""

    schema_version: int = Field(SCHEMA, alias="schema")
    ghost: str
    commit: str | None
    python: str
    platform: str
    torch: str
    torchvision: str
    numpy: str
    device: str
    device_type: str
    threads: int
    kernel: str
    data_checksum: str
    #: Part of the fast path -> "passed", "not tried" or the failure. Empty if the network has no fast path.
    self_check: dict[str, str] = {}
    changes: tuple[str, ...] = ()


class Accuracy(_Frozen):
    """Test accuracies in percent. `selected` is the result: of the last epoch, or of that chosen on validation."""

    last: float
    best: float
    best_epoch: int
    selected: float
    selected_epoch: int
    selected_by: Literal["last", "validation"] = "last"


#: Code of a finding -> what was checked.
SUBJECTS = {
    "unshuffled": "order of images",
    "blind-teacher": "control",
    "other-view": "teachers' view",
    "other-size": "teachers' image size",
    "train-mode": "eval mode",
    "teacher-gradients": "gradients",
    "teacher-changes": "teachers' statistics",
    "unlike-record": "recorded logits",
    "teacher-accuracy": "teachers' accuracy",
    "other-classes": "teachers' classes",
    "no-better-than-chance": "accuracy above chance",
    "near-one-hot": "softness of targets",
    "long-warm-up": "warm-up of the teacher's term",
    "alike-teachers": "difference of teachers",
}


class Finding(_Frozen):
    """A finding of the teaching check. `code`: the fault, whether it is there or not. `figure`: the measured value."""

    code: str
    level: str
    message: str
    figure: float | None = None

    @property
    def subject(self) -> str:
        """What was checked, for people to read."""
        return SUBJECTS.get(self.code, self.code)


class Answers(_Frozen):
    """The answers on the test images at the selected epoch, as far as tables need them.

    `correct`: one bit per image, packed, in base64. `labels`, `pixels`: sha256 of the labels and of the images.
    `answered`: the number of classes that were answered. `ece`: expected calibration error, a fraction. Older records
    have neither `pixels` nor `answered`.
    """

    images: int
    labels: str
    correct: str
    ece: float
    pixels: str | None = None
    answered: int | None = None

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, ece: float, pixels: str | None = None) -> Answers:
        """From logits [N, C], labels [N] and the checksum of the images."""
        import numpy as np

        classes = np.asarray(logits).argmax(axis=1)
        bits = np.packbits(classes == labels)
        return cls(
            images=len(labels),
            labels=hashlib.sha256(np.asarray(labels, dtype="<i8").tobytes()).hexdigest(),
            correct=base64.b64encode(bits.tobytes()).decode(),
            ece=round(ece, 6),
            pixels=pixels,
            answered=len(np.unique(classes)),
        )

    def same_images(self, other: Answers, same_data: bool) -> bool:
        """Whether both are on the same images. In older records `same_data` decides: whether the data are the same."""
        if (self.images, self.labels) != (other.images, other.labels):
            return False
        return self.pixels == other.pixels if self.pixels and other.pixels else same_data

    def mask(self) -> np.ndarray | None:
        """Whether each test image was classified correctly, bool [N]. None if the number of bits is wrong."""
        import numpy as np

        try:
            bits = np.frombuffer(base64.b64decode(self.correct, validate=True), dtype=np.uint8)
        except ValueError:
            return None
        return np.unpackbits(bits, count=self.images).astype(bool) if len(bits) == -(-self.images // 8) else None


class Training:
    """What follows from `student`, `strategy`, `teachers` and `recipe`, for a planned job and for its record alike.

    So a command gives the same ids before and after the training of a teacher.
    """

    @property
    def path(self) -> tuple[str, ...]:
        """Names of the teachers, as in the row of a table: the whole path of a chain, the members of an ensemble."""
        chains = tuple(teacher.lineage for teacher in self.teachers)
        return chains[0] if len(chains) == 1 else tuple(chain[-1] for chain in chains)

    @cached_property
    def lineage(self) -> tuple[str, ...]:
        """The chain of networks that ends with this one: ('resnet50', 'resnet34', 'gns:1.0').

        Several teachers at once form no chain, so then it is the student alone.
        """
        return (*self.path, self.student) if self.strategy in ("kd", "chain") else (self.student,)

    @property
    def shuffled(self) -> bool:
        return self.recipe.data.shuffle and (not self.teachers or self.recipe.distill.shuffle)

    @property
    def kind(self) -> str | None:
        """The kind of distillation (`kd`, `dkd`, ...); None without teachers."""
        return self.recipe.distill.kind if self.teachers else None

    @property
    def data(self) -> str:
        """The name of the data set."""
        return self.recipe.data.name


class RunSetup(_Frozen, Training):
    """recipe.json: the definition of a run, written when it starts."""

    schema_version: int = Field(SCHEMA, alias="schema")
    semantics: int
    run: str
    student: str
    #: sha256 of the source of a user's own network; None for all other networks.
    source: str | None = None
    seed: int
    strategy: str
    teachers: tuple[TeacherRun, ...]
    recipe_name: str
    digest: str
    protocol: str
    #: Digest without the teachers' seeds, equal for all runs of a run group; None in older records.
    group: str | None = None
    #: The seeds of its run group that were planned together, before the first result.
    planned: tuple[int, ...] = ()
    #: The command line that began the run, word by word, without the program's name.
    command: tuple[str, ...] = ()
    recipe: Annotated[Recipe, AfterValidator(shared)]

    @property
    def of_group(self) -> str:
        """The digest of its run group."""
        return self.group or self.digest

    @property
    def family(self) -> str:
        return self.recipe.family


class RunResult(RunSetup):
    """result.json: the setup and the results. Accuracies in percent, times in seconds."""

    environment: Environment
    #: The student's initial weights: kaiming, native or pretrained.
    start: str
    parameters: int
    classes: int
    #: The names of the classes in the order of the network's outputs. Empty in older records.
    class_names: tuple[str, ...] = ()
    train_images: int
    validation_images: int
    test_images: int
    epochs: int
    accuracy: Accuracy
    nll: float | None = None
    test: Answers | None = None
    #: Percent of test images on which student and teacher agree, by teacher.
    agreement: dict[str, float | None] = {}
    seconds: float
    train_seconds: float
    teacher_seconds: float
    check: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    #: Name -> sha256 of the files that were written with the result.
    files: dict[str, str] = {}

    @property
    def data_checksum(self) -> str:
        return self.environment.data_checksum

    def tested_like(self, other: RunResult) -> bool:
        """Whether both were tested on the same images."""
        same_data = self.data == other.data or self.data_checksum == other.data_checksum
        return bool(self.test and other.test and self.test.same_images(other.test, same_data))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes; their numbers where the record has no names."""
        known = len(self.class_names) == self.classes
        return self.class_names if known else tuple(map(str, range(self.classes)))


Part = TypeVar("Part", bound=_Frozen)


def dump(part: _Frozen) -> dict[str, Any]:
    """`part` as JSON values, with the field names of the files."""
    return part.model_dump(mode="json", by_alias=True)


def read(path: Path, kind: type[Part]) -> Part:
    """Read a part of a record. Refused if the file is damaged or of another version."""
    problem: Exception | None = None
    try:
        part = kind.model_validate_json(path.read_bytes())
        if part.schema_version == SCHEMA and "schema_version" in part.model_fields_set:
            return part
    except (OSError, ValidationError, RecursionError) as error:
        problem = error
    value = read_json(path)  # what is wrong with it
    name = printable(path.name)
    version = value.get("schema", 1) if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise Refused(f"{name} is damaged")
    if version > SCHEMA:
        raise Refused(f"{name} has schema {version}: install a newer ghost (this one reads {SCHEMA})")
    if version < SCHEMA:
        raise Refused(f"{name} has schema {version}: run it again (an older ghost made it, with other starts and ids)")
    errors = problem.errors() if isinstance(problem, ValidationError) else []
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    where = next((printable(".".join(map(str, error["loc"]))) for error in (*unknown, *errors)), "")
    if unknown:
        raise Refused(f"{name} has the key {where}, which this version does not know; install a newer ghost")
    raise Refused(f"{name} is damaged at {where}" if where else f"{name} is damaged") from problem
