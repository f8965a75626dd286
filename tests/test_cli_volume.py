"""How much a command says: --quiet, --verbose, a log, a notebook; and what `ghost` alone says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import crash
import pytest
import typer.main
from report_runs import write_run

from ghostcli import display
from ghostcli.records import record

TRAIN = ("train-teacher", "gns:0.1", "--recipe", "smoke", "--data", "digits", "-s", "data.limit=64")
TRAIN += ("-s", "data.limit_test=50", "-s", "train.batch_size=32", "--epochs", "3")


@pytest.fixture(autouse=True)
def normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "volume", display.NORMAL)


def leaves(command, path=()):
    """(words, command) of every command that does something."""
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


def test_every_command_has_the_flags_and_answers_to_h(ghost):
    from ghostcli.cli import app

    found = dict(leaves(typer.main.get_command(app)))
    assert ("runs", "list") in found and ("check", "distill") in found
    for words, command in found.items():
        options = {name for parameter in command.params for name in parameter.opts}
        assert {"--quiet", "-q", "--verbose", "-v"} <= options, words
        assert "-h" in command.context_settings.get("help_option_names", ["-h"])
    for words in (("runs", "list"), ("demo",), ("runs",)):
        assert ghost(*words, "-h").code == 0


def test_quiet_says_nothing_but_the_result(ghost, tmp_path):
    done = ghost(*TRAIN, "--runs", tmp_path, "-q", "--json")
    assert done.code == 0 and json.loads(done.out)["status"] == "done"
    assert not [line for line in done.err.splitlines() if "too few to learn from" not in line], done.err


def test_verbose_names_the_environment_the_images_and_every_epoch(ghost, tmp_path):
    done = ghost(*TRAIN, "--runs", tmp_path, "--verbose")
    assert done.code == 0
    assert len(re.findall(r"epoch \d/3  lr .*hard", done.err)) == 3
    assert re.search(r"torch \d.*threads", done.err)
    assert "64 training and 50 test images of 10 classes" in done.err


def test_opposites_are_refused(ghost):
    done = ghost("runs", "list", "-q", "-v")
    assert done.code == 2 and "--quiet --verbose: are opposites" in done.err


def test_a_log_gets_whole_lines_only_even_with_colours(tmp_path):
    """As on a CI service: no terminal, FORCE_COLOR set. Nothing rewrites a line, and long work says how far it is."""
    program = (
        "import time\nfrom ghostcli import display\ndisplay.PLAIN_EVERY = 0.05\n"
        "with display.Display() as show:\n show.training('a-run/s0', 2, 100)\n show.begin('a-run/s0', 20)\n"
        " for step in range(10):\n  time.sleep(0.02); show.advance()\n"
    )
    environment = {**os.environ, "FORCE_COLOR": "1", "CI": "true", "PYTHONPATH": str(crash.ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr and "\x1b[?25l" not in done.stderr and "\x1b[2K" not in done.stderr
    lines = re.sub(r"\x1b\[[\d;]*m", "", done.stderr).splitlines()
    assert lines and all(re.match(r"a-run/s0  epoch 1/2  \d+%  ETA", line) for line in lines), lines


def test_a_notebook_rewrites_one_line(monkeypatch):
    ipython = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, content, raw):
            shown[-1] = content["text/html"]

    def show(content, raw, display_id):
        shown.append(content["text/html"])
        return Handle()

    monkeypatch.setattr(ipython, "display", show)
    monkeypatch.setattr(display.console, "is_jupyter", True)
    moments = iter(range(0, 1000, 2))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(moments))
    with display.Display() as progress:
        progress.training("<b>/s0", 2, 100)
        progress.begin("<b>/s0", 10)
        for _ in range(10):
            progress.advance()
    assert len(shown) == 1 and 'value="1.000"' in shown[0] and "&lt;b&gt;/s0" in shown[0]


def test_ghost_alone_says_what_to_do_first(ghost, tmp_path, monkeypatch, digits_runs):
    monkeypatch.chdir(tmp_path)
    done = ghost()
    assert done.code == 0 and "No runs are here yet" in done.out and "  ghost demo\n" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    os.symlink(digits_runs, tmp_path / "runs")
    done = ghost()
    assert done.code == 0 and "runs: 1 run (1 done)" in done.out and "ghost report --open" in done.out
    [command] = re.findall(r"ghost predict (run/\S+) IMAGE", done.out)
    assert ghost("runs", "show", command.removeprefix("run/")).code == 0
    assert "ghost compare" not in done.out, "one training has none to be compared with"


def test_ghost_alone_offers_a_comparison_of_two_trainings(ghost, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for epochs in (3, 4):
        write_run(tmp_path / "runs", "gns:0.3", epochs=epochs)
    [command] = re.findall(r"  ghost (compare \S+ \S+)\n", ghost().out)
    done = ghost(*command.split(), "--json")
    assert [len(row["runs"]) for row in json.loads(done.out)["rows"]] == [1, 1]
    assert "compares any of these trainings" in " ".join(ghost("table", "also").out.split())
    assert "compares any of these" not in ghost(*command.split()).out


def test_the_result_is_on_stdout_whether_it_was_trained_or_found(ghost, tmp_path):
    """One line a requested run, with --quiet too."""
    first = ghost(*TRAIN, "--runs", tmp_path, "--seed", 0, "--seed", 1, "-q")
    again = ghost(*TRAIN, "--runs", tmp_path, "--seed", 0, "--seed", 1, "-q")
    assert first.code == again.code == 0 and first.out == again.out
    title, *lines = first.out.splitlines()
    assert "test accuracy (%)" in title and len(lines) == 2
    for line, run in zip(lines, record.scan(tmp_path), strict=True):
        assert line.split() == [f"run/{run.id}", f"{run.result.accuracy.selected:.2f}"]
