"""The worked example of docs/images.md, carried out: its program, its recipe and its commands in a fresh folder.

It needs CIFAR-10 under GHOST_DATA (default: data). Usage:

    python benchmarks/own_images.py --out benchmarks/results/own-images.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "images.md"
#: What each training on the photos shows, in the page's order.
WAYS = ("as they are", "balanced", "balanced, from other images")


def example(page: str) -> tuple[dict[str, str], list[str]]:
    """The files of the worked example by name, and its training commands."""
    part = page[page.index("## A worked example") :]
    files = dict(re.findall(r"^```(?:python|toml) (\S+)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE))
    commands = re.findall(r"^ghost (train-teacher .*)$", part, re.MULTILINE)
    return files, commands


def carry_out(folder: Path) -> dict[str, object]:
    files, commands = example(PAGE.read_text())
    for name, content in files.items():
        (folder / name).write_text(content)
    environment = {**os.environ, "GHOST_DATA": str(Path(os.environ.get("GHOST_DATA", ROOT / "data")).resolve())}

    def ghost(*words: str) -> object:
        command = [sys.executable, "-m", "ghostcli", *words, "--json"]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    subprocess.run([sys.executable, "cut.py"], cwd=folder, env=environment, check=True)
    other, *asked = commands
    source = ghost(*shlex.split(other))
    found: dict[str, object] = {"others": {"run": source["run"], "accuracy": source["accuracy"]["selected"]}}
    for way, command in zip(WAYS, asked, strict=True):
        runs = ghost(*shlex.split(command.replace("run/ID", f"run/{source['run']}")))
        found[way] = [
            {key: said[key] for key in ("accuracy", "class_mean", "by_class")} | {"run": run["run"]}
            for run in runs
            for said in [ghost("evaluate", f"run/{run['run']}", "--by-class")]
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="own-images-") as folder:
        found = json.dumps(carry_out(Path(folder)), indent=1)
    if asked.out:
        asked.out.write_text(found + "\n")
    print(found)


if __name__ == "__main__":
    main()
