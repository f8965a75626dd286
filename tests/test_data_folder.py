"""A person's own folder of images: what is read, and everything that is refused by name."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps
from torchvision.transforms import functional as F

from ghostcli.data import load
from ghostcli.data.folder import read_folder
from ghostcli.data.pictures import decode
from ghostcli.errors import UsageError
from ghostcli.recipe.models import DataSection


def picture(path: Path, seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes, 3 + 2 training images and 1 + 1 test images, already of the asked size."""
    for i, name in enumerate(("cat/b.png", "cat/a.png", "cat/c.png", "dog/a.png", "dog/z.PNG")):
        picture(tmp_path / "pets/train" / name, i)
    for i, name in enumerate(("cat/a.png", "dog/a.png")):
        picture(tmp_path / "pets/test" / name, 10 + i)
    return tmp_path / "pets"


def read(folder: Path, **keys):
    return load(DataSection(name=f"folder:{folder}", **{"size": 16, **keys}))


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(UsageError) as error:
        read(folder)
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    for word in words:
        assert word in message, message
    return message


# ---- what is read


def test_images_of_the_asked_size_are_read_bit_for_bit(pets):
    data = read(pets)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0]  # classes take turns: a limit keeps all of them
    files = ("cat/a.png", "dog/a.png", "cat/b.png", "dog/z.PNG", "cat/c.png")
    expected = [np.asarray(Image.open(pets / "train" / file)) for file in files]
    assert np.array_equal(data.train.pixels.numpy(), np.stack(expected))
    assert data.test.labels.tolist() == [0, 1]
    pixels = data.train.pixels.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())


def test_val_stands_in_for_test(pets):
    (pets / "test").rename(pets / "val")
    assert len(read(pets).test) == 2


def test_limits_and_validation_work_as_elsewhere(pets):
    data = read(pets, limit=4, validation=2, limit_test=1)
    assert sorted(data.train.labels.tolist()) == sorted(data.validation.labels.tolist()) == [0, 1]
    assert len(data.test) == 1


@pytest.mark.parametrize("size", [(48, 20), (20, 48), (300, 200), (9, 16)])
def test_other_sizes_are_scaled_and_cut_about_the_centre(pets, size):
    """torchvision's resize of the shorter side and centre crop, but for rounding of the scaled longer side."""
    smooth = np.add.outer(np.linspace(0, 200, size[1]), np.linspace(0, 55, size[0])).astype(np.uint8)
    Image.fromarray(smooth).convert("RGB").save(pets / "train/cat/a.png")
    ours = read(pets).train.pixels[0].permute(2, 0, 1).int()
    theirs = F.center_crop(F.resize(Image.fromarray(smooth).convert("RGB"), 16), [16, 16])
    theirs = torch.from_numpy(np.asarray(theirs).copy()).permute(2, 0, 1).int()
    assert ours.shape == (3, 16, 16)
    assert (ours - theirs).abs().max() <= 8
    assert (ours - theirs).abs().double().mean() < 4


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_other_colour_modes_become_rgb(pets, mode):
    picture(pets / "train/cat/a.png", 0, mode=mode)
    with Image.open(pets / "train/cat/a.png") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read(pets).train.pixels[0].numpy(), expected)


def test_hidden_files_other_files_and_links_within_are_no_trouble(pets):
    (pets / "train/.ipynb_checkpoints").mkdir()
    (pets / "train/cat/.DS_Store").write_bytes(b"x")
    (pets / "train/cat/notes.txt").write_text("x")
    (pets / "train/README").write_text("x")
    os.symlink("a.png", pets / "train/cat/d.png")
    data = read(pets)
    assert len(data.train) == 6
    assert data.classes == ("cat", "dog")


def test_the_checksum_follows_the_pixels_not_the_place(pets, tmp_path):
    first = read(pets).checksum
    shutil.copytree(pets, tmp_path / "copy")
    assert read(tmp_path / "copy").checksum == first
    picture(tmp_path / "copy/train/dog/a.png", 77)
    assert read(tmp_path / "copy").checksum != first


def test_control_characters_in_a_class_name_are_escaped(pets):
    for part in ("train", "test"):
        (pets / part / "cat").rename(pets / part / "c\x1b[31mat")
    assert read(pets).classes == ("c\\x1b[31mat", "dog")


# ---- what is refused


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such folder", "train/")
    for name in ("no\x07where", "nul\0"):
        with pytest.raises(UsageError, match=r"no such folder") as error:
            read_folder(tmp_path / name, size=16)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("parts", "missing"), [(["train"], "test/ (or val/)"), (["test"], "train/"), ([], "train/ and test/")]
)
def test_missing_parts(tmp_path, parts, missing):
    for part in parts:
        (tmp_path / part).mkdir()
    refused(tmp_path, f"has no {missing}")


def test_no_images(tmp_path):
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "readme.txt").write_text("x")
    refused(tmp_path, "train", "no images", ".png")


def test_an_empty_class(pets):
    (pets / "train/emu").mkdir()
    refused(pets, "train", "no images in 'emu'")


def test_one_class(pets):
    for part in ("train", "test"):
        shutil.rmtree(pets / part / "dog")
    refused(pets, "only one class, 'cat'")


