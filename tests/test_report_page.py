"""`ghost report`: one page that fetches nothing, holds what the records hold, and runs nobody's script but its own."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_runs import edit, replace_predictions, study, write_run
from test_compare_tables import admitted

from ghostcli.comparison import tables
from ghostcli.records import record
from ghostcli.render import text_table
from ghostcli.report import charts

VOID = {"meta", "br", "img", "input", "hr", "link"}
#: Every element that the page's own template and charts write.
OWN = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "footer", "script", "div", "p"),
    *("h1", "h2", "h3", "figure", "figcaption", "ul", "li", "i", "b", "small", "span", "a", "code", "img", "progress"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details", "summary"),
    *("svg", "g", "line", "polyline", "polygon", "circle", "rect", "text"),
}


class Page(HTMLParser):
    """The elements of a page with their attributes, its visible text, and whether its tags are nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: dict[str, list[str]] = {"script": [], "style": []}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        self.scripts.get(inside, self.texts).append(data)

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            a for t, a in self.elements if t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading CIFAR-10 takes seconds, and these tests need none of it."""
    monkeypatch.setenv("GHOST_DATA", str(tmp_path / "no images"))


def made(ghost, tmp_path: Path, *arguments: object) -> Page:
    file = tmp_path / "page.html"
    done = ghost("report", *arguments, "--out", file)
    assert (done.code, done.out) == (0, f"{file}\n"), done
    return Page(file.read_text())


def test_a_study_has_the_cells_of_its_tables_and_every_run(ghost, runs: Path, tmp_path: Path) -> None:
    page = made(ghost, tmp_path, "--runs", runs)
    shown = [text_table.results(table) for table in tables.judged(tables.every(admitted(runs))) if table.filled]
    for cell in {line.get(c.key, "") for table in shown for line in table.rows for c in table.columns}:
        assert cell in page.text, cell
    assert all(run.id in page.text for run in record.scan(runs))
    assert "GN-S 1.0x taught by ResNet-50" in page.text and "teaching helped: +1.80 points, 95 % interval" in page.text
    assert "3 seeds, for this teacher" in page.text
    assert "non-finite" in page.text and "other protocol (2,000 images × 2 epochs)" in page.text
    counts = Counter(" ".join(a["class"].split()[:2]) for a in page.of("svg") if a.get("class"))
    assert counts["chart lines"] == 4 and counts["chart"] == 2 and counts["row"] == 6 + 5  # rows, scales


def test_a_run_on_each_side_without_an_interval_is_told_apart_by_nothing(ghost, tmp_path: Path) -> None:
    """Tested on different images, so that no test compares them; nothing was looked at, either."""
    write_run(tmp_path, "gns:1.0", test_images=1000)
    write_run(tmp_path, "gns:1.0", "kd", ("vgg13",), test_images=500)
    assert "not distinguished, because one side has one run" in " ".join(
        made(ghost, tmp_path, "--runs", tmp_path).texts
    )
    assert not (tmp_path / ".looks.json").exists()


def test_it_fetches_nothing_and_every_link_leads_somewhere(ghost, runs: Path, tmp_path: Path) -> None:
    page = made(ghost, tmp_path, "--runs", runs)
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert tag in OWN, tag
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")}
        assert attributes.get("src", "data:").startswith("data:")
        target = attributes.get("href", "#")
        assert target.startswith("#") and (target == "#" or target[1:] in ids)
    assert len(page.of("a")) > 20
    assert not re.search(r"@import|url\(", "".join(page.scripts["style"]))


def test_its_policy_lets_its_own_script_run_and_no_other(ghost, runs: Path, tmp_path: Path) -> None:
    page = made(ghost, tmp_path, "--runs", runs)
    [policy] = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "connect-src" not in policy
    for tag in ("script", "style"):
        [text] = page.scripts[tag]
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x1b[2J\x00{{ 7*7 }}"


def test_names_with_markup_and_control_characters_are_text(ghost, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    check = [{"code": HOSTILE, "level": "warn", "message": HOSTILE}]
    notes = {"check": check, "notes": [HOSTILE], "command": [HOSTILE]}
    teacher = write_run(runs, "resnet18", environment={"device": HOSTILE, "commit": HOSTILE})
    common = {"data": f"folder:{HOSTILE[:48]}", "recipe_name": HOSTILE}
    write_run(runs, "gns:1.0", environment={"device": HOSTILE}, **common)
    taught = write_run(runs, "gns:1.0", "kd", ("resnet18",), teacher_runs=(teacher,), **common)
    edit(runs / taught / "result.json", agreement={HOSTILE: 50.0}, **notes)
    (runs / taught / "recipe.json").unlink()
    write_run(runs, "gns:1.0", seed=5, status="failed", error=HOSTILE, **common)
    write_run(runs, "gns:1.0", seed=6, status="interrupted", epochs=3, **common)
    for arguments in ((), (taught,)):
        page = made(ghost, tmp_path, *arguments, "--runs", runs)
        assert {tag for tag, _ in page.elements} <= OWN
        assert len(page.of("script")) == 1 and not any("onerror" in a for _, a in page.elements)
        assert "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\\x1b[2J\\x00{{ 7*7 }}" in page.text
        written = (tmp_path / "page.html").read_text()
        assert not {c for c in written if ord(c) < 32 and c != "\n"}


def test_a_run_has_its_curves_its_errors_and_its_recipe(ghost, runs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GHOST_DATA", str(tmp_path / "nowhere"))
    [run, *_] = [
        r for r in record.scan(runs) if r.status == "done" and r.result.path == ("resnet50",) and r.result.check
    ]
    page = made(ghost, tmp_path, run.id, "--runs", runs)
    logits, labels = run.predictions()
    said = logits.argmax(axis=1)
    told = {a["data-tip"] for a in page.of("rect") if a.get("data-tip", "").count("taken for")}
    cat, dog = 3, 5
    n = int(np.sum((labels == cat) & (said == dog)))
    assert f"cat, taken for dog: {n} of 100 ({n / 100:.1%})" in told
    assert len(told) == len(set(zip(labels.tolist(), said.tolist(), strict=True)))
    [line] = [a for a in page.of("polyline", **{"data-name": "test"})][:1]
    values = [row["test"]["accuracy"] for row in run.metrics()]
    assert [float(v) for v in line["data-values"].split()] == pytest.approx(values, rel=1e-3)
    assert f"{run.result.accuracy.selected:.2f} %" in page.text and "softness of targets" in page.text
    assert "Nothing differs from the recipe that its family ships" in page.text and "train.batch_size" in page.text
    assert "Not shown: the images of cifar10 are not on this machine" in page.text


def test_the_hardest_images_are_those_with_the_least_probable_truth(ghost, tmp_path: Path) -> None:
    from PIL import Image

    from ghostcli.data import load
    from ghostcli.recipe.models import DataSection

    data = load(DataSection(name="digits"))
    labels = data.test.labels.numpy()
    run = write_run(tmp_path / "runs", data="digits", data_checksum=data.checksum, test_images=len(labels), epochs=2)
    logits = np.zeros((len(labels), 10), np.float16)
    logits[np.arange(len(labels)), labels] = 8
    logits[17, labels[17]], logits[17, (labels[17] + 1) % 10] = -5, 9
    logits[3, labels[3]], logits[3, (labels[3] + 1) % 10] = 0, 2
    replace_predictions(tmp_path / "runs" / run, logits, labels)
    right = 100 * float(np.mean(logits.argmax(1) == labels))
    scores = {
        "last": right,
        "best": right,
        "best_epoch": 2,
        "selected": right,
        "selected_epoch": 2,
        "selected_by": "last",
    }
    edit(tmp_path / "runs" / run / "result.json", accuracy=scores)
    (tmp_path / "runs" / run / "metrics.jsonl").unlink()
    page = made(ghost, tmp_path, run, "--runs", tmp_path / "runs")
    shown = [Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))) for a in page.of("img")]
    for image, i in zip(shown, (17, 3), strict=False):
        assert np.array_equal(np.asarray(image), data.test.pixels[i].numpy())
    assert f"said {(labels[17] + 1) % 10}, 100 %" in page.text


def test_an_unfinished_run_and_a_damaged_one(ghost, tmp_path: Path) -> None:
    running = write_run(tmp_path / "runs", epochs=4, status="interrupted")
    page = made(ghost, tmp_path, running, "--runs", tmp_path / "runs")
    assert "Test accuracy so far" in page.text and [a["value"] for a in page.of("progress")] == ["1.0"]
    done = write_run(tmp_path / "runs", seed=1, epochs=4)
    edit(tmp_path / "runs" / done / "result.json", seal=False, nll=0.1)
    page = made(ghost, tmp_path, done, "--runs", tmp_path / "runs")
    assert "This record is not to be trusted: result.json was changed after it was written" in page.text
    (tmp_path / "runs" / running / "metrics.jsonl").write_text('{"epoch": 1, "test": {"accuracy": NaN}}\n')
    assert running in made(ghost, tmp_path, "--runs", tmp_path / "runs").text


def test_a_folder_of_runs_is_a_study(ghost, runs: Path, tmp_path: Path) -> None:
    ids = [run.id for run in record.scan(runs) if run.status == "done"][:3]
    assert ghost("runs", "study", *ids, "--runs", runs, "--out", tmp_path / "studies" / "one").code == 0
    page = made(ghost, tmp_path, tmp_path / "studies" / "one")
    assert "Study of 3 runs" in page.text and all(run in page.text for run in ids)
    both = made(ghost, tmp_path, *ids[:2], "--runs", runs)
    assert "Study of 2 runs" in both.text and ids[2] not in both.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "holds no runs to report; `ghost demo` makes some"),
        (["--out", "page.pdf"], "--out page.pdf: its name must end in .html"),
        (["--out", "none/page.html"], "there is no folder none"),
        (["gns-1.0-plain-00000000/s0"], "has no run gns-1.0-plain-00000000/s0"),
        (["../../etc"], "is not a run id"),
    ],
)
def test_bad_input_is_a_line_and_leaves_nothing(ghost, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ["--out"]:
        write_run(Path("runs"), epochs=2)
    done = ghost("report", *arguments)
    assert done.code == 2 and message in done.err and done.out == "" and len(done.err.splitlines()) == 1
    assert not list(tmp_path.glob("**/*.html"))


def test_live_serves_this_machine_alone_and_stops_when_asked(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, epochs=2)
    words = [sys.executable, "-m", "ghostcli", "report", "--live", "--runs", str(runs)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            host = re.fullmatch(r"http://(127\.0\.0\.1:\d+)/", address)[1]

            def get(path: str = "/", **headers: str) -> http.client.HTTPResponse:
                connection = http.client.HTTPConnection(host, timeout=60)
                connection.request("GET", path, headers=headers)
                return connection.getresponse()

            first = get("/")
            page = Page(first.read().decode())
            assert "Study of 1 run" in page.text and "connect-src 'self'" in str(page.of("meta"))
            write_run(runs, seed=1, epochs=2)
            second = get("/")
            assert second.status == 200 and "Study of 2 runs" in second.read().decode()
            assert get("/", Host="elsewhere.example").status == 403
            assert get("/../etc/passwd").status == 404
        finally:
            server.send_signal(signal.SIGINT)
            code = ended(server)
        assert code == 0
        assert "Traceback" not in server.stderr.read()


def ended(server: subprocess.Popen[str], seconds: float = 60) -> int:
    """Its exit code. A server that does not end is killed: leaving its `with` would wait for it for ever."""
    try:
        return server.wait(seconds)
    except subprocess.TimeoutExpired:
        server.kill()
        raise


STRUCK = """
import os, signal, sys
from ghostcli.cli import main
from ghostcli.report.live import Server

