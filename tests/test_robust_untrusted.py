"""Checkpoints, weights and tables that are not what was written: refused by name, and the previous good one used."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
from pathlib import Path

import crash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ghostcli.distill import table
from ghostcli.distill.table import TeacherTable, describe
from ghostcli.errors import GhostError
from ghostcli.records import tensorfile
from ghostcli.zoo import weights

PLAIN = [*crash.COMMANDS["plain"], *crash.TINY, "--runs", "runs"]
MARK = Path(__file__).with_name("a-pickle-was-run")


class Payload:
    """Unpickling this leaves a mark."""

    def __reduce__(self):
        return Path.touch, (MARK,)


@pytest.fixture(autouse=True)
def nothing_is_unpickled():
    yield
    ran = MARK.exists()
    MARK.unlink(missing_ok=True)
    assert not ran, "the payload was run"


def torch_pickle(folder: Path) -> bytes:
    torch.save({"model": torch.zeros(3), "payload": Payload()}, folder / "pickle.pt")
    return (folder / "pickle.pt").read_bytes()


def flipped(content: bytes, at: float) -> bytes:
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


#: What may lie in the place of a file of ours: (its bytes, the folder for scratch) -> bytes.
IMPOSTORS = {
    "a pickle": lambda content, folder: pickle.dumps(Payload()),
    "a pickle of torch's": lambda content, folder: torch_pickle(folder),
    "nothing": lambda content, folder: b"",
    "its first half": lambda content, folder: content[: len(content) // 2],
    "all but its last byte": lambda content, folder: content[:-1],
    "itself and more": lambda content, folder: content + b"\0",
    "one bit of its header flipped": lambda content, folder: flipped(content, 0.01),
    "one bit of its tensors flipped": lambda content, folder: flipped(content, 0.9),
    "a foreign safetensors": lambda content, folder: save({"weight": torch.zeros(2, 2)}),
    "a foreign one with our entry": lambda content, folder: save({"weight": torch.zeros(2, 2)}, {"ghost": "{}"}),
    "a header without end": lambda content, folder: (2**62).to_bytes(8, "little") + content[8:],
    "a header of nested lists": lambda content, folder: (90_000).to_bytes(8, "little") + b"[" * 90_000,
    "text": lambda content, folder: b"once upon a time there was a network\n" * 9,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run with two checkpoints, killed in its second epoch. To be copied."""
    folder = tmp_path_factory.mktemp("killed")
    every = ("-s", "engine.checkpoint_minutes=1e-9")
    fault = {"GHOST_FAULT": "checkpoint:after@5=kill"}
    assert crash.server().run([*PLAIN, *every], folder, fault).code == -signal.SIGKILL
    assert sorted(file.name for file in folder.rglob("*.safetensors")) == ["last.safetensors", "previous.safetensors"]
    return folder / "runs"


def harm(runs: Path, *names: str, impostor: str) -> None:
    for name in names:
        (file,) = runs.rglob(name)
        file.write_bytes(IMPOSTORS[impostor](file.read_bytes(), runs.parent))


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_the_previous_checkpoint_takes_the_place_of_a_bad_one(killed, tmp_path, impostor):
    shutil.copytree(killed, tmp_path / "runs")
    harm(tmp_path / "runs", "last.safetensors", impostor=impostor)
    done = crash.server().run(PLAIN, tmp_path)
    assert done.code == 0, done.err
    assert "last.safetensors" in done.err and "refused" in done.err and "goes on after epoch 1, batch 1" in done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_a_run_without_a_good_checkpoint_is_refused(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "runs")
    harm(tmp_path / "runs", "last.safetensors", "previous.safetensors", impostor="a pickle")
    done = crash.server().run(PLAIN, tmp_path)
    assert done.code == 1 and "Traceback" not in done.err
    assert "last.safetensors: is damaged or not a file of ghost" in done.err and "--no-resume" in done.err
    assert crash.server().run([*PLAIN, "--no-resume"], tmp_path).code == 0
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


def test_a_checkpoint_of_another_run_or_network(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "runs")
    other = [*PLAIN[:1], "gns:0.15", *PLAIN[2:-1], "other"]
    assert crash.server().run(other, tmp_path).code == 0
    (foreign,) = tmp_path.glob("other/*/s0/checkpoint/last.safetensors")
    (last,) = tmp_path.glob("runs/*/s0/checkpoint/last.safetensors")
    _, mine = tensorfile.read(last)
    shutil.copy(foreign, last)
    done = crash.server().run(PLAIN, tmp_path, {"GHOST_FAULT": "checkpoint:before=kill"})
    assert "last.safetensors: belongs to another run; refused" in done.err and "goes on after epoch 1" in done.err
    tensors, _ = tensorfile.read(foreign)
    last.write_bytes(tensorfile.encode(tensors, mine))  # another network's tensors under this run's name
    done = crash.server().run(PLAIN, tmp_path)
    assert done.code == 0 and "last.safetensors: does not fit this network; refused" in done.err
    assert not crash.differences(crash.uninterrupted("plain")[0], tmp_path / "runs")


