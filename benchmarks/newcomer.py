"""The way of a newcomer, timed: clone, installation, the demo's verdict, and the class of a picture of one's own.

Every step is a command of the README in a fresh folder. The folder of own pictures is made of the digits that ship with
ghost, as PNG files, so that nothing is downloaded but the packages. Usage:

    python benchmarks/newcomer.py --out benchmarks/results/newcomer.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Three digits as PNG files, as `photos/PART/CLASS/N.png`; run by the Python of the fresh installation.
PICTURES = """
from pathlib import Path
from PIL import Image
from ghostcli.data import load
from ghostcli.recipe.models import DataSection
data = load(DataSection(name="digits"))
for part, images in (("train", data.train), ("test", data.test)):
    for label in (0, 1, 2):
        folder = Path("photos", part, str(label))
        folder.mkdir(parents=True)
        for i in (images.labels == label).nonzero().flatten().tolist():
            Image.fromarray(images.pixels[i].numpy()).save(folder / f"{i}.png")
Image.open(next(iter(sorted(Path("photos/test/2").iterdir())))).save("mine.png")
"""
OWN = "train-teacher gns:0.2 --data folder:photos --epochs 12 -s train.batch_size=32 -s optim.lr=0.05 --json"


def walk(source: str, folder: Path) -> dict[str, object]:
    """Seconds of each step, and what the two questions were answered."""
    steps: dict[str, float] = {}
    place, bin_folder = folder / "ghost", folder / "ghost" / ".venv" / "bin"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GHOST_", "OMP_"))}

    def step(name: str, *words: str | Path, cwd: Path = place) -> str:
        began = time.perf_counter()
        done = subprocess.run(list(map(str, words)), cwd=cwd, env=clean, capture_output=True, text=True)
        steps[name] = round(time.perf_counter() - began, 1)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-2000:]}")
        print(f"{name}: {steps[name]} s", file=sys.stderr)
        return done.stdout

    step("clone", "git", "clone", "--quiet", source, place, cwd=folder)
    step("environment", sys.executable, "-m", "venv", ".venv")
    step("installation", bin_folder / "pip", "install", "--quiet", ".")
    ghost = bin_folder / "ghost"
    verdict = json.loads(step("demo", ghost, "demo", "--json"))["verdict"]
    until_verdict = sum(steps.values())
    step("own pictures", bin_folder / "python", "-c", PICTURES)
    step("a look at them", ghost, "data", "inspect", "folder:photos")
    run = json.loads(step("training on them", ghost, *OWN.split()))
    said = json.loads(step("prediction", ghost, "predict", f"run/{run['run']}", "mine.png", "--json"))
    minutes = {"first verdict": until_verdict / 60, "first own-image prediction": sum(steps.values()) / 60}
    return {
        "seconds": steps,
        "minutes to": {name: round(value, 1) for name, value in minutes.items()},
        "verdict": verdict,
        "own images": {"test accuracy": run["accuracy"]["selected"], "the 2 is called": said[0]["predictions"][0]},
        "machine": machine(),
    }


def machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=str(ROOT), help="what is cloned")
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    try:
        found = json.dumps(walk(asked.source, folder), indent=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if asked.out:
        asked.out.write_text(found + "\n")
    print(found)


if __name__ == "__main__":
    main()
