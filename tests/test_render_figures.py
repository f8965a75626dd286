"""Figures: what they hold, that they are written in each format, and what cannot be drawn."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import typer
from report_runs import replace_predictions, scores, study, write_run
from test_compare_tables import admitted, build
from typer.testing import CliRunner

from ghostcli.cli.plot import plot
from ghostcli.comparison import tables
from ghostcli.errors import UsageError
from ghostcli.records import record
from ghostcli.render import figures, gather, pictures
from ghostcli.render.figures import Curve, Point
from ghostcli.render.plots import Asked, learning_curves, width
from ghostcli.report.svg import log_ticks

HEADS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
app = typer.Typer()
app.command()(plot)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs"))


def draw(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("kind", "suffix"), [("curves", ".png"), ("width", ".pdf"), ("front", ".svg"), ("forest", ".png")]
)
def test_studies_are_drawn(kind: str, suffix: str, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / f"figure{suffix}"
    assert draw(kind, "--runs", runs, "--out", file) == str(file)
    assert file.read_bytes().startswith(HEADS[suffix])


def test_single_runs_are_drawn(runs: Path, tmp_path: Path) -> None:
    good = [run for run in record.scan(runs) if run.status == "done"]
    file = tmp_path / "figure.png"
    draw("confusion", good[0].id, "--runs", runs, "--out", file)
    first = file.read_bytes()
    draw("reliability", good[0].id, good[1].id, "--runs", runs, "--out", file)
    assert file.read_bytes() != first
    draw("curves", good[0].id.rpartition("/")[0], "--runs", runs, "--out", file)
    draw("front", "--cost", "hours", "--runs", runs, "--out", file)
    assert file.read_bytes().startswith(HEADS[".png"])


def test_the_same_records_give_the_same_file(runs: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        draw("width", "--runs", runs, "--out", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_no_curve_leaves_its_panel_after_the_first_tenth() -> None:
    """A run can fall far below where it began."""
    fallen = np.array([[50.0, 60, 70, 80, 20, 81, 82, 83, 84, 85], [50.0, 61, 71, 79, 83, 5, 82, 83, 84, 86]])
    axis = figures.curves([Curve("GN-S 1.0x", "alone", fallen)]).axes[0]
    low, high = axis.get_ylim()
    assert low < 5 and high > 86


def test_curves_have_a_panel_a_student_and_the_baseline_in_grey() -> None:
    seeds = np.array([[50.0, 90.0], [54.0, 92.0]])
    found = [
        Curve("GN-S 1.0x", "VGG13", seeds),
        Curve("GN-S 1.0x", "alone", seeds - 1, baseline=True),
        Curve("GN-D 1.0x", "alone", seeds[:1, :1], baseline=True),
    ]
    figure = figures.curves(found)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [panel.get_title(loc="left") for panel in panels] == ["GN-S 1.0x", "GN-D 1.0x"]
    lines = {line.get_label(): line for line in panels[0].lines}
    assert lines["VGG13, 91.00"].get_ydata().tolist() == [52.0, 91.0]
    assert lines["alone, 90.00"].get_color() == figures.GREY


def test_two_families_have_a_panel_each_and_long_titles_keep_to_their_own(tmp_path: Path) -> None:
    """Trained apart, they were two grey lines of one name in one panel; a long title lay across its neighbour's."""
    for family, train in (("paper", {}), ("ghost", {"ema": 0.999}), ("ghost", {"ema": 0.999, "label_smoothing": 0.63})):
        write_run(tmp_path, family=family, train=train)
    figure = learning_curves(Asked(record.scan(tmp_path)))
    panels = [axes for axes in figure.axes if axes.axison]
    titles = sorted(axes.get_title(loc="left").replace("\n", " ") for axes in panels)
    about = "cifar10, 50,000 images × 200 epochs"
    names = [f"GN-S 1.0x {family}: {about}" for family in ("ghost", "ghost", "paper")]
    assert titles == [names[0], f"{names[1]}, labels smoothed by 0.63", names[2]]
    assert [len(axes.lines) for axes in panels] == [1, 1, 1]
    write_run(tmp_path, strategy="kd", teachers=("resnet18",), family="published", recipe_name="published/kd")
    shared = learning_curves(Asked(record.scan(tmp_path))).axes[0]
    assert "paper and published: " in shared.get_title(loc="left").replace("\n", " ") and len(shared.lines) == 2
    figure.draw_without_rendering()
    boxes = [axes._left_title.get_window_extent() for axes in panels]
    assert all(not one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_width_draws_the_printed_points_and_ours(runs: Path) -> None:
    figure = figures.width([t for f in ("paper", "published") for t in tables.built(["I"], admitted(runs), f)])
    printed = figure.axes[0].lines[0]
    assert printed.get_xdata().tolist() == [1.0, 1.3, 1.6, 1.9, 2.2, 2.8, 3.4]
    assert printed.get_ydata()[5] == 93.94
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["printed (one seed, best epoch)", "paper and published, 3 seeds"]  # the very same runs: once


def test_widths_that_are_not_printed_are_drawn_too(tmp_path: Path) -> None:
    for student in ("gns:0.25", "gns:0.5"):
        write_run(tmp_path, student, family="smoke", epochs=1, limit=500, train_images=500)
    write_run(tmp_path, "gns:0.25", "kd", ("gns:0.5",), family="smoke", epochs=1, limit=500, train_images=500)
    figure = width(Asked(record.scan(tmp_path), family="smoke"))
    assert figure.axes[0].get_legend_handles_labels()[1][1:] == ["smoke, 1 seed"]
    assert {0.25, 0.5} <= set(figure.axes[0].get_xticks())


@pytest.mark.parametrize(
    ("low", "high"), [(0.24, 0.41), (2.1, 4.8), (0.55, 0.95), (0.19, 0.21), (1.5, 150), (1.9, 490), (3, 40000)]
)
def test_an_axis_of_costs_has_numbers_however_narrow_it_is(low: float, high: float) -> None:
    assert len(log_ticks(low, high)) > 1
    assert all(low <= tick <= high for tick in log_ticks(low, high))
    figure = figures.front([Point("a", low, 80.0), Point("b", high, 90.0)])
    left, right = figure.axes[0].get_xlim()
    numbers = [tick for tick in figure.axes[0].get_xticks() if left <= tick <= right]
    assert len(numbers) > 1
    labels = [figure.axes[0].xaxis.get_major_formatter()(tick, 0) for tick in numbers]
    assert len(set(labels)) == len(labels)


def test_an_axis_over_several_decades_keeps_its_round_values() -> None:
    assert log_ticks(0.9, 25) == [1, 2, 5, 10, 20]
    assert log_ticks(0.9, 2500) == [1, 10, 100, 1000]


def test_runs_that_have_no_place_beside_the_printed_ones_are_said_to_have_none(tmp_path: Path) -> None:
    write_run(tmp_path, "gns:0.25", family="smoke", data="digits")
    with pytest.raises(UsageError, match=r"no finished GN-S baseline under smoke .*--recipe smoke` makes one"):
        draw("width", "--family", "smoke", "--runs", tmp_path, "--out", tmp_path / "figure.png")


def test_the_forest_shows_controls_hollow(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "gns:1.0", seed=seed, accuracy=91.0)
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=92.0, distill={"blind": True})
        write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), seed=seed, accuracy=93.0)
    figure = figures.forest([build(tmp_path)])
    marks = {
        line.get_markerfacecolor(): line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"
    }
    assert marks.pop("white") == pytest.approx(1.0, abs=0.05)
    assert list(marks.values()) == [pytest.approx(2.0, abs=0.05)]
    assert "minus its control" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_forest_shows_printed_and_ours(runs: Path) -> None:
    table = build(runs, "III")
    axes = figures.forest([table]).axes[0]
    diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [-0.77, -0.50, -0.13, -0.57]
    found = table.rows[0].delta
    assert any(
        np.allclose(line.get_xdata(), [found.low, found.high]) for line in axes.lines if len(line.get_xdata()) == 2
    )


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    points = [Point("a", 1, 90), Point("b", 2, 89), Point("c", 3, 93), Point("d", 3, 92), Point("e", 9, 93)]
    assert [point.name for point in gather.pareto(points)] == ["a", "c"]


