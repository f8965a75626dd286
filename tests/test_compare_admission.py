"""Frauds and accidents: each is refused or marked by name, and never silently compared.

A forger is taken to know the format: `edit` gives a record the checksum that fits its new content.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import answers, edit, replace_predictions, scores, write_run
from test_compare_tables import admitted, build, reasons, row
from test_render_formats import said

from ghostcli.comparison.admission import admit
from ghostcli.errors import NonFiniteError
from ghostcli.records import record
from ghostcli.records.verify import verify_run

TEACHER = ("vgg13",)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds alone and three taught."""
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=91.0 + 0.1 * seed)
        write_run(tmp_path, "gns:1.0", "kd", TEACHER, seed=seed, accuracy=92.0 + 0.1 * seed)
    return tmp_path


def taught(runs: Path, seed: int = 0) -> Path:
    return next(runs.glob(f"gns-1.0-kd-*/s{seed}"))


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def change(folder: Path, /, **values: Any) -> None:
    """The same keys in both files that have them."""
    edit(folder / "result.json", **values)
    edit(folder / "recipe.json", seal=False, **values)


def accuracy(run: Path, **values: Any) -> None:
    edit(run / "result.json", accuracy=result(run)["accuracy"] | values)


def recipe(run: Path, section: str, **values: Any) -> dict[str, Any]:
    found = result(run)["recipe"]
    return found | {section: found[section] | values}


def one_in_two_places(run: Path) -> None:
    shutil.copytree(run, run.with_name("s7"))


def another_type(run: Path) -> None:
    """A value that Python calls equal."""
    file = run / "recipe.json"
    file.write_text(file.read_text().replace('"seed": 0,', '"seed": false,', 1))


def copied_as_a_seed(run: Path) -> None:
    """Copied, renamed, and every name in it made to fit."""
    copy = run.with_name("s7")
    shutil.copytree(run, copy)
    change(copy, run=result(run)["run"].replace("/s0", "/s7"), seed=7)


def copied_with_other_weights(run: Path) -> None:
    copied_as_a_seed(run)
    copy = run.with_name("s7")
    edit(copy / "result.json", files=result(copy)["files"] | {"model.safetensors": "0" * 64})


def copied_with_other_logits(run: Path) -> None:
    """The same answers on every image by other logits and weights."""
    copied_with_other_weights(run)
    copy = run.with_name("s7")
    logits, labels = (np.load(copy / "predictions.npz")[name] for name in ("logits", "labels"))
    replace_predictions(copy, logits * 2, labels)


def swapped_predictions(run: Path) -> None:
    """Another run's predictions, put beside a result that was not changed."""
    shutil.copy(taught(run.parents[1], 1) / "predictions.npz", run / "predictions.npz")


def swapped_and_sealed(run: Path) -> None:
    replace_predictions(run, *scores(70.0, 5))


def answers_without_logits(run: Path) -> None:
    (run / "predictions.npz").unlink()
    edit(run / "result.json", test=answers(*scores(70.0, 5)))


def no_checksum(run: Path) -> None:
    content = result(run)
    del content["checksum"]
    (run / "result.json").write_text(json.dumps(content))


def no_test_images(run: Path) -> None:
    nothing = {"images": 0, "labels": "", "correct": "", "ece": 0.0}
    edit(run / "result.json", test_images=0, test=nothing)


def without_predictions(run: Path) -> None:
    edit(run / "result.json", test=None)


def other_epochs(run: Path) -> None:
    """A recipe of 400 epochs beside a result of 200, in both files, under the old digest."""
    change(run, recipe=recipe(run, "train", epochs=400))


def other_rate(run: Path) -> None:
    change(run, recipe=recipe(run, "optim", lr=0.3))


def other_recipe_file(run: Path) -> None:
    edit(run / "recipe.json", seal=False, recipe=recipe(run, "train", epochs=400))


def best_among_last(run: Path) -> None:
    """The best epoch on the test set, recorded as the result."""
    scores = result(run)["accuracy"]
    accuracy(run, selected=scores["best"], selected_epoch=scores["best_epoch"])


def best_as_validation(run: Path) -> None:
    scores = result(run)["accuracy"]
    accuracy(run, selected=scores["best"], selected_epoch=scores["best_epoch"], selected_by="validation")