take = Server.process_request

def struck(*given):
    os.kill(os.getpid(), signal.SIGINT)
    take(*given)

Server.process_request = struck
main()
"""


def test_ctrl_c_while_a_request_is_taken_stops_it(tmp_path: Path) -> None:
    """Python's server catches every exception there, the one of a signal too."""
    runs = tmp_path / "runs"
    write_run(runs, epochs=2)
    words = [sys.executable, "-c", STRUCK, "report", "--live", "--runs", str(runs)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip()
        connection = http.client.HTTPConnection(address.removeprefix("http://").strip("/"), timeout=60)
        connection.request("GET", "/")
        code = ended(server)
        assert code == 0 and "Traceback" not in server.stderr.read()


def test_one_huge_loss_does_not_hide_the_others():
    """A network that has just begun can have a loss of thousands. Then the axis is logarithmic; a rate's never is."""
    from ghostcli.render.gather import Curve
    from ghostcli.report.charts import lines

    falling = np.array([[2000.0, 300.0, 2.0, 0.5, 0.4]])
    wide = lines("Loss", [Curve("", "test", falling)], "loss (nats)", wide=True)
    assert "loss (nats), logarithmic" in wide.svg
    assert "logarithmic" not in lines("Rate", [Curve("", "rate", falling)], "rate").svg
    heights = [float(point.split(",")[1]) for point in re.search(r'points="([^"]+)"', wide.svg)[1].split()]
    assert heights == sorted(heights) and heights[-1] - heights[2] > 40, "the small values can be told apart"


def test_the_numbers_on_every_cell_of_a_confusion_can_be_read_in_both_themes():
    """Contrast as the Web Content Accessibility Guidelines 2.2 define it: 4.5 at least (1.4.3)."""
    sheet = (Path(charts.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): #(\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", sheet, re.S)[:2]
    )
    opacity = {level: float(value) for level, value in re.findall(r"\.(w\d) \{ fill-opacity: ([\d.]+); \}", sheet)}
    assert set(opacity) <= {"w1", "w2", "w3", "w4", "w5"}
    drawn = charts.confusion(np.array([[9, 1, 2], [3, 9, 4], [5, 9, 9]]), ("a", "b", "c")).svg
    assert set(re.findall(r'<text[^>]* class="([^"]*)"', drawn)) == {"count"}  # no other colour than the ink

    def luminance(colour):
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for theme in (light, {**light, **dark}):
        ink, card, right, wrong = (
            np.array(list(bytes.fromhex(theme[name]))) / 255 for name in ("ink", "card", "right", "wrong")
        )
        shares = (opacity.get(f"w{level}", 1.0) for level in range(1, 6))
        for cell in (right, *(share * wrong + (1 - share) * card for share in shares)):
            darker, lighter = sorted((luminance(cell), luminance(ink)))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_a_run_that_lies_in_two_folders_counts_once(ghost, runs: Path, tmp_path: Path) -> None:
    from ghostcli.cli.report import gather

    copied = tmp_path / "copy"
    shutil.copytree(runs, copied)
    assert [run.id for run in gather([str(runs), str(copied)], runs).records] == [
        run.id for run in gather([str(runs)], runs).records
    ]
    half = next(copied.glob("*/s*/status.json"))
    half.write_text(json.dumps({"status": "interrupted"}))
    for order in ([runs, copied], [copied, runs]):
        found = {run.id: run for run in gather(list(map(str, order)), runs).records}
        assert found[f"{half.parent.parent.name}/{half.parent.name}"].path.is_relative_to(runs)


def test_the_folder_of_a_training_names_its_seeds(ghost, runs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(runs.parent)
    folder = next(runs.glob("*/s0")).parent
    done = ghost("report", folder.relative_to(runs.parent), "--runs", runs.name, "-o", tmp_path / "page.html")
    assert done.code == 0 and folder.name in (tmp_path / "page.html").read_text()
    told = ghost("report", next(runs.glob("*/s0")), "--runs", tmp_path, "-o", tmp_path / "page.html")
    assert told.code == 2 and folder.name in told.err, "a run elsewhere is named, not left out"