# Single files ----------------------------------------------------------------------------------------------------

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 2)}
META = {"epoch": 3, "best": {"validation": 12.5}, "metrics": [10, "ab"]}
WHOLE = tensorfile.encode(TENSORS, META)


def refused_or_identical(content: bytes, folder: Path) -> bool:
    """True where it was refused. What is read is otherwise what was written."""
    file = folder / "x.safetensors"
    file.write_bytes(content)
    try:
        tensors, meta = tensorfile.read(file)
    except GhostError as error:
        assert "x.safetensors" in str(error)
        return True
    assert meta == META and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    return False


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), mask=st.integers(1, 255))
def test_any_flipped_byte_is_refused_or_harmless(tmp_path_factory, place, mask):
    content = bytearray(WHOLE)
    content[place] ^= mask
    refused_or_identical(bytes(content), tmp_path_factory.getbasetemp())


def test_any_truncation_is_refused(tmp_path):
    assert not refused_or_identical(WHOLE, tmp_path)
    assert all(refused_or_identical(WHOLE[:length], tmp_path) for length in range(len(WHOLE)))


def test_every_bit_of_the_tensors_counts(tmp_path):
    start = 8 + int.from_bytes(WHOLE[:8], "little")
    assert len(WHOLE) - start == 6 * 4 + 8
    for bit in range(start * 8, len(WHOLE) * 8):
        content = bytearray(WHOLE)
        content[bit // 8] ^= 1 << bit % 8
        assert refused_or_identical(bytes(content), tmp_path)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=400), prefix=st.integers(0, len(WHOLE)))
def test_any_bytes_are_refused(tmp_path_factory, content, prefix):
    whole = WHOLE[:prefix] + content
    assert refused_or_identical(whole, tmp_path_factory.getbasetemp()) or whole == WHOLE


def test_equal_content_is_equal_bytes():
    assert tensorfile.encode(dict(reversed(TENSORS.items())), dict(reversed(META.items()))) == WHOLE


def test_an_enormous_file_is_refused_unread(tmp_path):
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.truncate(tensorfile.MAX_BYTES + 1)  # takes no room
    with pytest.raises(GhostError, match="refused without reading"):
        tensorfile.read(tmp_path / "x.safetensors")


# Weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> bytes:
    from ghostcli import zoo

    torch.manual_seed(0)
    return weights.encode(zoo.build("gns:0.1", 10), ((0.5,) * 3, (0.2,) * 3))