def test_classes_that_differ(pets):
    picture(pets / "train/emu/a.png", 5)
    refused(pets, "same classes", "only train/ holds 'emu'")
    for name in ("emu", "fox", "gnu", "hen", "ibis"):
        picture(pets / "test" / name / "a.png", 5)
    refused(pets, "only test/ holds 'fox', 'gnu', 'hen' and 1 more")


def test_a_corrupt_image_is_named(pets):
    (pets / "train/dog/a.png").write_bytes(b"not an image")
    refused(pets, "train/dog/a.png", "damaged")


def test_a_truncated_image_is_named(pets):
    whole = (pets / "test/dog/a.png").read_bytes()
    (pets / "test/dog/a.png").write_bytes(whole[: len(whole) // 2])
    refused(pets, "test/dog/a.png", "cut short")
    (pets / "test/dog/a.png").write_bytes(b"")
    refused(pets, "test/dog/a.png", "cut short")


def test_any_flipped_byte_is_read_or_refused_by_name(pets):
    """PNG's own checksums catch what its decoder would not: never a traceback."""
    whole = (pets / "train/dog/a.png").read_bytes()
    seen = set()
    for place in range(0, len(whole), 23):
        (pets / "train/dog/a.png").write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        try:
            read(pets)
            seen.add("read")
        except UsageError as error:
            assert "train/dog/a.png" in str(error)
            seen.add("refused")
    assert "refused" in seen


def test_an_unreadable_image_is_named(pets, monkeypatch):
    opened = Image.open

    def denied(path, *args, **keys):
        if Path(path).name == "z.PNG":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **keys)

    monkeypatch.setattr(Image, "open", denied)
    refused(pets, "dog/z.PNG", "cannot be read (Permission denied)")


def test_an_unreadable_class_folder_is_named(pets, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(pets, "train/dog", "cannot be read (Permission denied)")


@pytest.mark.parametrize("what", ["file", "class", "part"])
def test_links_that_lead_out_are_refused(pets, tmp_path, what):
    picture(tmp_path / "outside/cat/secret.png", 3)
    if what == "file":
        os.symlink(tmp_path / "outside/cat/secret.png", pets / "train/cat/x.png")
        refused(pets, "train/cat/x.png", "leads out")
    elif what == "class":
        os.symlink("../../outside/cat", pets / "train/emu")
        refused(pets, "train/emu", "leads out")
    else:
        shutil.rmtree(pets / "test")
        os.symlink(tmp_path / "outside", pets / "test")
        refused(pets, "pets/test", "leads out")


def test_what_is_named_as_an_image_but_is_no_file_is_refused(pets):
    os.mkfifo(pets / "train/cat/x.png")
    refused(pets, "train/cat/x.png", "not a file")
    (pets / "train/cat/x.png").unlink()
    os.symlink("x.png", pets / "train/cat/x.png")
    refused(pets, "train/cat/x.png", "not a file")


def test_the_folder_itself_may_be_a_link(pets, tmp_path):
    os.symlink(pets, tmp_path / "link")
    assert read(tmp_path / "link").checksum == read(pets).checksum


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 40_000])  # Pillow warns of the first and raises for the second
def test_decompression_bombs_are_refused(pets, side):
    (pets / "train/cat/a.png").write_bytes(png_that_claims(side, side))
    refused(pets, "train/cat/a.png", "too many pixels")


def test_sixteen_bit_images_are_refused_rather_than_clipped(pets):
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(pets / "train/cat/a.png")
    refused(pets, "train/cat/a.png", "8 bits")


def test_a_postscript_file_never_reaches_ghostscript(pets, monkeypatch):
    reached = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: reached.append("called"))
    (pets / "train/cat/a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n")
    refused(pets, "train/cat/a.png", "not an image")
    assert not reached


def test_a_file_name_cannot_drive_the_terminal(pets):
    (pets / "train/cat/\x1b]0;owned\x07.png").write_bytes(b"junk")
    assert "\\x1b]0;owned\\x07.png" in refused(pets)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_with_an_odd_tag_is_turned_upright_all_the_same(tmp_path: Path, turn: int) -> None:
    """Pillow's own way writes all tags again, and fails at a resolution in letters, which it reads."""
    orientation, resolution = struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0), struct.pack("<HHI4s", 0x011A, 2, 3, b"72")
    shown = Image.new("RGB", (40, 30), (200, 0, 0))
    shown.paste((0, 0, 200), (0, 0, 20, 10))
    for name, tags in (("plain", [orientation]), ("odd", [orientation, resolution])):
        head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags))
        shown.save(tmp_path / f"{name}.png", exif=head + b"".join(tags) + struct.pack("<I", 0))
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "odd.png") as odd:
        expected = np.asarray(ImageOps.fit(ImageOps.exif_transpose(plain), (16, 16), Image.Resampling.BILINEAR))
        if turn > 1:
            with pytest.raises(TypeError):
                ImageOps.exif_transpose(odd)
    for name in ("plain", "odd"):
        np.testing.assert_array_equal(decode(tmp_path / f"{name}.png", 16), expected)
    tags = Image.Exif()
    tags[0x0112] = turn
    shown.save(tmp_path / "turned.tif", exif=tags)  # Pillow turns it when it reads the pixels
    np.testing.assert_array_equal(decode(tmp_path / "turned.tif", 16), expected)
