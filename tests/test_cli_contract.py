"""The surface that others rely on: verbs, exit codes, one-line errors, and no torch where none is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = {
    "compare",
    *("train-teacher", "distill", "assist-chain", "ensemble", "reproduce", "demo", "check", "teach"),
    *("table", "plot", "bench", "runs", "recipe", "data", "export", "doctor", "predict", "evaluate"),
    *("plan-seeds", "report", "push", "pull", "run-job"),
}
TRAINING_FLAGS = {
    *("--recipe", "--set", "--data", "--epochs", "--seed", "--jobs", "--runs", "--device", "--dry-run", "--resume"),
    *("--json", "--on", "--detach", "--slurm", "--partition", "--gres", "--time", "--account"),
    *("--cpus-per-job", "--gpus-per-job"),
}


def flags_of(verb: str) -> set[str]:
    import typer

    from ghostcli.cli import app

    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def test_verbs_are_those_of_the_contract():
    import typer

    from ghostcli.cli import app

    assert set(typer.main.get_command(app).commands) == VERBS  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["train-teacher", "distill", "assist-chain", "ensemble"])
def test_training_verbs_take_the_common_flags(verb):
    assert flags_of(verb) >= TRAINING_FLAGS | ({"--student"} if verb != "train-teacher" else set())


@pytest.mark.parametrize("verb", ["demo", "reproduce"])
def test_studies_run_anywhere_too(verb):
    assert flags_of(verb) >= {"--on", "--detach", "--slurm"}


def test_strategy_flags():
    assert "--dense" in flags_of("assist-chain")
    assert "--weighting" in flags_of("ensemble")


@pytest.mark.parametrize(
    "arguments",
    ["--help", "table --runs nowhere", "runs list", "recipe list", "recipe show paper", "distill --help"],
)
def test_reading_verbs_do_not_import_torch(arguments, tmp_path):
    program = (
        "import sys; sys.argv = ['ghost', *sys.argv[1:]]\n"
        "from ghostcli.cli import main\n"
        "try: main()\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


SMALL = ["--data", "digits", "--epochs", "1", "-s", "data.limit=64", "-s", "data.limit_test=32"]

BAD = {
    "unknown model": (["train-teacher", "resnet19"], "resnet18"),
    "width zero": (["train-teacher", "gns:0"], "gns:0"),
    "negative width": (["train-teacher", "gns:-1"], "gns:-1"),
    "width no number": (["train-teacher", "gns:wide"], "gns:wide"),
    "unknown recipe": (["train-teacher", "gns", "--recipe", "papr"], "paper"),
    "unknown key": (["train-teacher", "gns", "-s", "data.shufle=false"], "data.shuffle"),
    "unknown section": (["train-teacher", "gns", "-s", "optimizer.lr=1"], "optim"),
    "wrong type": (["train-teacher", "gns", "-s", "train.batch_size=many"], "train.batch_size"),
    "unknown data": (["train-teacher", "gns", "--data", "cifar11"], "cifar10"),
    "no epochs": (["train-teacher", "gns", "--epochs", "0"], "epochs"),
    "no student": (["distill", "resnet18"], "--student"),
    "unknown student": (["distill", "resnet18", "--student", "gsn:1.0"], "gns:1.0"),
    "no such table": (["table", "V"], "IV"),
    "no such run": (["runs", "show", "gns-1.0-plain-00000000/s0"], "no run"),
    "not a run's id": (["runs", "show", "../../etc"], "id"),
    "no such teacher run": (["distill", "run/gns-1.0-plain-00000000/s0", "--student", "gns", *SMALL], "no run"),
    "cuda where there is none": (["train-teacher", "gns", "--device", "cuda:9", *SMALL], "cuda:9"),
    "unknown device": (["train-teacher", "gns", "--device", "tpu", *SMALL], "tpu"),
    "seed twice": (["train-teacher", "gns", "--seed", "1", "--seed", "1", *SMALL], "--seed"),
    "ensemble of one": (["ensemble", "resnet18", "--student", "gns", *SMALL], "distill"),
    "teacher named twice": (["ensemble", "resnet18", "resnet18", "--student", "gns", *SMALL], "twice"),
    "unknown kind": (["distill", "resnet18", "--student", "gns", "--kind", "kdd"], "ghost: --kind: "),
    "unknown weighting": (["ensemble", "resnet18", "vgg13", "--student", "gns", "--weighting", "men"], "--weighting: "),
    "alpha above one": (["distill", "resnet18", "--student", "gns", "--alpha", "2"], "ghost: --alpha: "),
    "data by its flag": (["train-teacher", "gns", "--data", "cifar11"], "ghost: --data: "),
    "ages of epochs": (["train-teacher", "gns", "--epochs", "9" * 30], "ghost: --epochs: "),
    "a run without run/": (["distill", "gns-0.5-plain-1a2b3c4d/s0", "--student", "gns"], "run/gns-0.5-plain-1a2b3c4d"),
    "an empty --runs": (["train-teacher", "gns", "--runs", "", *SMALL], "--runs"),
    "an empty --runs to read": (["runs", "list", "--runs", ""], "--runs"),
    "a seed too long": (["train-teacher", "gns", "--seed", "9" * 23, *SMALL], "--seed"),
    "born again too often": (["distill", "gns", "--student", "gns", "--generations", "100000"], "--generations"),
    "wider than any tensor": (["bench", "gns:1e9"], "ghost: gns:1000000000.0: this width makes a tensor too large"),
    "wider than any number": (["train-teacher", "gns:1e300", *SMALL], "this width makes a tensor too large"),
    "no such verb": (["train", "gns"], "train-teacher"),
    "no such flag": (["train-teacher", "gns", "--epoch", "1"], "--epochs"),
    "bench of nothing known": (["bench", "alexnet", "--no-timing"], "alexnet"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(ghost, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, needle = BAD[case]
    done = ghost(*arguments)
    assert done.code == 2, done
    assert needle in done.err and "Traceback" not in done.err
    assert done.out == ""
    assert not any(tmp_path.iterdir())
    assert done.err.startswith("ghost: ") and len(done.err.strip().splitlines()) <= 2


@pytest.mark.parametrize("words", [["train-teacher", "gns:1000", *SMALL], ["bench", "gns:1000"]], ids=lambda w: w[0])
def test_a_width_that_no_memory_holds_is_code_4_before_anything_is_touched(ghost, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    done = ghost(*words)
    assert done.code == 4, done
    assert re.match(r"ghost: gns:1000\.0: its weights, gradients and momentum alone take [\d,]+ GB", done.err)
    assert done.out == "" and not any(tmp_path.iterdir())


def test_any_positive_width_is_counted(ghost):
    done = ghost("bench", "gns:1e-9", "gns:1000", "--no-timing", "--json")
    slim, wide = json.loads(done.out)
    assert 0 < slim["deploy_parameters"] < slim["parameters"] < 100_000
    assert wide["parameters"] > 1e11 and wide["train_macs"] > wide["macs"] > 1e12


def test_an_empty_recipe(ghost, tmp_path):
    recipe = tmp_path / "empty.toml"
    recipe.write_text("# nothing\n")
    for words in (["train-teacher", "gns", "--recipe"], ["recipe", "check"]):
        done = ghost(*words, recipe)
        assert done.code == 2 and "is empty; start from ghost recipe copy paper" in done.err


def test_recipe_that_extends_itself(ghost, tmp_path):
    recipe = tmp_path / "loop.toml"
    recipe.write_text('extends = "loop.toml"\n')
    done = ghost("train-teacher", "gns", "--recipe", recipe)
    assert done.code == 2 and "loop.toml" in done.err and "itself" in done.err


def test_class_counts_of_teacher_and_student_must_agree(ghost, tmp_path):
    """A teacher of digits (10 classes) cannot teach a student of a folder with 2."""
    from PIL import Image

    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (16, 16), (80 * shade + i, 90, 100)).save(folder / f"{i}.png")
    runs = tmp_path / "runs"
    teacher = json.loads(ghost("train-teacher", "gns:0.25", *SMALL, "--runs", runs, "--json").out)["run"]
    student = ["--student", "gns:0.2", "--data", f"folder:{tmp_path / 'pets'}", "--epochs", "1", "-s", "data.size=16"]
    done = ghost("distill", f"run/{teacher}", *student, "--runs", runs)
    assert done.code == 2 and "10 classes" in done.err and "2" in done.err
    assert [path.name for path in runs.iterdir()] == [Path(teacher).parent.name]
    alone = ghost("distill", "gns:0.25", *student, "--runs", runs, "--json")
    assert alone.code == 0 and json.loads(alone.out)["data"].startswith("folder:")


def test_unwritable_run_directory(ghost, tmp_path):
    (tmp_path / "file").write_text("")
    done = ghost("train-teacher", "gns:0.25", *SMALL, "--runs", tmp_path / "file")
    assert done.code == 2 and "--runs" in done.err


def test_bench_counts_are_the_papers(ghost):
    done = ghost("bench", "gns:1.0", "gns:2.8", "gnd:1.0", "resnet18", "--no-timing", "--json")
    assert done.code == 0, done.err
    counts = {row["model"]: row["parameters"] for row in json.loads(done.out)}
    assert counts == {"gns:1.0": 483_554, "gns:2.8": 2_426_850, "gnd:1.0": 6_860_838, "resnet18": 11_173_962}
    first = json.loads(done.out)[0]
    assert first["deploy_parameters"] == 374_174 and first["macs"] == pytest.approx(8.96e6, rel=1e-3)