def newer(run: Path) -> None:
    edit(run / "result.json", schema=99)


def older(run: Path) -> None:
    edit(run / "result.json", schema=1)


FRAUDS: dict[Callable[[Path], None], str] = {
    lambda run: edit(run / "result.json", seal=False, nll=0.1): "changed after it was written",
    lambda run: accuracy(run, selected=99.0, last=99.0): "metrics.jsonl 92.00 %",
    lambda run: accuracy(run, selected=99.0): "its result is 99.0 %, and the accuracy of its last epoch 92.0 %",
    lambda run: accuracy(run, best=99.0): "result.json says 99.00 % (best)",
    swapped_predictions: "has changed since the result was written",
    swapped_and_sealed: "its predictions give 70.00 %, result.json says 92.00 %",
    answers_without_logits: "its predictions give 70.00 %, result.json says 92.00 %",
    one_in_two_places: "the folder was copied or renamed",
    copied_as_a_seed: "equal weights under different seeds",
    copied_with_other_weights: "equal predictions under different seeds",
    copied_with_other_logits: "equal errors on the test images under different seeds",
    other_epochs: "its recipe does not give its digest",
    other_rate: "its recipe does not give its digest",
    other_recipe_file: "recipe.json and result.json differ in recipe",
    another_type: "recipe.json is damaged at seed",
    best_among_last: "its recipe says 'last'",
    best_as_validation: "its recipe says 'last'",
    no_checksum: "has no checksum",
    no_test_images: "0 images",
    without_predictions: "no predictions of the test images",
    newer: "install a newer ghost",
    older: "an older ghost made it",
}


@pytest.mark.parametrize("fraud", FRAUDS, ids=[getattr(f, "__name__", "") + str(i) for i, f in enumerate(FRAUDS)])
def test_it_is_refused_by_name(fraud: Callable[[Path], None], runs: Path) -> None:
    run = taught(runs)
    fraud(run)
    found = build(runs)
    refused = [out for out in found.left_out if FRAUDS[fraud] in out.reason]
    assert refused, reasons(found)
    assert row(found, "gns:1.0", *TEACHER).ours.n <= 3
    used = row(found, "gns:1.0", *TEACHER).group.ids
    assert not used & {out.run for out in found.left_out}
    text = " ".join(said("II", "--runs", runs).split())
    assert FRAUDS[fraud] in text and refused[0].run in text


@pytest.mark.parametrize("fraud", [swapped_predictions, swapped_and_sealed, no_checksum, no_test_images, newer])
def test_verify_finds_it_too(fraud: Callable[[Path], None], runs: Path) -> None:
    run = taught(runs)
    fraud(run)
    found = next(one for one in record.scan(runs) if one.path == run)
    assert any(FRAUDS[fraud] in problem for problem in verify_run(found))


@pytest.mark.parametrize("epoch", [-7, 0, 999, 10**30])
def test_a_selected_epoch_that_was_not_trained(tmp_path: Path, epoch: int) -> None:
    run = tmp_path / write_run(tmp_path, "gns:1.0", sections={"data": {"validation": 100}})
    accuracy(run, selected_epoch=epoch, selected_by="validation")
    assert f"its result is epoch {epoch} of 200" in verify_run(record.scan(tmp_path)[0])


SHAPES = {
    "one axis": (np.zeros(1000, np.float16), np.zeros(1000, np.int64)),
    "no axis": (np.float16(1), np.int64(1)),
    "text": (np.full((1000, 10), "a"), np.zeros(1000, np.int64)),
    "fewer labels": (np.zeros((1000, 10), np.float16), np.zeros(5, np.int64)),
    "no classes": (np.zeros((1000, 0), np.float16), np.zeros(1000, np.int64)),
    "labels in letters": (np.zeros((1000, 10), np.float16), np.full(1000, "cat")),
}


@pytest.mark.parametrize("arrays", SHAPES.values(), ids=SHAPES)
def test_arrays_that_are_no_predictions_are_damage(arrays: tuple[np.ndarray, np.ndarray], runs: Path) -> None:
    run = taught(runs)
    np.savez(run / "predictions.npz", logits=arrays[0], labels=arrays[1])
    refused = [out for out in build(runs).left_out if "predictions.npz has changed" in out.reason]
    assert refused
    found = next(one for one in record.scan(runs) if one.path == run)
    assert found.predictions() is None and "predictions.npz is damaged" in verify_run(found)


