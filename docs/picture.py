"""Draws docs/demo.svg, the README's picture, from the records of `ghost demo` in runs/demo.

ghost demo && python docs/picture.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 104

table = subprocess.run(
    [sys.executable, "-m", "ghostcli", "table", "also", "--runs", "runs/demo"],
    cwd=ROOT,
    env=os.environ | {"COLUMNS": str(WIDTH)},
    capture_output=True,
    text=True,
    check=True,
)
console = Console(record=True, width=WIDTH, file=StringIO())
console.print(Text(f"$ ghost demo\n{table.stdout.rstrip()}"), soft_wrap=True)
(ROOT / "docs" / "demo.svg").write_text(console.export_svg(title="ghost demo"))
