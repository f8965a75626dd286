"""`ghost bench` without timing: the printed counts to the last parameter, and every wrong argument in one line."""

from __future__ import annotations

import json

import pytest
from report_runs import write_run

from ghostcli.deploy import bench

# Published counts (training form), and those of a deploy form with every batch norm folded.
COUNTS = {
    "gns:1.0": (483_554, 374_174, 19.6, 8.96),
    "gns:1.3": (712_198, 536_712, 31.4, 14.3),
    "gns:1.6": (973_606, 719_316, 45.9, 20.8),
    "gns:1.9": (1_277_070, 927_000, 64.1, 29.0),
    "gns:2.2": (1_617_674, 1_159_656, 84.2, 38.0),
    "gns:2.8": (2_426_850, 1_701_424, 131.7, 59.5),
    "gns:3.4": (3_380_066, 2_331_712, 192.4, 86.6),
    "gnd:1.0": (6_860_838, None, 35.6, 16.2),
    "resnet18": (11_173_962, None, None, 140),
    "resnet34": (21_282_122, None, None, 291),
    "resnet50": (23_520_842, None, None, 326),
    "vgg13": (28_334_410, None, None, 247),
    "inceptionv3": (21_638_954, None, None, 3460),
    "densenet161": (26_482_570, None, None, 619),
}


def test_every_network_of_table_i_has_its_counts(ghost):
    done = ghost("bench", *COUNTS, "efficientnetv2", "--no-timing", "--json")
    assert done.code == 0, done.err
    rows = {row["model"]: row for row in json.loads(done.out)}
    assert list(rows) == [*COUNTS, "efficientnetv2"]
    for name, (parameters, deployed, train_macs, macs) in COUNTS.items():
        row = rows[name]
        assert set(row) == {"model", "image_size", "parameters", "deploy_parameters", "macs", "train_macs"}
        assert row["parameters"] == parameters
        assert row["macs"] / 1e6 == pytest.approx(macs, rel=0.004)
        if deployed is not None:
            assert row["deploy_parameters"] == deployed
        if train_macs is not None:
            assert row["train_macs"] / 1e6 == pytest.approx(train_macs, rel=0.004)
    assert rows["efficientnetv2"]["parameters"] == pytest.approx(20.190e6, abs=500)


def test_names_are_canonical_and_classes_add_a_row_of_weights_each(ghost):
    ten, hundred = (json.loads(ghost("bench", "gns", "--no-timing", "--json", "--classes", n).out) for n in (10, 100))
    assert ten[0]["model"] == "gns:1.0"
    assert hundred[0]["parameters"] - ten[0]["parameters"] == 90 * (1280 + 1)
    assert hundred[0]["macs"] - ten[0]["macs"] == 90 * 1280


def test_a_run_is_counted_with_its_own_classes(ghost, tmp_path):
    run = write_run(tmp_path, "gns:1.0", classes=100)
    done = ghost("bench", f"run/{run}", "--no-timing", "--json", "--runs", tmp_path)
    assert done.code == 0, done.err
    [row] = json.loads(done.out)
    assert (row["model"], row["parameters"]) == (f"run/{run}", 483_554 + 90 * 1281)


def test_the_table_holds_every_name_and_count_on_its_line(ghost):
    lines = ghost("bench", "gns:1.0", "gns:1.3", "--no-timing").out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["gns:1.0", "483,554", "374,174", "19.6", "M", "9.0", "M"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gns:0", "--no-timing"], "width must be positive"),
        (["resnet19", "--no-timing"], "resnet18"),
        (["run/gns-1.0-plain-00000000/s0", "--no-timing"], "no run"),
        (["gns", "--no-timing", "--plot", "figure.txt"], ".png"),
        (["gns", "--no-timing", "--plot", "nowhere/figure.png"], "nowhere"),
        (["gns:0.1", "--no-timing", "--plot", "figure.png"], "train-teacher"),
        (["gns:0.1", "--device", "abacus"], "abacus"),
        (["gns:0.1", "--batch", "0"], "--batch"),
        (["x.onnx", "--mlperf-tiny", "--plot", "figure.png"], "--plot: has no effect with --mlperf-tiny"),
        (["x.onnx", "--mlperf-tiny", "--formats", "all"], "--formats: has no effect with --mlperf-tiny"),
        (["x.onnx", "--mlperf-tiny", "--device", "auto"], "--device: has no effect with --mlperf-tiny"),
        (["x.onnx", "--mlperf-tiny", "--no-timing"], "--no-timing: has no effect with --mlperf-tiny"),
        (["run/x", "--formats", "all", "--device", "cuda"], "--device: has no effect with --formats"),
        (["run/x", "--formats", "all", "--batch", "64"], "--batch: has no effect with --formats"),
        (["run/x", "--formats", "all", "--classes", "10"], "--classes: has no effect with --formats"),
        (["gns", "--no-timing", "--markdown"], "--markdown: has no effect without --formats"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(ghost, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    done = ghost("bench", *arguments)
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_refused(ghost, tmp_path):
    run = write_run(tmp_path, "gns:1.0", status="interrupted")
    done = ghost("bench", f"run/{run}", "--no-timing", "--runs", tmp_path)
    assert done.code == 2
    assert "unfinished" in done.err


def test_the_plot_shows_finished_runs_at_their_networks_cost(ghost, tmp_path):
    for seed, accuracy in ((0, 91.0), (1, 91.4)):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=accuracy)
    write_run(tmp_path, "gns:2.8", accuracy=93.9)  # not measured, so not drawn
    rows = [{"model": "gns:1.0", "macs": 8_962_176}]
    [point] = bench.points(rows, tmp_path)
    assert point.cost == pytest.approx(8.962176)
    assert point.accuracy == pytest.approx(91.2)
    assert point.error == pytest.approx(0.4 / 2**0.5)
    file = tmp_path / "figure.png"
    done = ghost("bench", "gns:1.0", "--no-timing", "--json", "--runs", tmp_path, "--plot", file)
    assert done.code == 0, done.err
    assert len(json.loads(done.out)) == 1
    assert file.read_bytes().startswith(b"\x89PNG")
