"""CIFAR's archives: fetched from a local server, damaged in every way, and read by an unpickler that trusts nothing."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from ghostcli.data import _statistics, data_root, load
from ghostcli.data.cifar import Archive, _Unpickler, fetch, read, state
from ghostcli.errors import UsageError
from ghostcli.recipe.models import DataSection

NAMES = {"cifar10": ("cifar-10-batches-py", "batches.meta"), "cifar100": ("cifar-100-python", "meta")}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def batch(name: str, first: int, images: int) -> bytes:
    """A batch file in CIFAR's shape: image i of the set is filled with i in red, i + 1 in green, its row in blue."""
    classes = 10 if name == "cifar10" else 100
    numbers = np.arange(first, first + images)
    planes = np.zeros((images, 3, 32, 32), np.uint8)
    planes[:, 0], planes[:, 1] = (numbers % 256)[:, None, None], ((numbers + 1) % 256)[:, None, None]
    planes[:, 2] = np.arange(32)[:, None]
    held = {"data": planes.reshape(images, 3072), "batch_label": "a batch", "filenames": ["x.png"] * images}
    labels = (numbers % classes).tolist()
    held |= {"labels": labels} if name == "cifar10" else {"fine_labels": labels, "coarse_labels": [0] * images}
    return pickle.dumps(held, protocol=4)


def meta(name: str) -> bytes:
    if name == "cifar10":
        return pickle.dumps({"label_names": [f"class {c}" for c in range(10)], "num_vis": 3072})
    return pickle.dumps({"fine_label_names": [f"class {c}" for c in range(100)], "coarse_label_names": ["x"] * 20})


def publish(name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The packed archive of these files, and torchvision's class changed to hold their checksums."""
    folder, meta_file = NAMES[name]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member, content in {**files, "readme.html": b"not wanted"}.items():
            info = tarfile.TarInfo(f"{folder}/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        escape = tarfile.TarInfo("../escaped")
        escape.size = 1
        tar.addfile(escape, io.BytesIO(b"x"))
    source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    sums = [[file, md5(content)] for file, content in files.items()]
    monkeypatch.setattr(source, "train_list", [entry for entry in sums if entry[0].startswith(("data_batch", "train"))])
    monkeypatch.setattr(source, "test_list", [entry for entry in sums if entry[0].startswith("test")])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(files[meta_file])})
    monkeypatch.setattr(source, "tgz_md5", md5(packed.getvalue()))
    return packed.getvalue()


def files_of(name: str) -> dict[str, bytes]:
    if name == "cifar100":
        return {"train": batch(name, 0, 300), "test": batch(name, 300, 100), "meta": meta(name)}
    batches = {f"data_batch_{b}": batch(name, 40 * (b - 1), 40) for b in range(1, 6)}
    return {**batches, "test_batch": batch(name, 200, 30), "batches.meta": meta(name)}


class Server:
    """Serves one body over HTTP; `promise` more bytes than are sent is a connection that breaks."""

    def __init__(self) -> None:
        self.body, self.promise, self.requests = b"", 0, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(200 if outer.body else 404)
                self.send_header("Content-Length", str(len(outer.body) + outer.promise))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    served = Server()
    monkeypatch.setenv("no_proxy", "*")
    for source in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        monkeypatch.setattr(source, "url", f"http://127.0.0.1:{served.http.server_port}/{source.filename}")
    yield served
    served.http.shutdown()
    served.http.server_close()


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request) -> str:
    return request.param


@pytest.fixture
def published(name, server, monkeypatch) -> bytes:
    server.body = publish(name, files_of(name), monkeypatch)
    return server.body


def refused(name: str, root: Path, *words: str) -> str:
    with pytest.raises(UsageError) as error:
        load(DataSection(name=name), root)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# ---- the happy way


