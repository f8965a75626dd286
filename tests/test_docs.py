"""The README and the pages of docs/: every command in them is run, every link leads somewhere; the README is short."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from report_runs import study

from ghostcli.records import trained

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Verbs that train: their commands are planned and not carried out.
TRAIN = {"train-teacher", "distill", "assist-chain", "ensemble", "reproduce"}
#: Commands that other tests run, since they train, wait, or need a runtime that may not be installed.
ELSEWHERE = {
    "demo": "test_cli_demo.py",
    "report --live": "test_report_page.py",
    "export": "test_deploy_export.py",
    "runs sync": "test_track.py",
    "run-job": "test_run_slurm.py",
    "push": "test_hub.py",
    "pull": "test_hub.py",
    "bench run/": "test_deploy_export.py",
    "evaluate pretrained/": "test_pretrained.py",
    "predict folder/": "test_deploy_export.py",
    "evaluate folder/": "test_deploy_export.py",
}


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what stands behind the language, content) of each fenced block of a language."""
    found = re.findall(rf"^```{language}(?: +(\S+))?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(name, content) for name, content in found]


def commands(page: Path) -> list[str]:
    """Every `ghost` command of a page: lines of its shell blocks, and code in its text. A verb that the text only names
    is asked for its help."""
    lines = [line for _, content in blocks(page, "sh") for line in content.splitlines() if line.startswith("ghost ")]
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    inline = [re.sub(r"\s+", " ", found) for found in re.findall(r"`(ghost [a-z][^`]*)`", text)]
    named = [found if found.count(" ") > 1 else f"{found} --help" for found in inline]
    return list(dict.fromkeys([*lines, *named]))


def test_what_is_run_elsewhere_is_run_there() -> None:
    written = [command.removeprefix("ghost ") for page in PAGES for command in commands(page)]
    for words, file in ELSEWHERE.items():
        assert any(command.startswith(words) for command in written), words
        assert f'"{words.split()[0]}"' in (ROOT / "tests" / file).read_text(), f"{file} runs no ghost {words}"


ALL = [pytest.param(command, id=f"{page.stem}: {command}") for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits_runs: Path) -> Path:
    """Where a reader of the pages might stand: runs, a photo, a folder of photos, a network of one's own."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("reader")
    study(folder / "runs", seeds=2)
    shutil.copytree(digits_runs, folder / "runs", dirs_exist_ok=True)
    shutil.copytree(ROOT / "runs" / "studies" / "demo", folder / "runs" / "demo")
    shutil.copytree(ROOT / "runs" / "studies", folder / "runs" / "studies")
    Image.new("RGB", (40, 30), (200, 30, 40)).save(folder / "photo.jpg")
    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (folder / "photos" / part / name).mkdir(parents=True)
            for i in range(4):
                shown = Image.new("RGB", (32, 32), (90 * shade + 5 * i, 60, 100 + len(part)))
                shown.save(folder / "photos" / part / name / f"{i}.png")
    for page in PAGES:
        for name, content in (*blocks(page, "python"), *blocks(page, "toml")):
            if name:
                (folder / name).write_text(content)
    shutil.copytree(folder / "photos", folder / "others")
    return folder


@pytest.mark.parametrize("command", ALL)
def test_every_command(ghost, place: Path, monkeypatch: pytest.MonkeyPatch, command: str, digits_runs: Path) -> None:
    [run] = [path.parent for path in digits_runs.glob("*/s0/result.json")]
    monkeypatch.chdir(place)
    monkeypatch.setenv("GHOST_DATA", str(place / "data"))
    for placeholder in ("run/ID", "ID...", "RUN"):
        command = command.replace(placeholder, f"run/{run.parent.name}/s0")
    words = shlex.split(command.replace("NAME", "one"))[1:]
    (place / "mine.toml").unlink(missing_ok=True)
    shutil.rmtree(place / "split", ignore_errors=True)
    if any(" ".join(words).startswith(verb) for verb in ELSEWHERE):
        return
    if words[0] in TRAIN and "--help" not in words:
        words += ["--dry-run"]
        if not any(word.startswith("run/") for word in words):
            words += ["--runs", "none"]  # the records of `study` have no weights to teach with
        elif "--from" in words:
            words[1] = "gns:0.3"  # the network of that run
    if words[0] == "check":
        words += ["--runs", "none"]
    done = ghost(*(word for word in words if word != "--open"))
    if (
        words[0] == "check" and "--help" not in words
    ):  # its teachers take hours to train: it must get as far as asking for them
        assert done.code == 2 and "has no finished run (not started); train it first" in done.err
    elif words == ["doctor"]:
        assert done.code in (0, 1) and "torch" in done.out
    else:
        assert done.code == 0, done


def program(name: str) -> ModuleType:
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_table_is_that_of_its_records() -> None:
    fill = program("fill")
    found = [page.name for page in PAGES if "<!-- end -->" in page.read_text()]
    assert {"README.md", "demo.md", "images.md"} <= set(found)
    for page in PAGES:
        assert fill.filled(page.read_text()) == page.read_text(), f"{page.name}: run python docs/fill.py"


def test_the_front_is_that_of_the_networks_that_ship() -> None:
    front, picture = program("front"), (ROOT / "docs" / "front.svg").read_text()
    names = [name for name, *_ in front.ours()]
    assert len(names) == len(trained.shipped())
    for name in [*names, *(name for name, *_ in front.theirs())]:
        assert f">{name}<" in picture, f"{name}: run python docs/front.py"


def test_the_worked_example_cuts_real_pictures(ghost, cifar10, tmp_path, monkeypatch) -> None:
    [text] = [content for name, content in blocks(ROOT / "docs" / "images.md", "python") if name == "cut.py"]
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "cut.py", "exec"), {})
    said = json.loads(ghost("data", "inspect", "folder:photos", "--json").out)
    assert said["counts"]["train"] == {"cat": 150, "dog": 50, "ship": 20}
    assert set(said["counts"]["test"].values()) == {100} and not said["broken"] and not said["shared"]
    assert "data.balance=true" in said["command"] and "ship (20)" in " ".join(said["remarks"])
    others = json.loads(ghost("data", "inspect", "folder:others", "--json").out)
    assert len(others["counts"]["train"]) == 7 and set(others["counts"]["train"].values()) == {300}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    for target in targets:
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_picture_has_no_broken_columns() -> None:
    """docs/picture.py draws it. Each way of learning stands on one line, and the columns stand below their headings."""
    picture = (ROOT / "docs" / "demo.svg").read_text()
    lines: dict[float, list[tuple[float, str]]] = {}
    for x, y, content in re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', picture):
        lines.setdefault(float(y), []).append((float(x), html.unescape(content).replace("\xa0", " ")))
    texts = ["".join(part for _, part in sorted(line)).rstrip() for line in lines.values()]
    ways = ("alone", "one teacher", "via an assistant", "two teachers")
    accuracy, against = r"\d\d\.\d\d(?: ± \d+\.\d\d \(\d\))?", r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]"
    ends = []
    for way in ways:
        [row] = [text for text in texts if re.match(rf"{way} +\d\d\.\d\d", text)]
        found = re.fullmatch(rf"{way} +({accuracy})(?: +({against}) +(better|worse|[a-z]+ [a-z]+ \(1 run\)))?", row)
        assert found, row
        ends.append((found.end(1), found.end(2), found.start(3)))
    assert len({accuracy for accuracy, *_ in ends}) == 1 and len(set(ends[1:])) == 1, "columns in one place"
    [sentence] = [text for text in texts if text.startswith("Verdict: ")]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', picture)[1])
    assert sentence.endswith("teacher.") and all(x < width for line in lines.values() for x, _ in line)
    [taught] = [text for text in texts if text.startswith("one teacher")]
    accuracy = re.search(r"\d\d\.\d\d ± \d+\.\d\d", taught)[0]
    assert accuracy in (ROOT / "docs" / "demo.md").read_text(), "the picture and the page are of the same records"
    assert "http" not in picture.replace("http://www.w3.org", "").replace("https://www.textualize.io", "")
