"""`ghost data inspect` and `split`: what is said of a folder, and a split that keeps equal pictures together."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(file: Path, seed: int, side: int = 40) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side + 7, side), Image.Resampling.NEAREST).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 cats and 5 dogs to learn from, 6 of each to test on, sound throughout."""
    counts = {("train", "cat"): 40, ("train", "dog"): 5, ("test", "cat"): 6, ("test", "dog"): 6}
    for i, ((part, name), count) in enumerate(counts.items()):
        for k in range(count):
            picture(tmp_path / "photos" / part / name / f"{k}.png", 1000 * i + k, 30 + k)
    return tmp_path / "photos"


def inspected(ghost, folder: Path) -> dict:
    done = ghost("data", "inspect", f"folder:{folder}", "--json")
    assert done.code == 0, done
    return json.loads(done.out)


def test_a_class_without_images_is_named_since_a_training_refuses_it(ghost, photos: Path) -> None:
    (photos / "train" / "empty").mkdir()
    found = inspected(ghost, photos)
    assert found["counts"]["train"] == {"cat": 40, "dog": 5, "empty": 0}
    assert any("No images in train/ for empty" in remark for remark in found["remarks"])
    assert not any("Uneven" in remark and "empty" in remark for remark in found["remarks"])
    assert ghost("train-teacher", "gns:0.1", "--data", f"folder:{photos}", "--epochs", "1").code == 2