def test_first_use_fetches_checks_unpacks_and_reads(name, published, server, tmp_path, capfd):
    root = tmp_path / "a" / "data"
    data = load(DataSection(name=name), root)
    train, test = (200, 30) if name == "cifar10" else (300, 100)
    classes = 10 if name == "cifar10" else 100
    assert (len(data.train), len(data.test), len(data.classes)) == (train, test, classes)
    assert data.classes[3] == "class 3"
    assert data.train.labels.tolist() == [i % classes for i in range(train)]
    for i in (0, 41, train - 1):
        red, green, blue = data.train.pixels[i].unbind(-1)
        assert (red == i % 256).all()
        assert (green == (i + 1) % 256).all()
        assert torch.equal(blue, torch.arange(32, dtype=torch.uint8)[:, None].expand(32, 32))
    folder, packed = Archive(name, root).folder.name, Archive(name, root).filename
    assert everything(root) == sorted([packed, folder, *(f"{folder}/{file}" for file in files_of(name))])
    assert not (tmp_path / "a" / "escaped").exists()
    out, err = capfd.readouterr()
    assert out == ""
    assert f"fetching http://127.0.0.1:{server.http.server_port}/{packed}" in err

    again = load(DataSection(name=name), root)
    assert server.requests == 1
    assert again.checksum == data.checksum


def test_a_packed_archive_put_there_by_hand_is_unpacked(name, published, server, tmp_path):
    (tmp_path / Archive(name, tmp_path).filename).write_bytes(published)
    assert state(name, tmp_path) == "packed"
    load(DataSection(name=name), tmp_path)
    assert state(name, tmp_path) == "ready"
    assert server.requests == 0


def test_statistics_are_the_published_ones(name, published, tmp_path):
    data = load(DataSection(name=name), tmp_path)
    if name == "cifar10":
        assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    else:
        assert (data.mean, data.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def test_reading_writes_nothing(name, published, tmp_path):
    fetch(name, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} | {tmp_path: tmp_path.stat().st_mtime_ns}
    load(DataSection(name=name), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), tmp_path]} == before


# ---- what goes wrong while fetching