def test_total_variation() -> None:
    student, teacher = np.log([[0.7, 0.2, 0.1], [0.5, 0.5, 1e-9]]), np.log([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-9]])
    assert pictures.total_variation(student, teacher) == pytest.approx([0.6, 0.0])


def test_the_sheet_shows_the_images_that_part_most() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.zeros(40, dtype=int)
    teacher = np.tile([5.0, 0.0], (40, 1))
    student = teacher.copy()
    student[[7, 31]] = [[0.0, 5.0], [0.0, 2.0]]
    figure = pictures.disagreement(images, labels, student, teacher, ["cat", "dog"], count=2)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [next(i for i in range(40) if np.array_equal(images[i], image)) for image in shown] == [7, 31]
    assert [text.get_text() for text in figure.axes[0].texts] == ["S dog 99 % ✗", "T cat 99 % ✓"]


def test_confusion_counts_by_true_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    logits = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    figure = pictures.confusion(logits, labels, ["cat", "dog"])
    assert {text.get_text() for text in figure.axes[0].texts} == {"75.0", "25.0", "100"}


def test_many_classes_are_drawn_without_figures(tmp_path: Path) -> None:
    logits, labels = scores(70, 0, n=500, classes=100)
    figure = pictures.confusion(logits, labels, [str(i) for i in range(100)])
    assert not figure.axes[0].texts
    figures.save(figure, tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pie"], "plot 'pie' does not exist; there are curves, width"),
        (["curves", "--out", "figure.gif"], r"--out figure\.gif"),
        (["curves"], "at least one finished epoch"),
        (["front"], "no finished run"),
        (["forest"], "needs a taught run"),
        (["confusion"], "name one run"),
        (["reliability"], "name one run or several"),
        (["curves", "gns-1.0-plain-00000000/s0"], "has no run"),
        (["front", "--cost", "money"], "--cost 'money'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        draw(*arguments, "--runs", tmp_path)
    assert not list(tmp_path.glob("*.*"))


def test_a_figure_that_cannot_be_written_is_a_line(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        draw("width", "--runs", runs, "--out", tmp_path / "none" / "figure.png")


def test_disagreement_needs_a_teacher(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with pytest.raises(UsageError, match="no teacher"):
        draw("disagree", run, "--runs", tmp_path, "--out", tmp_path / "figure.png")


def test_disagreement_on_the_embedded_digits(tmp_path: Path) -> None:
    from ghostcli.data import load
    from ghostcli.recipe.models import DataSection

    data = load(DataSection(name="digits"))
    labels = data.test.labels.numpy()
    common = {"data": "digits", "data_checksum": data.checksum, "test_images": len(labels)}
    teacher = write_run(tmp_path, "resnet18", accuracy=99, **common)
    student = write_run(tmp_path, "gns:1.0", "kd", ("resnet18",), accuracy=95, teacher_runs=(teacher,), **common)
    for run in record.scan(tmp_path):
        logits, _ = run.predictions()
        replace_predictions(run.path, logits, labels)
    file = tmp_path / "figure.png"
    draw("disagree", student, "--runs", tmp_path, "--out", file)
    assert file.read_bytes().startswith(HEADS[".png"])
