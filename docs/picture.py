"""Draws docs/demo.svg, the README's picture: what `ghost demo` ends with on a terminal.

ghost demo && python docs/picture.py
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100

shown = bytearray()


def keep(terminal: int) -> bytes:
    part = os.read(terminal, 65536)
    shown.extend(part)
    return part


os.chdir(ROOT)
os.environ |= {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
if not Path("runs/demo/forest.png").exists():
    sys.exit("runs/demo: holds no finished demo; run ghost demo first")
words = shlex.join([sys.executable, "-m", "ghostcli", "demo"])
if pty.spawn(["sh", "-c", f"{words} 2>/dev/null"], keep):  # its progress goes to stderr
    sys.exit("ghost demo failed")
text = Text.from_ansi(shown.decode().replace("\r\n", "\n").rstrip())
if (longest := max(map(len, text.plain.splitlines()))) > WIDTH:
    sys.exit(f"a line has {longest} characters, and the picture shows {WIDTH}")
console = Console(record=True, width=WIDTH, file=StringIO())
console.print("$ ghost demo")
console.print(text, soft_wrap=True)
picture = console.export_svg(title="ghost demo")
picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # a picture fetches nothing
(ROOT / "docs" / "demo.svg").write_text(picture)