def test_a_sound_folder_is_counted_and_its_command_runs(ghost, photos: Path, tmp_path, monkeypatch) -> None:
    found = inspected(ghost, photos)
    assert found["counts"] == {"train": {"cat": 40, "dog": 5}, "test": {"cat": 6, "dog": 6}}
    sides = sorted(30 + k for count in (40, 5, 6, 6) for k in range(count))
    assert found["sides"] == [30, sides[len(sides) // 2], 69]
    assert (found["broken"], found["shared"], found["contradictory"]) == ([], [], [])
    [uneven] = found["remarks"]
    assert "the largest has 40 training images; small ones are dog (5)" in uneven
    monkeypatch.chdir(tmp_path)
    planned = ghost(*shlex.split(found["command"])[1:], "--dry-run")
    assert planned.code == 0 and "gns-1.0-plain-" in planned.out and "data.size=32" in found["command"]
    said = ghost("data", "inspect", f"folder:{photos}").out
    assert ghost("data", "inspect", photos).out == said, "a folder needs no prefix where only folders are meant"
    assert "cat" in said and "shorter sides: 30 to 69 pixels" in said and "A first training" in said


def test_test_images_that_are_training_images_are_named_and_counted(ghost, photos: Path) -> None:
    Image.open(photos / "train/cat/3.png").save(photos / "test/cat/again.bmp")  # another file, the same picture
    (photos / "test/dog/copy.png").write_bytes((photos / "train/cat/4.png").read_bytes())
    found = inspected(ghost, photos)
    assert [[Path(file).name for file in group] for group in found["shared"]] == [
        ["3.png", "again.bmp"],
        ["4.png", "copy.png"],
    ]
    assert [len(group) for group in found["contradictory"]] == [2]
    said = ghost("data", "inspect", f"folder:{photos}").out
    assert "2 in both train and test: the accuracy will be too high:" in said and "again.bmp" in said
    assert "1 equal pictures in several classes:" in said


def test_broken_files_and_missing_parts_are_said_and_nothing_is_proposed(ghost, photos: Path, tmp_path: Path) -> None:
    (photos / "train/cat/bad\x1b[2J.png").write_text("no image")
    picture(photos / "train" / "bird" / "0.png", 9)
    found = inspected(ghost, photos)
    [[file, why]] = found["broken"]
    assert "\x1b" not in file and "not an image that can be read" in why
    assert any("Only train/ has bird" in remark for remark in found["remarks"]) and found["command"] is None
    picture(tmp_path / "one" / "cat" / "0.png", 1)
    remarks = inspected(ghost, tmp_path / "one")["remarks"]
    assert any("There is no test/" in remark for remark in remarks) and any("one class" in remark for remark in remarks)


def test_a_part_that_is_there_and_cannot_be_used_is_not_called_missing(ghost, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "linked" / "train").mkdir(parents=True)
    (tmp_path / "linked" / "test").mkdir()
    (tmp_path / "linked" / "train" / "cat").symlink_to(photos / "train" / "cat")
    remarks = " ".join(inspected(ghost, tmp_path / "linked")["remarks"])
    assert "There is no" not in remarks and "train/ has no class that can be used" in remarks
    shutil.rmtree(tmp_path / "linked" / "test")
    (tmp_path / "linked" / "val").mkdir()
    assert "val/ has no class" in " ".join(inspected(ghost, tmp_path / "linked")["remarks"])


def test_a_folder_is_walked_as_a_training_walks_it(ghost, photos: Path, tmp_path: Path) -> None:
    """Links were left out, within the folder and out of it: a training reads the first and stops at the others."""
    (photos / "train/dog/link.png").symlink_to("0.png")
    assert inspected(ghost, photos)["counts"]["train"] == {"cat": 40, "dog": 6}
    assert "45 training" not in ghost("data", "verify", f"folder:{photos}").out
    assert "46 training" in ghost("data", "verify", f"folder:{photos}").out
    picture(tmp_path / "outside.png", 1)
    (photos / "train/cat/secret.png").symlink_to(tmp_path / "outside.png")
    (photos / "train/cat/folder.png").mkdir()
    found = inspected(ghost, photos)
    assert [(Path(file).name, why.partition(":")[0]) for file, why in found["broken"]] == [
        ("secret.png", f"is a link that leads out of {photos}"),
        ("folder.png", "is named as an image but is not a file"),
    ]
    assert found["counts"]["train"]["cat"] == 40 and found["command"] is None


def test_a_split_is_stratified_repeatable_and_keeps_copies_together(ghost, tmp_path: Path) -> None:
    for name, count in (("cat", 20), ("dog", 10)):
        for k in range(count):
            picture(tmp_path / "all" / name / f"{k}.png", 100 * count + k)
    for k in range(5):
        (tmp_path / "all/cat" / f"copy{k}.png").write_bytes((tmp_path / "all/cat/0.png").read_bytes())
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        done = ghost("data", "split", f"folder:{tmp_path / 'all'}", "--out", out, "--seed", "3")
        assert done.code == 0 and "(seed 3)" in done.out, done
    names = [sorted(str(f.relative_to(out)) for f in out.rglob("*.png")) for out in outs]
    assert names[0] == names[1] and len(names[0]) == 35
    found = inspected(ghost, outs[0])
    assert found["shared"] == [] and found["counts"]["test"]["dog"] == 2
    assert 4 <= found["counts"]["test"]["cat"] <= 9
    again = ghost("data", "split", f"folder:{tmp_path / 'all'}", "--out", outs[0])
    assert again.code == 2 and "exists" in again.err
    twice = ghost("data", "split", f"folder:{outs[0]}", "--out", tmp_path / "c")
    assert twice.code == 2 and "already has a test part" in twice.err and not (tmp_path / "c").exists()


def test_a_split_refuses_files_that_cannot_be_read_and_pictures_in_two_classes(ghost, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        for k in range(4):
            picture(tmp_path / "all" / name / f"{k}.png", 100 * number + k)
    (tmp_path / "all/cat/bad.png").write_text("no image")
    command = ["data", "split", f"folder:{tmp_path / 'all'}", "--out", tmp_path / "out"]
    done = ghost(*command)
    assert done.code == 2 and "bad.png" in done.err and "remove it" in done.err and len(done.err.splitlines()) == 1
    for k in range(8):
        (tmp_path / f"all/cat/bad{k}.png").write_text("no image")
    assert "and 6 more (ghost data inspect lists them): cannot be read" in ghost(*command).err
    for file in (tmp_path / "all/cat").glob("bad*.png"):
        file.unlink()
    (tmp_path / "all/dog/a cat.png").write_bytes((tmp_path / "all/cat/2.png").read_bytes())
    done = ghost(*command)
    assert done.code == 2 and "cat/2.png" in done.err and "a cat.png" in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "all/dog/a cat.png").unlink()
    for k in range(3):
        picture(tmp_path / f"all/bird/{k}.png", 999)
    done = ghost(*command)
    assert done.code == 2 and "bird: has one picture in 3 equal files" in done.err, done.err
    picture(tmp_path / "all/bird/other.png", 998)
    (tmp_path / "all/cat/phone.heic").write_bytes(b"")
    done = ghost(*command)
    assert done.code == 0 and "Files of other kinds are not read: .heic (1)." in done.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "is not a folder"),
        ("folder:none", "there is no such folder here"),
        ("none", "there is no such folder"),
        ("folder:.", "holds no images"),
    ],
)
def test_bad_input(ghost, tmp_path, monkeypatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("inspect", name), ("split", name, "--out", "out")):
        done = ghost("data", *words)
        assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "tif", "ppm"])
