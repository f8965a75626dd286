"""The named data sets: one entry per set, with the module that reads it.

Invariant: torch and a set's module are imported at first use of a set.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class DataSet:
    """A named set of 32 x 32 images. `statistics`: channel means and deviations of images in 0..1; None: computed.

    `module` has `read(name, root) -> (class names, train, test)`. A downloaded set also has
    `place(name, root)`, `state(name, root)`, `fetch(name, root)` and `checks(name, root)`, all used below.
    """

    name: str
    module: str
    train_images: int
    test_images: int
    classes: int
    statistics: tuple[Triple, Triple] | None = None

    @property
    def reader(self) -> ModuleType:
        return importlib.import_module(self.module)

    @property
    def downloaded(self) -> bool:
        return hasattr(self.reader, "fetch")

    def read(self, root: Path) -> tuple[tuple[str, ...], Any, Any]:
        """(class names, train, test). UsageError if the files are missing or damaged."""
        return self.reader.read(self.name, root)

    def fetch(self, root: Path) -> None:
        """Put the set's files in place."""
        if self.downloaded:
            self.reader.fetch(self.name, root)

    def state(self, root: Path) -> str:
        """ready, incomplete, packed or absent."""
        return self.reader.state(self.name, root) if self.downloaded else "ready"

    def place(self, root: Path) -> str:
        """Where the files are."""
        return self.reader.place(self.name, root) if self.downloaded else "within ghost"

    def checks(self, root: Path) -> list[tuple[str, str | None]]:
        """(file, what is wrong with it or None) for each file of the set."""
        known = getattr(self.reader, "checks", None)
        return known(self.name, root) if known else [(self.name, None)]


_SETS = (
    DataSet(  # the paper's statistics
        "cifar10", "ghostcli.data.cifar", 50_000, 10_000, 10, ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    ),
    DataSet(  # the usual statistics
        "cifar100", "ghostcli.data.cifar", 50_000, 10_000, 100, ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    ),
    DataSet("digits", "ghostcli.data.digits", 1437, 360, 10),
)

#: Name -> data set. Any other name is `folder:PATH`.
SETS: dict[str, DataSet] = {known.name: known for known in _SETS}
