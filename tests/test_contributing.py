"""Every worked example of CONTRIBUTING.md, applied to a copy of the package and run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import write_run

ROOT = Path(__file__).resolve().parent.parent
PARTS = (ROOT / "CONTRIBUTING.md").read_text().split("\n### ")[1:]
EXAMPLES = {part.partition("\n")[0]: re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", part, re.M | re.S) for part in PARTS}
FEW = ("data.limit=60", "data.limit_test=40", "train.batch_size=20")
TINY = ["--epochs", "1", "--device", "cpu", *[word for key in FEW for word in ("-s", key)]]


def changed(text: str, diff: str) -> str:
    """`text` with the one place changed that the diff's old lines are."""
    lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] in " -")
    new = "\n".join(line[1:] for line in lines if line[:1] in " +")
    assert text.count(old) == 1, f"found {text.count(old)} times: {old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package with all examples applied."""
    folder = tmp_path_factory.mktemp("contributing")
    for part in ("ghostcli", "recipes"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for blocks in EXAMPLES.values():
        for language, name, content in blocks:
            if language == "sh":
                continue
            file = folder / name
            before = file.read_text() if file.exists() else ""
            if language == "diff":
                file.write_text(changed(before, content))
            else:
                file.write_text(f"{before}\n\n{content}" if before else content)
    return folder


def test_each_kind_of_addition_has_an_example_in_at_most_two_files():
    assert list(EXAMPLES) == [
        *("A loss", "A data set", "A student network", "An optimiser", "An augmentation", "An output format")
    ]
    for blocks in EXAMPLES.values():
        assert 1 <= len({name for _, name, _ in blocks if name}) <= 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_works(example, copy):
    (command,) = [content for language, _, content in EXAMPLES[example] if language == "sh"]
    ghost, *words = shlex.split(command)
    assert ghost == "ghost"
    if words[0] == "table":
        write_run(copy / "runs", "gns:0.3", epochs=3)
    else:
        words += TINY if "--data" in words else [*TINY, "--data", "digits"]
    done = subprocess.run([sys.executable, "-m", "ghostcli", *words], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "* " in done.stdout if words[0] == "table" else "done" in done.stderr


def test_the_room_table_names_every_room_and_no_other():
    named = set(re.findall(r"^\| `ghostcli/(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M))
    assert named == {folder.parent.name for folder in (ROOT / "ghostcli").glob("*/__init__.py")}
