"""Draws docs/demo.svg, the README's picture: what `ghost table also` shows on a terminal after `ghost demo`.

ghost demo && python docs/picture.py
"""

from __future__ import annotations

import os
import pty
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 128

shown = bytearray()


def keep(terminal: int) -> bytes:
    part = os.read(terminal, 65536)
    shown.extend(part)
    return part


os.chdir(ROOT)
os.environ |= {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
if pty.spawn([sys.executable, "-m", "ghostcli", "table", "also", "--runs", "runs/demo"], keep):
    sys.exit("ghost table failed; run ghost demo first")
console = Console(record=True, width=WIDTH, file=StringIO())
console.print("$ ghost demo")
console.print(Text.from_ansi(shown.decode().replace("\r\n", "\n").rstrip()), soft_wrap=True)
(ROOT / "docs" / "demo.svg").write_text(console.export_svg(title="ghost demo"))