def test_logits_that_do_not_give_the_recorded_answers(runs: Path) -> None:
    """Sealed by their checksum. A table takes no number from the logits; `ghost runs verify` reads them."""
    run = taught(runs)
    before = result(run)["test"]
    replace_predictions(run, *scores(70.0, 5))
    edit(run / "result.json", test=before)
    assert row(build(runs), "gns:1.0", *TEACHER).ours.n == 3
    found = next(one for one in record.scan(runs) if one.path == run)
    assert verify_run(found) == ["predictions.npz and result.json differ on the test images"]


def test_a_teacher_that_was_trained_again_between_seeds(runs: Path) -> None:
    run = taught(runs)
    change(run, teachers=[result(run)["teachers"][0] | {"weights": "0" * 64}])
    found = build(runs)
    assert row(found, "gns:1.0", *TEACHER).ours is None
    assert reasons(found) == {"the runs of this job had teachers of one id with different weights": 3}


def test_a_baseline_from_another_source_is_no_baseline(runs: Path) -> None:
    for run in sorted(runs.glob("gns-1.0-plain-*/s*")):
        change(run, source="0" * 64)
    made = row(build(runs), "gns:1.0", *TEACHER)
    assert made.delta is None and "their sources differ" in made.missing_baseline


def test_another_teacher_under_one_digest(runs: Path) -> None:
    run = taught(runs)
    change(run, teachers=[result(run)["teachers"][0] | {"run": "vgg13-plain-0000dead/s0"}])
    found = build(runs)
    assert row(found, "gns:1.0", *TEACHER).ours is None
    assert reasons(found) == {"the runs of this job name different teachers under one digest": 3}


def test_a_recipe_that_was_changed_with_its_teachers_there(tmp_path: Path) -> None:
    top = write_run(tmp_path, "vgg13")
    run = tmp_path / write_run(tmp_path, "gns:1.0", "kd", TEACHER, teacher_runs=(top,))
    assert row(build(tmp_path), "gns:1.0", *TEACHER).ours.n == 1
    change(run, recipe=recipe(run, "distill", temperature=4.0))
    assert reasons(build(tmp_path)) == {"its recipe does not give its digest: the recipe or the digest was changed": 1}


@pytest.mark.parametrize(
    ("key", "value", "said_as"),
    [
        ("torch", "3.0", "torch 2 and 3.0"),
        ("device", "a GPU", "device a CPU and a GPU"),
        ("commit", "abc", "commit None and abc"),
        ("kernel", "triton", "kernel pytorch and triton"),
        ("ghost", "1", "ghost 0 and 1"),
    ],
)
def test_another_environment_is_marked_on_the_row(key: str, value: str, said_as: str, runs: Path) -> None:
    assert row(build(runs), "gns:1.0", *TEACHER).mixed == ()
    environment = result(taught(runs))["environment"]
    edit(taught(runs) / "result.json", environment=environment | {key: value})
    assert row(build(runs), "gns:1.0", *TEACHER).mixed == (said_as,)
    text = " ".join(said("II", "--runs", runs).split())
    assert "(3)‡" in text and f"‡ The runs compared differ in {said_as}: GN-S 1.0x < VGG13." in text


def test_a_machine_that_changed_while_it_trained_is_marked(runs: Path) -> None:
    environment = result(taught(runs))["environment"]
    edit(taught(runs) / "result.json", environment=environment | {"changes": ["torch 2 to 3"]})
    assert "changed during gns-1.0-kd" in row(build(runs), "gns:1.0", *TEACHER).mixed[0]


def test_another_start_is_no_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, "resnet18", start="native")
    write_run(tmp_path, "gns:1.0", start="native")
    write_run(tmp_path, "gns:1.0", "kd", TEACHER, start="kaiming")
    found = row(build(tmp_path), "gns:1.0", *TEACHER)
    assert (found.delta, found.verdict) == (None, None)
    assert "start as kaiming" in found.missing_baseline and "as native" in found.missing_baseline
    assert "runs with different starts are not compared" in " ".join(said("II", "--runs", tmp_path).split())