@pytest.fixture
def rewrite(network, tmp_path):
    """`rewrite(**META) -> Path`: whole weights whose metadata says something else."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(network)

    def changed(**meta) -> Path:
        tensors, old = tensorfile.read(file)
        file.write_bytes(tensorfile.encode(tensors, old | meta))
        return file

    return changed


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_weights_that_are_none(network, tmp_path, impostor):
    file = tmp_path / "model.safetensors"
    file.write_bytes(IMPOSTORS[impostor](network, tmp_path))
    with pytest.raises(GhostError, match=r"model\.safetensors"):
        weights.load(file)


@pytest.mark.parametrize(
    "meta",
    [
        *({"model": name} for name in ("gns:0.5", "gns:1e9", "gns:1e300", "resnet19", "run/x", "\x1b[2J", None)),
        *({"classes": count} for count in (100, 10**11, 10**30, -1, "many")),
        *({"form": "deploy"}, {"mean": ["x"]}, {"std": 3}),
    ],
    ids=str,
)
def test_weights_that_lie_about_themselves(rewrite, meta):
    with pytest.raises(GhostError, match=r"model\.safetensors") as error:
        weights.load(rewrite(**meta))
    assert str(error.value).isprintable()


def test_weights_of_another_class_count_or_network(rewrite):
    with pytest.raises(GhostError, match="for 10 classes, not 2"):
        weights.load(rewrite(), classes=2)
    with pytest.raises(GhostError, match=r"holds gns:0\.1, not gns:0\.5"):
        weights.load(rewrite(), model="gns:0.5")
    assert weights.load(rewrite(), classes=10, model="gns:0.1").name == "gns:0.1"


@pytest.mark.parametrize("impostor", ["a pickle of torch's", "one bit of its tensors flipped"])
def test_a_teacher_that_was_tampered_with_teaches_nobody(tmp_path, impostor):
    shutil.copytree(crash.teacher(), tmp_path / "runs")
    harm(tmp_path / "runs", "model.safetensors", impostor=impostor)
    done = crash.server().run([*crash.COMMANDS["kd"], *crash.TINY, "--runs", "runs"], tmp_path)
    assert done.code == 1 and "model.safetensors" in done.err and "refused" in done.err and "Traceback" not in done.err


# Tables ----------------------------------------------------------------------------------------------------------

VIEWS = describe("w", "d", images=6, classes=3, views={"pad": 0, "fill": "zeros", "count": 2})


def answer(index: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    return (10.0 * index + views)[:, None] + torch.arange(3)


def test_a_table_says_what_was_asked(tmp_path):
    views = np.array([0, 1, 0, 1, 0, 1])
    assert TeacherTable(tmp_path, VIEWS).fill(views, answer, 4) == 6
    table = TeacherTable(tmp_path, VIEWS)
    assert table.fill(views, answer, 4) == 0 and table.coverage() == 0.5
    expected = answer(torch.arange(6), torch.from_numpy(views))
    assert torch.equal(table.read(views).float(), expected)
    with pytest.raises(GhostError, match="missing"):
        table.read(1 - views)


def test_a_slow_teachers_answers_are_kept_batch_by_batch(tmp_path, monkeypatch):
    """A kill costs some seconds of asking and a batch, also where one look-up holds many minutes of it."""
    clock = [0.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: clock[0])

    def ask(index, views):
        if clock[0] >= 12:
            raise KeyboardInterrupt
        clock[0] += 3
        return torch.zeros(len(index), 3)

    meta = describe("w", "d", images=20, classes=3, views={"pad": 0, "fill": "zeros", "count": 2})
    with pytest.raises(KeyboardInterrupt):
        TeacherTable(tmp_path, meta).fill(np.zeros(20, np.int64), ask, 2)
    assert TeacherTable(tmp_path, meta).filled.sum() == 8  # four batches of two, committed at 6 s and at 12 s


@pytest.mark.parametrize("name", ["meta.json", "logits.f16", "filled.u8"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04."])
def test_a_table_that_is_none(tmp_path, name, content):
    folder = TeacherTable(tmp_path, VIEWS).folder
    (folder / name).write_bytes(content)
    with pytest.raises(GhostError, match=folder.name):
        TeacherTable(tmp_path, VIEWS)


def test_a_table_of_another_teacher(tmp_path):
    folder = TeacherTable(tmp_path, VIEWS).folder
    (folder / "meta.json").write_text(json.dumps(VIEWS | {"weights": "v"}))
    with pytest.raises(GhostError, match="of another teacher"):
        TeacherTable(tmp_path, VIEWS)


def test_a_journal_of_an_earlier_version_is_ignored(tmp_path):
    """It was written before the entries, which are now computed again."""
    folder = TeacherTable(tmp_path, VIEWS).folder
    (folder / "pending.npz").write_bytes(pickle.dumps(Payload()))
    table = TeacherTable(tmp_path, VIEWS)
    assert not table.filled.any() and table.fill(np.zeros(6, np.int64), answer, 4) == 6


@pytest.mark.parametrize("lost", [False, True])
def test_a_process_that_has_lost_a_table_marks_nothing_in_it(tmp_path, monkeypatch, lost):
    """Another machine took it over while this process was frozen between the values and the marks."""
    own = TeacherTable(tmp_path, VIEWS)
    before = own.filled.copy()

    def freeze(point):
        [held] = (own.folder / "table.lease").iterdir()
        if lost and point == "table:values":
            held.rename(held.with_name("f" * 32))

    monkeypatch.setattr(table, "passing", freeze)
    if not lost:
        assert own.fill(np.zeros(6, np.int64), answer, 4) == 6 and own.filled[:, 0].all()
        return
    with pytest.raises(GhostError, match="has taken this over"):
        own.fill(np.zeros(6, np.int64), answer, 4)
    assert (np.fromfile(own.folder / "filled.u8", np.uint8) == before.ravel()).all()


def test_a_table_is_not_written_through_a_link(tmp_path):
    (tmp_path / "away").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher-table").symlink_to(tmp_path / "away")
    with pytest.raises(GhostError, match="is a link"):
        TeacherTable(tmp_path / "run", VIEWS)
    assert not any((tmp_path / "away").iterdir())
