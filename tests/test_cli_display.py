"""Progress on a terminal, seen through a pseudo terminal: every line fits, and none of what matters is cut."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import crash
import pytest

from ghostcli.display import clock, shorten, tell_json

RUN = "gns-0.25-plain-b6b03212/s0"
ROW = {"lr": 0.05, "loss": 3.9101, "hard": 2.0, "soft": 1.9, "train_accuracy": 55.5, "test": {"accuracy": 54.25}}
PROGRAM = f"""
import time
from ghostcli.display import Display
row = {ROW!r} | {{"images_per_second": 1234.5, "validation": None}}
with Display() as show:
    show.training({RUN!r}, 200, 50_000)
    show.begin({RUN!r}, 200 * 196)
    for epoch in (1, 2, 3):
        for step in range(4):
            show.advance(49)
            time.sleep(0.06)
        show.epoch({RUN!r}, row | {{"epoch": epoch}}, 200)
    time.sleep(0.3)
"""


def on_terminal(columns: int, program: str = PROGRAM) -> str:
    """What a program writes to a terminal this wide."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm", "PYTHONPATH": str(crash.ROOT), "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=follower, stderr=follower, env=environment):
        os.close(follower)
        seen = b""
        try:
            while part := os.read(leader, 65536):
                seen += part
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


@pytest.mark.parametrize("columns", [80, 60])
def test_epochs_scroll_above_a_live_line_and_all_fit(columns):
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", on_terminal(columns))]
    assert max(map(len, lines)) <= columns, lines
    kept = list(dict.fromkeys(line for line in lines if line.startswith("gns-0")))
    assert len(kept) == 3, "a line an epoch"
    for number, line in enumerate(kept, 1):
        assert all(word in line for word in (f"epoch {number}/200", "loss 3.910", "test 54.25", "/s0")), line
        assert all((word in line) == (columns == 80) for word in ("train 55.50", "1234 images/s")), line
    live = [line for line in lines if "ETA" in line]
    assert live and re.fullmatch(r"[━─]{4,}  epoch 4/200  2%  ETA [\d:]+  \d+ images/s", live[-1]), live[-1]


def test_work_of_unknown_length_shows_what_it_does_and_no_share():
    program = """
import time
from ghostcli.display import Display
with Display() as show:
    show.begin("export", 0)
    show.advance(0, note="onnx")
    time.sleep(0.3)
"""
    seen = on_terminal(60, program)
    assert "export  onnx" in seen and "ETA" not in seen and "%" not in seen


def test_an_id_loses_its_middle():
    assert shorten(RUN, 26) == RUN
    assert shorten(RUN, 16) == "gns-0.25~3212/s0"
    assert (clock(None), clock(62.4), clock(3723)) == ("--:--", "01:02", "1:02:03")


def test_a_sentence_ends_its_lines_between_words_on_a_terminal_and_nowhere_else(capsys):
    program = "from ghostcli.display import wrapped; print(wrapped({!r}))"
    sentence = "teaching helped: +13.50 points, 95 % interval +5.79 to +21.21, five-seed group in runs/a-b-c/forest.png"
    lines = on_terminal(60, program.format(sentence)).splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 60
    assert " ".join(lines) == sentence
    exec(program.format(sentence), {})
    assert capsys.readouterr().out == sentence + "\n"


@pytest.mark.parametrize("columns", [80, 40])
def test_no_cell_of_a_table_is_cut(columns, monkeypatch, capsys):
    from ghostcli.display import table, tell

    monkeypatch.setenv("COLUMNS", str(columns))
    view = table("how it learnt", "accuracy (%)", "against alone [95 %]")
    view.add_row("via an assistant", "69.67 ± 2.59 (5)", "+17.72 [+11.49, +23.95]")
    tell(view)
    assert "via an assistant  69.67 ± 2.59 (5)  +17.72 [+11.49, +23.95]" in capsys.readouterr().out


def test_json_has_neither_infinities_nor_halves_of_a_character(capsys):
    tell_json({"a\udce9": [float("nan"), (float("inf"), 1.5)], "é": {"x": "\ud83d\x9b31m"}})
    out = capsys.readouterr().out
    out.encode("utf-8")
    assert "é" in out and "\x9b" not in out, "a byte that commands some terminals"
    assert json.loads(out) == {"a\udce9": [None, [None, 1.5]], "é": {"x": "\ud83d\x9b31m"}}


def test_json_is_ascii_where_standard_output_has_no_more():
    code = "from ghostcli.display import tell_json; tell_json({'a': 'é'})"
    environment = crash.ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == {"a": "é"}


def test_what_a_table_holds_cannot_command_the_terminal(capsys):
    from ghostcli.display import table, tell

    view = table("image", "class", words=("class",))
    view.add_row("[red]cat[/red].png", "cat\x1b]0;owned\x07")
    tell(view)
    assert "[red]cat[/red].png  cat\\x1b]0;owned\\x07" in capsys.readouterr().out