def test_another_network_by_the_same_name_is_no_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:1.0", parameters=1)
    write_run(tmp_path, "gns:1.0", "kd", TEACHER)
    found = row(build(tmp_path), "gns:1.0", *TEACHER)
    assert found.delta is None and "another network by the same name" in found.missing_baseline


def test_which_of_two_records_counts_is_not_decided_by_time(tmp_path: Path) -> None:
    """Folded and plain branches do the same work under two digests."""
    for seed in range(2):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=91.0 + seed)
    twin = write_run(tmp_path, "gns:1.0", accuracy=95.0, sections={"engine": {"branches": "plain"}})
    for when in (1, 2_000_000_000):
        os.utime(tmp_path / twin / "result.json", (when, when))
        found = build(tmp_path, "I")
        assert (row(found, "gns:1.0").ours.n, row(found, "gns:1.0").ours.mean) == (2, pytest.approx(91.5))
        (left,) = found.left_out
        assert left.run == twin and left.reason.startswith("a second record of one seed; gns-1.0-plain-")


def test_failed_seeds_stand_beside_n_and_too_many_take_the_verdict(runs: Path) -> None:
    failure = {"status": "failed", "error": "the loss became non-finite in epoch 3"}
    for seed in range(3, 5):
        write_run(runs, "gns:1.0", "kd", TEACHER, seed=seed, accuracy=92.0 + 0.1 * seed)
    write_run(runs, "gns:1.0", "kd", TEACHER, seed=5, **failure)
    found = row(build(runs), "gns:1.0", *TEACHER)
    assert (found.ours.n, len(found.group.failed), found.verdict) == (5, 1, "better")
    assert "(5, 1 failed)" in said("II", "--runs", runs)
    write_run(runs, "gns:1.0", "kd", TEACHER, seed=6, **failure)
    found = row(build(runs), "gns:1.0", *TEACHER)
    assert (found.delta.mean, found.p_adjusted, found.verdict) == (pytest.approx(1.1, abs=0.1), None, None)
    text = " ".join(said("II", "--runs", runs).split())
    assert "(5, 2 failed)" in text and "No verdict for GN-S 1.0x < VGG13: more than 20%" in text
    assert "Left out, non-finite: 2" in text


def test_failed_runs_are_counted_on_both_sides(tmp_path: Path) -> None:
    failure = {"status": "failed", "error": "the loss became non-finite in epoch 3"}
    for strategy, teachers in (("plain", ()), ("kd", TEACHER)):
        for seed in range(4):
            write_run(tmp_path, "gns:1.0", strategy, teachers, seed=seed, **(failure if seed > 1 else {}))
    found = row(build(tmp_path), "gns:1.0", *TEACHER)
    assert (found.ours.n, len(found.group.failed), len(found.baseline.failed)) == (2, 2, 2)


def test_a_teacher_that_is_not_finite_is_no_divergence_of_its_student(runs: Path) -> None:
    error = "runs/t/s0/teacher-table/0: the teacher's logits are not finite; its run is unusable, train it again"
    write_run(runs, "gns:1.0", "kd", TEACHER, seed=5, status="failed", error=error)
    assert not row(build(runs), "gns:1.0", *TEACHER).group.failed


def test_the_code_in_the_status_says_what_diverged_and_older_records_say_it_in_words(tmp_path: Path) -> None:
    words, code = "the loss became non-finite in epoch 3", {"exit_code": NonFiniteError.exit_code}
    other = {"exit_code": 1, "error": f"runs/t/s0: this is no teacher, {words}"}
    for seed, state in enumerate(({"error": words}, {"error": "NaN in epoch 3", **code}, other, {"error": "no disk"})):
        run = write_run(tmp_path, "gns:1.0", seed=seed, status="failed")
        (tmp_path / run / "status.json").write_text(json.dumps({"status": "failed", **state}))
    assert [run.setup.seed for run in admit(record.scan(tmp_path)).failed] == [0, 1]


def test_failed_baselines_count_too(runs: Path) -> None:
    for seed in range(3, 6):
        write_run(runs, "gns:1.0", seed=seed, status="failed", error="weights became non-finite")
    found = row(build(runs), "gns:1.0", *TEACHER)
    assert (found.delta.mean, found.verdict) == (pytest.approx(1.0), None)