def test_every_format_that_is_named_can_be_read(tmp_path: Path, suffix: str) -> None:
    """All but PNG and JPEG were called damaged: Pillow was asked for a format that it knows by no name."""
    from ghostcli.data.pictures import decode

    image = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((16, 16), np.uint8))
    Image.fromarray(np.stack([image] * 3, axis=-1)).save(tmp_path / f"image.{suffix}")
    found = decode(tmp_path / f"image.{suffix}", 32)
    assert np.abs(found.astype(int) - image[..., None]).max() <= 8


def test_what_is_transparent_is_white_and_what_is_opaque_keeps_its_bits(tmp_path: Path) -> None:
    """The colour under transparent pixels is whatever a drawing program left there."""
    from ghostcli.data.pictures import decode

    rgb = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    alpha = np.full((32, 32, 1), 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 51
    shown = rgb.astype(float) * (alpha / 255) + 255 * (1 - alpha / 255)
    cut = Image.fromarray(np.concatenate([rgb, alpha], axis=-1))
    cut.save(tmp_path / "cut.png")
    found = decode(tmp_path / "cut.png", 32)
    assert np.abs(found - shown).max() <= 1
    assert np.array_equal(found[16:], rgb[16:])
    cut.convert("LA").save(tmp_path / "grey.png")
    assert (decode(tmp_path / "grey.png", 32)[:8] == 255).all()
    palette = Image.fromarray(rgb).convert("P")
    opaque = np.asarray(palette.convert("RGB"))
    index = int(np.asarray(palette)[0, 0])
    hidden = np.asarray(palette) == index
    for name, more in (("opaque", {}), ("palette", {"transparency": index})):
        palette.save(tmp_path / f"{name}.png", **more)
        found = decode(tmp_path / f"{name}.png", 32)
        assert np.array_equal(found[~hidden], opaque[~hidden])
        assert (found[hidden] == (255 if more else opaque[hidden])).all()
    for mode in ("RGBA", "RGB"):
        Image.fromarray(rgb).convert(mode).save(tmp_path / "whole.png")
        assert np.array_equal(decode(tmp_path / "whole.png", 32), rgb)


def test_what_a_training_passes_over_is_named(ghost, tmp_path: Path) -> None:
    for i, part in enumerate(("train", "test", "val", "valid")):
        for j, name in enumerate(("cat", "dog")):
            picture(tmp_path / part / name / ("a.jfif" if part == "train" else "a.png"), 10 * i + j)
    for name in ("b.HEIC", "c.HEIC", "notes.txt", ".hidden"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    picture(tmp_path / "train" / "dog" / "2019" / "old.png", 99)
    said = ghost("data", "inspect", tmp_path).out
    assert "Not used: val/, valid/. A training reads train/ and test/" in said
    assert "Files of other kinds are not read: .heic (2), .txt (1)." in said
    assert "Pictures in folders inside a class are not read: 1, as in" in said and "2019" in said
    assert json.loads(ghost("data", "inspect", tmp_path, "--json").out)["counts"]["train"] == {"cat": 1, "dog": 1}


def test_a_split_is_there_once_it_is_whole(ghost, tmp_path: Path, monkeypatch) -> None:
    for name in ("cat", "dog"):
        for i in range(4):
            picture(tmp_path / "flat" / name / f"{i}.png", 10 * i + len(name) + (name == "dog"))
    real, copied = shutil.copyfile, []

    def fail_later(source, target):
        copied.append(target)
        if len(copied) == 3:
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", fail_later)
    told = ghost("data", "split", tmp_path / "flat", "--out", tmp_path / "made")
    assert told.code == 1 and "No space left" in told.err and [p.name for p in tmp_path.iterdir()] == ["flat"]
    told = ghost("data", "split", tmp_path / "flat", "--out", tmp_path / "flat" / "made")
    assert told.code == 2 and "is in the folder that is split" in told.err
    monkeypatch.setattr(shutil, "copyfile", real)
    assert ghost("data", "split", tmp_path / "flat", "--out", tmp_path / "made").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flat", "made"]


def test_verify_names_every_bad_file_of_a_folder(ghost, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / part / name / "a.png", len(part + name))
    bad = [tmp_path / "train" / "cat" / "b.png", tmp_path / "test" / "dog" / "b.png"]
    for file in bad:
        file.write_bytes(b"no picture")
    done = ghost("data", "verify", f"folder:{tmp_path}", "--json")
    found = json.loads(done.out)
    assert done.code == 2 and not found["ok"] and {row["file"] for row in found["files"]} == set(map(str, bad))