def test_no_network_says_where_to_put_the_files(name, published, server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    root = tmp_path / "data"
    source = Archive(name, tmp_path)
    refused(name, root, "cannot fetch", "refused", source.filename, source.md5, f"{root}/", "GHOST_DATA")
    assert not root.exists()


def test_a_file_that_is_not_on_the_server(name, published, server, tmp_path):
    server.body = b""
    refused(name, tmp_path / "data", "Not Found", Archive(name, tmp_path).filename)
    assert everything(tmp_path) == []


def test_a_connection_that_breaks_leaves_nothing(name, published, server, tmp_path):
    server.body, server.promise = published[: len(published) // 2], len(published) // 2
    refused(name, tmp_path, Archive(name, tmp_path).filename, Archive(name, tmp_path).md5)
    assert everything(tmp_path) == []
    server.body, server.promise = published, 0
    load(DataSection(name=name), tmp_path)


def test_a_page_that_is_not_the_archive_is_not_kept(name, published, server, tmp_path):
    server.body = b"<html>please log in</html>"
    refused(name, tmp_path, "not the published archive", "26 bytes", Archive(name, tmp_path).md5)
    assert everything(tmp_path) == []


def test_a_root_that_cannot_be_written(name, published, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(name, tmp_path / "file", "cannot be written", Archive(name, tmp_path).filename)
    refused(name, tmp_path / "file" / "below", "cannot be written")
    assert (tmp_path / "file").read_text() == "x"


def test_a_full_disk_is_named_and_leaves_nothing(name, published, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    refused(name, tmp_path, "No space left on device")
    assert everything(tmp_path) == []


# ---- what is damaged on disk


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_half_downloaded_archive_is_named_and_mended_by_fetch(name, published, server, tmp_path, keep):
    packed = tmp_path / Archive(name, tmp_path).filename
    packed.write_bytes(published[: int(keep * len(published))])
    refused(name, tmp_path, str(packed), "cut short", Archive(name, tmp_path).md5, f"`ghost data fetch {name}`")
    assert everything(tmp_path) == [packed.name]
    assert server.requests == 0
    fetch(name, tmp_path)
    assert packed.read_bytes() == published
    load(DataSection(name=name), tmp_path)


def test_a_failed_fetch_keeps_the_damaged_archive(name, published, server, tmp_path):
    packed = tmp_path / Archive(name, tmp_path).filename
    packed.write_bytes(b"half")
    server.body = b""
    with pytest.raises(UsageError, match="Not Found"):
        fetch(name, tmp_path)
    assert everything(tmp_path) == [packed.name]
    assert packed.read_bytes() == b"half"


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "longer", "missing", "folder"])
def test_a_damaged_file_is_named_and_mended_by_fetch(name, published, server, tmp_path, damage):
    source = Archive(name, tmp_path)
    fetch(name, tmp_path)
    for file in source.files:
        path = tmp_path / source.folder / file
        whole = path.read_bytes()
        path.unlink()
        if damage == "truncated":
            path.write_bytes(whole[:-1])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "flipped":
            path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        elif damage == "longer":
            path.write_bytes(whole + b"\0")
        elif damage == "folder":
            path.mkdir()
        word = {"missing": "is missing", "folder": "directory"}.get(damage, "damaged or cut short")
        refused(name, tmp_path, str(path), word)
        if damage == "folder":
            path.rmdir()
        fetch(name, tmp_path)
        assert path.read_bytes() == whole
    assert server.requests == 1  # mended from the archive that is there


# ---- what must never be unpickled


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_payload_is_not_even_unpickled_where_the_checksum_is_wrong(published, name, tmp_path, monkeypatch):
    source = Archive(name, tmp_path)
    fetch(name, tmp_path)
    monkeypatch.setattr(_Unpickler, "load", lambda _: pytest.fail("unpickled"))
    for file in source.files:
        (tmp_path / source.folder / file).write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    with pytest.raises(UsageError, match="damaged"):
        read(name, tmp_path)


@pytest.mark.parametrize("where", ["train", "test", "meta"])
def test_a_payload_with_the_right_checksum_is_refused_by_name(where, tmp_path, server, monkeypatch):
    files = files_of("cifar100") | {where: pickle.dumps({"data": Payload(tmp_path / "owned")})}
    server.body = publish("cifar100", files, monkeypatch)
    refused("cifar100", tmp_path, f"cifar-100-python/{where}", "refused", f"{os.system.__module__}.system")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "thing",
    [eval, getattr, type, bytearray(b"x"), {1, 2}, np.float64, np.load, torch.zeros(1), Path("x")],
    ids=lambda thing: type(thing).__name__ if not callable(thing) else thing.__name__,
)
def test_the_unpickler_admits_no_other_name(thing):
    for protocol in (2, 4):
        try:
            content = pickle.dumps(thing, protocol=protocol)
        except pickle.PicklingError:
            continue
        if protocol == 4 and isinstance(thing, set):
            continue  # a set is a container of its own from protocol 4 on, and holds no name
        with pytest.raises(pickle.UnpicklingError, match="it contains"):
            _Unpickler(io.BytesIO(content), encoding="latin1").load()


def test_the_unpickler_reads_what_cifar_holds():
    held = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2], "batch_label": "x", "n": b"y"}
    read = _Unpickler(io.BytesIO(pickle.dumps(held, protocol=4)), encoding="latin1").load()
    assert np.array_equal(read.pop("data"), held.pop("data"))
    assert read == held


# ---- the real thing


def needs_real() -> pytest.MarkDecorator:
    there = state("cifar10", data_root()) == "ready"
    return pytest.mark.skipif(not there, reason=f"needs the real CIFAR-10 under {data_root()}/")


REAL_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.real
@needs_real()
def test_the_real_cifar10():
    data = load(DataSection(name="cifar10", validation=5000))
    assert data.classes == REAL_CLASSES
    assert torch.bincount(data.train.labels).tolist() == [4500] * 10
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


@pytest.mark.real
@needs_real()
def test_the_real_cifar10_is_what_torchvision_reads():
    data = load(DataSection(name="cifar10"))
    for ours, train in ((data.train, True), (data.test, False)):
        theirs = torchvision.datasets.CIFAR10(data_root(), train=train)
        assert np.array_equal(ours.pixels.numpy(), theirs.data)
        assert ours.labels.tolist() == theirs.targets
    assert data.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    measured, _ = _statistics(data.train)
    assert measured == pytest.approx(data.mean, abs=1e-4)