def test_unshuffled_runs_are_left_out_of_what_was_also_run(tmp_path: Path) -> None:
    from ghostcli.comparison.tables import also_run

    write_run(tmp_path, "gns:0.5", accuracy=80.0)
    left = write_run(tmp_path, "gns:0.5", "kd", TEACHER, accuracy=90.0, distill={"shuffle": False})
    kept = write_run(tmp_path, "gns:0.5", "kd", TEACHER, accuracy=82.0)
    found = also_run(admitted(tmp_path), [])
    assert [sorted(r.group.ids) for r in found.rows if r.taught] == [[kept]]
    assert [(out.run, out.reason) for out in found.left_out] == [(left, "not shuffled, while its baseline is")]


def test_whole_runs_are_not_refused(runs: Path) -> None:
    assert not build(runs).left_out
    assert not [problem for one in record.scan(runs) for problem in verify_run(one)]


def test_seeds_added_after_a_table_was_read_are_said(runs: Path) -> None:
    assert "Seeds were added" not in said("II", "--runs", runs)
    assert "Seeds were added" not in said("II", "--runs", runs)  # reading again adds nothing
    write_run(runs, "gns:1.0", "kd", TEACHER, seed=3, accuracy=92.3)
    text = " ".join(said("II", "--runs", runs).split())
    assert "Seeds were added to GN-S 1.0x < VGG13 after a table was read (3 and 3 runs then, 4 and 3 now)" in text
    (runs / ".looks.json").write_text('{"x": 3}')  # damaged: shown all the same
    assert "Seeds were added" not in said("II", "--runs", runs)
    assert (runs / ".looks.json").read_text() == '{"x": 3}'  # and kept


def test_a_users_own_network_is_shown_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ghostcli.comparison.tables import also_run

    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("def make(classes): ...\n")
    write_run(tmp_path / "runs", "py:net.py:make")
    Path("net.py").write_text("def make(classes): pass\n")
    write_run(tmp_path / "runs", "py:net.py:make", seed=1)  # another network by the same name
    Path("net.py").unlink()
    rows = also_run(admitted(tmp_path / "runs"), []).rows
    assert [(r.student, r.ours.n) for r in rows] == [("py:net.py:make", 1)] * 2


def at_chance(run: Path) -> None:
    """Let all accuracies of a record be 10 %."""
    edit(run / "result.json", accuracy=result(run)["accuracy"] | dict.fromkeys(("last", "best", "selected"), 10.0))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for epoch in rows:
        epoch["test"]["accuracy"] = 10.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in rows))


def test_networks_that_collapsed_to_one_class_are_not_called_copies(tmp_path):
    """Their errors are equal and their weights and logits are not. Without them the others would be a selection."""
    labels = np.arange(1000) % 10
    for seed in range(3):
        run = tmp_path / write_run(tmp_path, "gns:1.0", seed=seed, epochs=3)
        logits = np.random.default_rng(seed).normal(size=(1000, 10))
        logits[:, 4] += 20
        replace_predictions(run, logits.astype(np.float16), labels)
        at_chance(run)
    admitted = admit(record.scan(tmp_path))
    assert len(admitted.runs) == 3 and not admitted.left_out
    for file in tmp_path.glob("*/*/predictions.npz"):  # a study holds no logits
        file.unlink()
    admitted = admit(record.scan(tmp_path))
    assert len(admitted.runs) == 3 and not admitted.left_out


def test_a_network_with_the_errors_of_a_collapsed_one_is_not_called_its_copy(tmp_path):
    """It gives one image another class, and is wrong there too."""
    labels = np.arange(1000) % 10
    for seed in range(2):
        run = tmp_path / write_run(tmp_path, "gns:1.0", seed=seed, epochs=1)
        logits = np.random.default_rng(seed).normal(size=(1000, 10))
        logits[:, 4] += 20
        logits[0, 1] += 40 * seed
        replace_predictions(run, logits.astype(np.float16), labels)
        at_chance(run)
    assert not admit(record.scan(tmp_path)).left_out


def test_networks_that_are_wrong_everywhere_are_not_called_copies(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=0.0, test_images=12, epochs=2)
    assert not admit(record.scan(tmp_path)).left_out
