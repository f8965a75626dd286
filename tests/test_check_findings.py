"""The teaching check: planted faults are caught, each by its own finding, and clean teaching is not."""

from __future__ import annotations

import ast
import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import edit, write_run
from torch import nn

from ghostcli import data as datasets
from ghostcli import plan, zoo
from ghostcli.check import findings as check
from ghostcli.check import sample
from ghostcli.data import Data
from ghostcli.data.batches import Cropper, normalise, order, views
from ghostcli.distill import teacher as teaching
from ghostcli.distill.teacher import Teacher, TeacherLogits
from ghostcli.engine import train as loop
from ghostcli.recipe import load
from ghostcli.recipe.models import DataSection
from ghostcli.records import trained as trained_networks
from ghostcli.records.model import SUBJECTS
from ghostcli.zoo import evaluate
from ghostcli.zoo.teachers import Enlarged

CPU = torch.device("cpu")
DIGITS = ["data.name=digits", "augment.flip=none", "augment.pad=2", "train.batch_size=64"]


@pytest.fixture(scope="module")
def digits() -> Data:
    return datasets.load(DataSection(name="digits"))


def network(seed: int = 0, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10))


def trained(data: Data, seed: int = 0, epochs: int = 8, width: int = 16) -> nn.Module:
    """A small network, trained on the digits' views for some seconds: right on about 98 % of the test images."""
    model = network(seed, width).train()
    recipe = load("paper", DIGITS).recipe
    cropper = Cropper(data.train, recipe.augment)
    steps = epochs * math.ceil(len(data.train) / 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for epoch in range(epochs):
        view = views(len(data.train), 7, epoch, recipe.augment)
        for index in order(len(data.train), 7, epoch).split(64):
            images = normalise(cropper.crop(index, view[index]), data.mean, data.std)
            nn.functional.cross_entropy(model(images), data.train.labels[index]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(digits: Data) -> list[nn.Module]:
    torch.set_num_threads(1)
    return [trained(digits, seed) for seed in (0, 1)]


def teacher_of(model: nn.Module, data: Data, run: Path, name: str = "small", record: bool = True) -> Teacher:
    """A teacher as `load` gives it, with the record that a finished run leaves."""
    norm = (data.mean, data.std)
    if record:
        logits = evaluate.logits(model, data.test, norm)
        accuracy = evaluate.score(logits, data.test.labels)["accuracy"]
        scores = dict.fromkeys(("last", "best", "selected"), accuracy) | {"best_epoch": 1, "selected_epoch": 1}
        run = run / write_run(
            run, "resnet18", data="digits", test_images=len(data.test), accuracy=accuracy, data_checksum=data.checksum
        )
        edit(run / "result.json", accuracy=scores)
        np.savez(run / "predictions.npz", logits=logits.half().numpy(), labels=data.test.labels.numpy())
    return Teacher(f"{name}-plain-00000000/s0", name, run, model, norm, f"weights of {name}")


def job_of(*settings: str, recipe: str = "paper", teachers: int = 1) -> plan.Job:
    resolved = load(recipe, [*DIGITS, *settings])
    if not teachers:
        return plan.plain("gns:0.5", 0, resolved.recipe, resolved.name)
    names = ["resnet18", "vgg13", "resnet34"][:teachers]
    build = plan.chain if teachers == 1 else plan.ensemble
    return build(names, "gns:0.5", 0, resolved.recipe, resolved.name, Path("runs"))


AT_CHANCE = "no-better-than-chance"


def warned(findings: list[check.Finding]) -> dict[str, check.Finding]:
    assert len({finding.code for finding in findings}) == len(findings)
    for finding in findings:
        json.dumps(finding.model_dump(), allow_nan=False)
        assert finding.message.isprintable() and finding.level in ("ok", "warn")
    return {finding.code: finding for finding in findings if finding.level == "warn"}


SOURCES = ("distill.source=table", "distill.source=live")
SOFT = "distill.temperature=4"


@pytest.mark.parametrize("source", SOURCES)
def test_clean_teaching_passes_every_check(source, digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    findings = check.inspect(job_of(source, SOFT), digits, [teacher], CPU)
    assert warned(findings) == {}
    assert [finding.code for finding in findings] == [
        "unshuffled",
        "other-view",
        "other-size",
        "train-mode",
        "teacher-gradients",
        "teacher-changes",
        "unlike-record",
        "other-classes",
        "teacher-accuracy",
        "no-better-than-chance",
        "near-one-hot",
    ]


def test_paper_recipe_with_a_good_teacher_gives_exactly_the_near_one_hot_warning(digits, models, tmp_path):
    teachers = [teacher_of(model, digits, tmp_path / str(i), f"small{i}") for i, model in enumerate(models)]
    assert set(warned(check.inspect(job_of(), digits, teachers[:1], CPU))) == {"near-one-hot"}
    assert set(warned(check.inspect(job_of(teachers=2), digits, teachers, CPU))) == {"near-one-hot"}
    assert warned(check.inspect(job_of(recipe="paper/t4"), digits, teachers[:1], CPU)) == {}


def test_entropy_is_that_of_the_targets_at_the_recipes_temperature(digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    job = job_of("distill.temperature=3", "distill.source=live")
    found = next(f for f in check.inspect(job, digits, [teacher], CPU) if f.code == "near-one-hot")
    seen = sample.look(job, digits, [teacher], CPU)
    p = torch.softmax(seen.reference[0].double() / 3, 1)
    assert found.figure == pytest.approx(-(p * p.log()).sum(1).mean().item() / math.log(10), rel=1e-5)


def test_targets_as_soft_as_float32_can_tell():
    """The entropy of almost equal probabilities came out above that of equal ones, which is impossible."""
    for seed in range(20):
        logits = torch.randn(1, 64, 10, generator=torch.Generator().manual_seed(seed))
        labels = torch.arange(64) % 10
        seen = sample.Sample(torch.zeros(64, 8, 8, 3), labels, logits, logits, (frozenset(),), (False,))
        found = check.softness(seen, load("paper", ["distill.temperature=1e4"]).recipe)
        assert found.level == "ok" and found.figure == 1.0


def test_a_network_that_comes_with_ghost_is_held_against_its_record(digits, tmp_path):
    """Only if it was trained on these very images."""
    known = trained_networks.at(tmp_path, "pretrained/gns-0.25").result
    norm = (digits.mean, digits.std)
    teacher = Teacher("pretrained/gns-0.25", "gns:0.25", tmp_path / "pretrained", network(5), norm, "weights")
    seen = sample.look(job_of(), digits, [teacher], CPU)
    same = replace(digits, checksum=known.data_checksum)
    assert check.accuracy([teacher], seen, same).level == "warn"
    found = check.accuracy([teacher], seen, digits)
    assert found.level == "ok" and "on its test view" not in found.message


def test_a_plain_run_is_checked_for_its_order_alone(digits):
    assert [f.code for f in check.inspect(job_of(teachers=0), digits, [], CPU)] == ["unshuffled"]
    found = check.inspect(job_of("data.shuffle=false", teachers=0), digits, [], CPU)
    assert "data.shuffle=true" in warned(found)["unshuffled"].message


def test_an_unshuffled_recipe_is_caught_and_the_right_key_named(digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    found = warned(check.inspect(job_of("distill.shuffle=false", SOFT), digits, [teacher], CPU))
    assert set(found) == {"unshuffled"}
    assert found["unshuffled"].figure == pytest.approx(1.0) and "distill.shuffle=true" in found["unshuffled"].message


ORDERS = {
    "file order": lambda n, seed, epoch, shuffle: torch.arange(n),
    "backwards": lambda n, seed, epoch, shuffle: torch.arange(n).flip(0),
    "once for all": lambda n, seed, epoch, shuffle: order(n, seed, 0),
    "small buffer": lambda n, seed, epoch, shuffle: (torch.arange(n) + 100 * torch.rand(n)).argsort(),
}


@pytest.mark.parametrize("planted", ORDERS)
def test_the_real_order_is_judged_not_the_recipes_flag(planted, digits, monkeypatch):
    monkeypatch.setattr(loop, "order", ORDERS[planted])
    found = warned([check.shuffling(job_of(), digits.train.labels)])
    assert "fault in the code that draws the order" in found["unshuffled"].message


def test_runs_of_one_class_are_caught_whatever_the_files_order(digits, monkeypatch):
    labels = digits.train.labels[torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))]

    def by_class(n: int, seed: int, epoch: int, shuffle: bool = True) -> torch.Tensor:
        mixed = order(n, seed, epoch)
        return mixed[labels[mixed].argsort(stable=True)]

    monkeypatch.setattr(loop, "order", by_class)
    assert "share a class" in check.shuffling(job_of(), labels).message


@pytest.mark.parametrize("count", [2, 8, 30, 1000])
def test_shuffled_orders_raise_no_alarm(count):
    labels = torch.arange(count) % 10  # the file in order of class, again and again
    for seed in range(100):
        assert check.shuffling(replace(job_of(), seed=seed), labels).level == "ok"
        assert check.shuffling(replace(job_of(), seed=seed), labels.sort().values).level == "ok"


def test_a_patch_view_is_caught(digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    found = warned(check.inspect(job_of("distill.view=patch", SOFT), digits, [teacher], CPU))
    assert set(found) == {"other-view", "teacher-accuracy", AT_CHANCE}  # what it says of a corner is worth nothing
    assert "distill.view=student" in found["other-view"].message


def test_an_enlarging_network_asked_about_a_patch_is_caught_by_its_size_too(digits, tmp_path):
    model = Enlarged(network(), 48)
    model.spec = zoo.Spec("small", 10, 48)
    teacher = teacher_of(model.eval().requires_grad_(False), digits, tmp_path / "t")
    assert "other-size" not in warned(check.inspect(job_of("distill.source=live"), digits, [teacher], CPU))
    found = warned(check.inspect(job_of("distill.view=patch"), digits, [teacher], CPU))
    assert {"other-view", "other-size"} <= set(found) and "32 pixels" in found["other-size"].message


def test_the_published_recipes_are_caught_on_every_confound_a_check_can_see(digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    shuffled = {"near-one-hot"}
    expected = {
        "published/kd": shuffled,
        "published/chain": {"unshuffled", "near-one-hot"},
        "published/chain-gnd": {"unshuffled", "near-one-hot"},
        "published/kd-efficientnetv2": {"unshuffled", "other-view"},  # what it says of patches may well be soft
    }
    for recipe, codes in expected.items():
        assert codes <= set(warned(check.inspect(job_of(recipe=recipe), digits, [teacher], CPU))), recipe
    two = [teacher, teacher_of(models[1], digits, tmp_path / "u", "other")]
    found = check.inspect(job_of(recipe="published/ensemble", teachers=2), digits, two, CPU)
    assert set(warned(found)) == {"unshuffled", "near-one-hot"}


def shifted(teacher, cropper, device):
    """The planted fault: the teacher is asked about the neighbouring crop."""

    def ask(index, view):
        return teacher.logits(cropper.crop(index, (view + 1) % 25))

    return ask


def test_another_crop_by_one_pixel_is_caught_on_its_way_into_the_table(digits, models, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, "teacher_logits_of_views", shifted)
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    assert set(warned(check.inspect(job_of(SOFT), digits, [teacher], CPU))) == {"other-view"}


def test_a_table_that_was_filled_wrongly_is_caught(digits, models, tmp_path, monkeypatch):
    teacher, job = teacher_of(models[0], digits, tmp_path / "t"), job_of(SOFT)
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "teacher_logits_of_views", shifted)
        teacher_logits = TeacherLogits([teacher], job.recipe, digits, Cropper(digits.train, job.recipe.augment))
        teacher_logits.start_epoch(0, views(len(digits.train), 0, 0, job.recipe.augment))
    found = warned(check.inspect(job, digits, [teacher], CPU))
    assert set(found) == {"other-view"} and "teacher-table" in found["other-view"].message


def test_a_filled_table_passes_and_the_check_fills_nothing(digits, models, tmp_path):
    teacher, job = teacher_of(models[0], digits, tmp_path / "t"), job_of(SOFT)
    check.inspect(job, digits, [teacher], CPU)
    assert teaching.open_table(teacher, digits, job.recipe.augment).coverage() == 0
    teacher_logits = TeacherLogits([teacher], job.recipe, digits, Cropper(digits.train, job.recipe.augment))
    teacher_logits.start_epoch(0, views(len(digits.train), 0, 0, job.recipe.augment))
    assert warned(check.inspect(job, digits, [teacher], CPU)) == {}


def test_another_crop_in_a_live_lesson_is_caught(digits, models, tmp_path, monkeypatch):
    plain = TeacherLogits.of_batch
    monkeypatch.setattr(TeacherLogits, "of_batch", lambda self, index, pixels: plain(self, index, pixels.roll(2, 2)))
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    found = check.inspect(job_of("distill.source=live", SOFT), digits, [teacher], CPU)
    assert "other-view" in warned(found)


@pytest.mark.parametrize("source", SOURCES)
def test_a_teacher_in_training_mode_is_caught_by_its_mode_and_its_statistics(source, digits, tmp_path):
    model = trained(digits, 3, epochs=1)
    teacher = teacher_of(model, digits, tmp_path / "t")
    model.train()
    found = warned(check.inspect(job_of(source, SOFT), digits, [teacher], CPU))
    assert {"train-mode", "teacher-changes"} <= set(found)
    assert found["train-mode"].figure == sum(1 for _ in model.modules())


def test_one_batch_norm_left_in_training_mode_is_caught(digits, tmp_path):
    model = trained(digits, 3, epochs=1)
    teacher = teacher_of(model, digits, tmp_path / "t")
    model[4].train()
    found = warned(check.inspect(job_of("distill.source=live", SOFT), digits, [teacher], CPU))
    assert {"train-mode", "teacher-changes"} <= set(found) and found["train-mode"].figure == 1


def test_gradients_are_caught(digits, tmp_path):
    model = network().eval()
    teacher = teacher_of(model, digits, tmp_path / "t")
    assert set(warned(check.inspect(job_of(SOFT), digits, [teacher], CPU))) == {"teacher-gradients", AT_CHANCE}


@pytest.mark.parametrize("norm", [((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)])
def test_another_normalisation_is_caught_by_the_record(norm, digits, models, tmp_path):
    teacher = replace(teacher_of(models[0], digits, tmp_path / "t"), norm=norm)
    assert "unlike-record" in warned(check.inspect(job_of(SOFT), digits, [teacher], CPU))


def test_another_normalisation_is_caught_without_a_record(digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t", record=False)
    tmp_path.joinpath("t").mkdir()
    assert warned(check.inspect(job_of(SOFT), digits, [teacher], CPU)) == {}
    found = warned(check.inspect(job_of(SOFT), digits, [replace(teacher, norm=((0.5,) * 3, (0.1,) * 3))], CPU))
    assert "its normalisation differs" in found["unlike-record"].message


def test_other_weights_than_the_records_are_caught(digits, models, tmp_path):
    teacher = replace(teacher_of(models[0], digits, tmp_path / "t"), model=models[1])
    assert "unlike-record" in warned(check.inspect(job_of(SOFT), digits, [teacher], CPU))


def test_a_record_of_other_test_images_is_not_held_against_the_teacher(digits, models, tmp_path):
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    other = replace(digits, test=digits.test[torch.arange(len(digits.test) - 1, -1, -1)])
    assert warned(check.inspect(job_of(SOFT), other, [teacher], CPU)) == {}


def test_the_same_teacher_twice_is_caught(digits, models, tmp_path):
    job = job_of(SOFT, teachers=2)
    one = teacher_of(models[0], digits, tmp_path / "t", "one")
    copy = teacher_of(models[0], digits, tmp_path / "u", "copy")
    other = teacher_of(models[1], digits, tmp_path / "v", "other")
    found = warned(check.inspect(job, digits, [one, copy], CPU))
    assert set(found) == {"alike-teachers"} and found["alike-teachers"].figure > 0.999
    assert warned(check.inspect(job, digits, [one, other], CPU)) == {}


@pytest.mark.parametrize("temperature", [1, 4])
@pytest.mark.parametrize("seed", range(2))
def test_fresh_teachers_raise_no_alarm_but_that_they_know_nothing(seed, temperature, digits, tmp_path):
    few = replace(digits, train=digits.train[:500], test=digits.test[:250])
    models = [trained(few, 10 * seed + i, epochs=1) for i in range(2)]
    torch.manual_seed(seed)
    models.append(zoo.build("gns:0.5", 10).eval().requires_grad_(False))  # not trained at all
    teachers = [teacher_of(model, few, tmp_path / str(i), f"t{i}") for i, model in enumerate(models)]
    job = job_of(f"distill.temperature={temperature}", teachers=3)
    found = warned(check.inspect(job, few, teachers, CPU))
    assert set(found) == {AT_CHANCE} and "t2" in found[AT_CHANCE].message


def test_a_feature_kind_is_checked_through_its_taps(digits, tmp_path):
    torch.manual_seed(0)
    model = zoo.build("gns:0.5", 10).eval().requires_grad_(False)
    teacher = teacher_of(model, digits, tmp_path / "t")
    assert set(warned(check.inspect(job_of("distill.kind=hint"), digits, [teacher], CPU))) == {AT_CHANCE}


def test_sample_is_bounded_and_the_same_on_every_cpu():
    assert sample.sample_size(50_000, 140e6, CPU) == sample.SAMPLE
    assert sample.sample_size(50_000, 2.85e9, CPU) == 116  # EfficientNetV2 at 224
    assert sample.sample_size(50_000, 4.65e9, CPU) == 71  # the paper's ensemble
    assert sample.sample_size(50_000, 1e12, CPU) == sample.LEAST
    assert sample.sample_size(50_000, 1e12, torch.device("cuda")) == sample.SAMPLE
    assert sample.sample_size(500, 140e6, CPU) == sample.LEAST
    assert sample.sample_size(30, 140e6, CPU) == 30


def test_sample_is_what_the_step_sees(digits, models, tmp_path):
    """The pixels are the student's own of epoch 0: cropped here by hand from the padded image."""
    job, teacher = job_of(), teacher_of(models[0], digits, tmp_path / "t")
    seen = sample.look(job, digits, [teacher], CPU)
    n = len(digits.train)
    view = views(n, 0, 0, job.recipe.augment)
    stream = order(n, 0, 0)
    assert len(seen.labels) == n // 8
    for k in (0, 1, len(seen.labels) - 1):
        image = stream[k * n // len(seen.labels)].item()
        dy, dx = divmod(view[image].item(), 5)
        padded = nn.functional.pad(digits.train.pixels[image], (0, 0, 2, 2, 2, 2))
        assert torch.equal(seen.pixels[k], padded[dy : dy + 32, dx : dx + 32])
        assert seen.labels[k] == digits.train.labels[image]


def test_a_teacher_whose_logits_leave_float16_is_judged_all_the_same(digits, models, tmp_path):
    """Eight steps from its start a deep network's logits can be in the millions: no entropy is NaN for it."""
    wild = copy.deepcopy(models[0])
    with torch.no_grad():
        [layer for layer in wild.modules() if isinstance(layer, nn.Linear)][-1].weight.mul_(1e8)
    for source in SOURCES:
        teacher = teacher_of(wild, digits, tmp_path / source)
        found = check.inspect(job_of(source), digits, [teacher], CPU)
        assert all(f.figure is None or math.isfinite(f.figure) for f in found)
        assert "near-one-hot" in warned(found)


@pytest.mark.parametrize(("epochs", "warned_of"), [(4, True), (24, True), (40, False), (200, False)])
def test_a_warm_up_that_is_long_for_the_training_is_named(epochs, warned_of):
    """DKD's authors warm up for 20 of 240 epochs. In a short training the teacher would hardly be heard."""
    found = check.warm_up(job_of("distill.kind=dkd", f"train.epochs={epochs}").recipe)
    assert (found.level == "warn") == warned_of and f"20 of {epochs} epochs" in found.message


def test_every_finding_has_a_subject_for_people_to_read():
    calls = [node for node in ast.walk(ast.parse(Path(check.__file__).read_text())) if isinstance(node, ast.Call)]
    makers = {"ok", "warn", "finding", "_none"}
    first = [call.args[0] for call in calls if getattr(call.func, "id", "") in makers]
    codes = {given.value for given in first if isinstance(given, ast.Constant)}
    assert codes == SUBJECTS.keys() and len(set(SUBJECTS.values())) == len(codes) > 8


def test_a_teacher_of_other_pictures_is_compared_with_nothing_and_its_classes_are_named(digits, models, tmp_path):
    """Two folders with as many images in each class have equal labels."""
    teacher = teacher_of(models[0], digits, tmp_path / "t")
    file = tmp_path / "t" / teacher.run.relative_to(tmp_path / "t") / "result.json"
    known = json.loads(file.read_text())
    edit(file, test=known["test"] | {"pixels": "0" * 64}, class_names=["cat", *digits.classes[1:]])
    np.savez(
        file.parent / "predictions.npz",
        logits=-teacher.model.eval()(torch.zeros(len(digits.test), 3, 32, 32)).numpy(),
        labels=digits.test.labels.numpy(),
    )
    found = warned(check.inspect(job_of(SOFT), digits, [teacher], CPU))
    assert set(found) == {"other-classes"} and "small" in found["other-classes"].message
    assert "(cat, 1, 2, 3, ...) than those of the data (0, 1, 2, 3, ...)" in found["other-classes"].message
    edit(file, test=known["test"] | {"pixels": digits.test.checksum})
    assert set(warned(check.inspect(job_of(SOFT), digits, [teacher], CPU))) == {"other-classes", "unlike-record"}
