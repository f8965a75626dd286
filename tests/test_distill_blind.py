"""The control of a taught run: each image gets the teachers' logits for another image of its class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import updates
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ghostcli.data.batches import normalise, views
from ghostcli.distill import teacher as teaching

CPU = torch.device("cpu")
BLIND = [way for way in updates.WAYS if way.startswith("blind")]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_partners_are_a_permutation_within_each_class_that_moves_everybody(labels, seed, epoch):
    given_labels = torch.tensor(labels)
    found = teaching.partners(given_labels, seed, epoch)
    assert sorted(found.tolist()) == list(range(len(labels)))
    assert torch.equal(given_labels[found], given_labels)
    for image, partner in enumerate(found.tolist()):
        assert (image == partner) == (labels.count(labels[image]) == 1)
    assert torch.equal(found, teaching.partners(given_labels, seed, epoch))


def test_partners_are_new_each_epoch_and_any_other_image_of_the_class_is_as_likely():
    labels = torch.tensor([0, 1] * 5)
    drawn = torch.stack([teaching.partners(labels, 3, epoch) for epoch in range(1500)])
    for other in (2, 4, 6, 8):
        share = (drawn[:, 0] == other).double().mean().item()
        assert abs(share - 1 / 4) < 5 * (3 / 16 / 1500) ** 0.5
    assert not torch.equal(drawn[0], teaching.partners(labels, 4, 0))


def by_hand(update, image: int, epoch: int) -> torch.Tensor:
    """The view of `image` in this epoch, cut here from the padded picture: [1, 32, 32, 3]."""
    augment, pixels = update.recipe.augment, update.images.pixels[image]
    view = views(updates.IMAGES, 0, epoch, augment)[image].item()
    flip, place = divmod(view, (2 * augment.pad + 1) ** 2)
    dy, dx = divmod(place, 2 * augment.pad + 1)
    edges = (0, 0, *[augment.pad] * 4)
    if augment.fill == "zeros":
        padded = functional.pad(pixels, edges)
    else:
        padded = functional.pad(pixels.permute(2, 0, 1)[None].float(), edges[2:], "reflect")[0].permute(1, 2, 0).byte()
    cut = padded[dy : dy + 32, dx : dx + 32]
    return (cut.flip(1) if flip else cut)[None]


@pytest.mark.parametrize("way", ["blind", "blind, live", "blind hints"])
def test_the_step_is_given_the_teachers_logits_for_the_partner_under_the_partners_own_view(way, tmp_path):
    _, update = updates.made(way, tmp_path, CPU)
    teacher = update.teacher_logits.teachers[0]
    for epoch in (0, 1):
        view = views(updates.IMAGES, 0, epoch, update.recipe.augment)
        update.start_epoch(epoch, view)
        index = torch.arange(updates.IMAGES)
        pixels = update.cropper.crop(index, view)
        given_logits, features = update.teacher_logits.of_batch(index, pixels)
        partners = teaching.partners(update.images.labels, 0, epoch)
        assert not torch.equal(partners, index)
        for image in range(updates.IMAGES):
            shown = by_hand(update, partners[image].item(), epoch)
            expected = teacher.model(normalise(shown, *teacher.norm))[0]
            torch.testing.assert_close(given_logits[0, image], expected, rtol=2e-3, atol=2e-3)
        assert (features is not None) == (way == "blind hints")


def test_a_blind_patch_is_cut_from_the_partners_picture(tmp_path):
    _, update = updates.made("blind patches", tmp_path / "a", CPU)
    _, seeing = updates.made("patches", tmp_path / "b", CPU)
    view = views(updates.IMAGES, 0, 0, update.recipe.augment)
    index = torch.arange(updates.IMAGES)
    for each in (update, seeing):
        each.start_epoch(0, view)
    pixels = update.cropper.crop(index, view)
    partners = teaching.partners(update.images.labels, 0, 0)
    expected = seeing.teacher_logits.of_batch(partners, pixels)[0]
    torch.testing.assert_close(update.teacher_logits.of_batch(index, pixels)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_blind_table_holds_what_a_seeing_one_holds(tmp_path):
    tables = []
    for way in ("from a table", "blind"):
        _, update = updates.made(way, tmp_path / "same", CPU)
        update.start_epoch(0, views(updates.IMAGES, 0, 0, update.recipe.augment))
        tables.append(update.teacher_logits.tables[0])
    assert tables[0].folder == tables[1].folder and tables[1].filled.sum() == updates.IMAGES


FEW = ("data.limit=60", "data.limit_test=40", "train.batch_size=20")
TINY = ["--epochs", "1", "--device", "cpu", "--data", "digits", *[word for key in FEW for word in ("-s", key)]]


def test_blind_teaching_through_the_command_line(ghost, tmp_path):
    runs = ["--runs", tmp_path / "runs"]
    pair = ["distill", "gns:0.2", "--student", "gns:0.1", *TINY, *runs, "--json"]
    seeing = json.loads(ghost(*pair).out)
    blind = json.loads(ghost(*pair, "-s", "distill.blind=true").out)
    assert blind["status"] == "done" and blind["run"] != seeing["run"] and blind["teachers"] == seeing["teachers"]
    found = {finding["code"]: finding for finding in json.loads(ghost("check", *pair, "-s", "distill.blind=true").out)}
    assert found["blind-teacher"]["level"] == "info" and found["blind-teacher"]["figure"] == 1
    assert "control" in found["blind-teacher"]["message"] and found["other-view"]["level"] == "ok"
    assert "blind-teacher" not in ghost("check", *pair).out
    shown = ghost("check", *[word for word in pair if word != "--json"], "-s", "distill.blind=true")
    assert "info" in shown.out and shown.code == 0


def test_only_the_last_student_of_a_chain_is_blind(ghost):
    chain = ["assist-chain", "resnet34", "resnet18", "--student", "gns:1.0", "--dry-run", "--json"]
    plans = [json.loads(ghost(*chain, *more).out) for more in ([], ["-s", "distill.blind=true"])]
    ids = [[row["run"] for row in rows] for rows in plans]
    assert ids[0][:2] == ids[1][:2] and ids[0][2] != ids[1][2]


def test_a_class_of_one_image_keeps_its_own(ghost, tmp_path: Path):
    pair = ["distill", "gns:0.2", "--student", "gns:0.1", *TINY, "-s", "data.limit=11", "--runs", tmp_path / "runs"]
    assert ghost(*pair).code == 0
    found = json.loads(ghost("check", *pair, "-s", "distill.blind=true", "--json").out)
    figure = next(finding["figure"] for finding in found if finding["code"] == "blind-teacher")
    assert figure < 1
