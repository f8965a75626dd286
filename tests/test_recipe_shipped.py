"""The recipes that ship: found anywhere, what the paper says, and each departure from it as its own key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ghostcli.recipe import canonical, digest, files, load, names
from ghostcli.recipe.models import Recipe

ROOT = Path(__file__).parent.parent


def changed(name: str, base: str) -> dict[str, Any]:
    """What `name` has otherwise than `base`, key by key."""
    one, two = (load(n).recipe.model_dump() for n in (name, base))
    return {
        f"{section}.{key}": value
        for section in one
        if isinstance(one[section], dict)
        for key, value in one[section].items()
        if two[section].get(key) != value
    }


@pytest.mark.parametrize("name", names())
def test_each_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = load(name)
    assert resolved.name == name
    assert resolved.recipe.family == name.partition("/")[0]
    assert resolved.provenance["family"].startswith(f"recipes/{name}" if "/" in name else f"recipes/{name}/base.toml")
    assert resolved.provenance["summary"] != "default" and len(resolved.recipe.summary) < 90
    assert files.find(name).path.read_text().startswith("# ")
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(json.dumps(resolved.recipe.model_dump(mode="json")))
    assert digest(canonical(load("recipe.json").recipe)) == digest(canonical(resolved.recipe))


def test_the_families_stand() -> None:
    assert set(names()) >= {
        "paper", "paper/t4", "paper/validation",
        "published", "published/kd", "published/kd-efficientnetv2",
        "published/chain", "published/chain-gnd", "published/ensemble",
        "ghost", "ghost/fast", "ghost/long", "ghost/kd", "ghost/dkd", "ghost/dist",
        "smoke", "smoke/demo",
    }  # fmt: skip
    assert load("paper/base").name == "paper"


def test_paper_is_the_protocol_of_the_training_logs() -> None:
    paper = load("paper").recipe
    assert paper.model_copy(update={"summary": ""}) == Recipe(), "the default recipe is the paper's"
    assert (paper.train.epochs, paper.train.batch_size, paper.data.name) == (200, 256, "cifar10")
    assert (paper.data.limit, paper.data.limit_test, paper.data.validation, paper.data.shuffle) == (None, None, 0, True)
    optim = paper.optim
    assert (optim.lr, optim.momentum, optim.nesterov) == (0.01, 0.9, True)
    assert (optim.weight_decay, optim.decay, optim.warmup) == (0.01, "all", 0.3)
    assert (optim.lr_start, optim.lr_end) == (1e-8, 1e-8)
    augment = paper.augment
    assert (augment.pad, augment.flip, augment.fill, augment.cutout) == (4, "random", "zeros", 0)
    distill = paper.distill
    assert (distill.kind, distill.alpha, distill.temperature, distill.combine) == ("kd", 0.5, 1.0, "logits")
    assert (distill.view, distill.shuffle, distill.extra_step) == ("student", True, False)
    assert (paper.model.init, paper.engine.precision) == ("kaiming", "float32")
    assert (paper.train.label_smoothing, paper.train.ema, paper.train.stop) == (0.0, 0.0, None)


def test_published_departs_only_where_the_authors_code_did() -> None:
    assert changed("published", "paper") == {}
    assert changed("published/kd", "paper") == {"distill.extra_step": True}
    patch = {"distill.shuffle": False, "distill.extra_step": True, "distill.view": "patch"}
    assert changed("published/kd-efficientnetv2", "paper") == patch
    assert changed("published/chain", "paper") == {"distill.shuffle": False, "distill.extra_step": True}
    assert changed("published/chain-gnd", "paper") == {"distill.shuffle": False}
    assert changed("published/ensemble", "paper") == {"distill.shuffle": False}


def test_variants_of_paper() -> None:
    assert changed("paper/t4", "paper") == {"distill.temperature": 4.0, "distill.alpha": 0.1}
    assert changed("paper/validation", "paper") == {"data.validation": 5000}


def test_ghosts_ways_of_teaching_share_one_baseline() -> None:
    for name in ("ghost/kd", "ghost/dkd", "ghost/dist"):
        assert all(key.startswith("distill.") for key in changed(name, "ghost"))
    assert changed("ghost/smooth", "ghost") == {"train.label_smoothing": 0.1}
    assert changed("ghost/kd", "ghost") == {}
    kd = load("ghost/kd").recipe.distill
    assert (kd.temperature, kd.alpha) == (4.0, 0.1)


def test_every_value_of_ghost_fast_was_tried() -> None:
    """The search's record holds a trial with these very values."""
    record = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "search.json").read_text())
    trials = [trial for trial in record.values() if trial["stage"] == "optimiser"]
    ours = changed("ghost/fast", "ghost")
    assert ours.pop("train.epochs") == 16
    same = [trial for trial in trials if trial["settings"].items() >= ours.items()]
    assert [trial["validation"] for trial in same] == [max(trial.get("validation", 0) for trial in trials)]


def test_ghost_long_keeps_what_was_found_for_less_time() -> None:
    """Its padding is the paper's, and no rate that was tried at 32 epochs did better than its own."""
    assert changed("ghost/long", "ghost/fast") == {"train.epochs": 128, "augment.pad": load("paper").recipe.augment.pad}
    record = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "search.json").read_text())
    longer = [trial for trial in record.values() if trial["stage"] == "longer"]
    best = max(longer, key=lambda trial: trial["validation"])
    assert best["settings"]["optim.lr"] == load("ghost/long").recipe.optim.lr


def test_smoke_is_small() -> None:
    smoke = load("smoke").recipe
    assert smoke.train.epochs == 1 and smoke.data.limit and smoke.data.limit <= 2000
    assert smoke.data.limit_test and smoke.data.limit_test <= 1000
    assert load("smoke/demo").recipe.data.name == "digits"


def test_recipes_are_found_in_an_installed_package_from_anywhere(tmp_path: Path) -> None:
    """A package laid out as the wheel lays it out, away from any checkout; a stranger's `recipes` beside it."""
    site = tmp_path / "site"
    for module in ("__init__.py", "errors.py", "recipe"):
        source, target = ROOT / "ghostcli" / module, site / "ghostcli" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(ROOT / "recipes", site / "ghostcli" / "_recipes")
    (site / "recipes" / "paper").mkdir(parents=True)
    (site / "recipes" / "paper" / "base.toml").write_text("[train]\nepochs = 1\n")
    code = "from ghostcli.recipe import load, names; r = load('ghost/kd'); print(r.recipe.train.epochs, len(names()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["200", str(len(names()))], done.stderr


def test_a_package_without_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ghostcli.errors import UsageError

    monkeypatch.setattr("ghostcli.__file__", str(tmp_path / "ghostcli" / "__init__.py"))
    with pytest.raises(UsageError, match="install ghostcli again"):
        load("paper")


def test_the_wheel_takes_the_recipes_along() -> None:
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"recipes": "ghostcli/_recipes"}
