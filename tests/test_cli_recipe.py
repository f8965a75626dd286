"""`ghost recipe` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ghostcli.cli.recipe import app
from ghostcli.errors import UsageError
from ghostcli.recipe import canonical, digest, load, names
from ghostcli.recipe.keys import FIELDS, PATHS


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ghost(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    result = ghost(*arguments)
    assert isinstance(result.exception, UsageError) and result.exception.exit_code == 2
    return str(result.exception)


def test_list() -> None:
    result = ghost("list", "--json")
    listed = json.loads(result.stdout)
    assert [row["name"] for row in listed] == list(names())
    assert all(row["summary"] and row["family"] for row in listed)
    shown = ghost("list").stdout.splitlines()
    assert len(shown) == len(listed) + 1, "a line a recipe where no terminal breaks them"
    assert all(row["name"] in line and row["summary"] in line for row, line in zip(listed, shown[1:], strict=True))


def test_show_is_itself_the_recipe() -> None:
    result = ghost("show", "ghost/dkd", "-s", "data.limit=7", "--set", "data.name=folder:a\\b")
    lines = result.stdout.splitlines()
    assert any(line.startswith("limit = 7 ") and line.endswith("# --set") for line in lines)
    assert any(line.startswith("other_weight = 8.0 ") and "# recipes/ghost/dkd.toml:" in line for line in lines)
    assert any(line.startswith("drop = 0 ") and line.endswith("# default") for line in lines)
    Path("again.toml").write_text(result.stdout)
    asked = load("ghost/dkd", ["data.limit=7", "data.name=folder:a\\b"]).recipe
    assert load("again.toml").recipe == asked
    assert all(load("again.toml").provenance[path] != "default" for path in load("again.toml").provenance)


def test_show_json_is_itself_the_recipe() -> None:
    shown = json.loads(ghost("show", "paper", "-s", "optim.lr=0.5", "--json").stdout)
    assert shown["name"] == "paper" and shown["recipe"]["optim"]["lr"] == 0.5
    assert shown["provenance"]["optim.lr"] == "--set"
    Path("again.json").write_text(json.dumps(shown))
    assert digest(canonical(load("again.json").recipe)) == shown["digest"]


def test_show_refuses_and_prints_nothing() -> None:
    assert "did you mean paper" in refused("show", "papr")
    assert "did you mean data.shuffle?" in refused("show", "paper", "-s", "data.shufle=1")
    assert ghost("show", "papr").stdout == ""


def test_check() -> None:
    Path("good.toml").write_text('extends = "paper"\n')
    Path("bad.toml").write_text("[train]\nepochs = 0\nx = 1\n")
    result = ghost("check", "good.toml", "ghost/kd")
    assert result.exit_code == 0 and result.stdout == "good.toml: ok\nghost/kd: ok\n"
    lines = refused("check", "good.toml", "bad.toml", "papr").splitlines()
    assert [line.split(": ")[0] for line in lines] == ["bad.toml:2", "bad.toml:3", "papr"]
    assert ghost("check", "good.toml", "bad.toml").stdout == "good.toml: ok\n"
    assert ghost("check").exit_code == 2


def test_schema_knows_every_key_of_every_shipped_recipe() -> None:
    schema = json.loads(ghost("schema").stdout)
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert set(properties) == {"extends", "family", "summary", *FIELDS}
    assert {f"{s}.{key}" for s in FIELDS for key in properties[s]["properties"]} == {p for p in PATHS if "." in p}
    for section in FIELDS:
        assert properties[section]["additionalProperties"] is False
        assert all(value.get("description") for value in properties[section]["properties"].values())
    for file in (Path(__file__).parent.parent / "recipes").glob("*/*.toml"):
        for name, said in tomllib.loads(file.read_text()).items():
            assert name in properties
            for key, value in said.items() if isinstance(said, dict) else ():
                known = properties[name]["properties"][key]
                kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
                allowed = [o.get("type", o.get("const")) for o in known.get("anyOf", [known])]
                assert kinds[type(value)] in allowed or value in allowed, (file, key)


@pytest.mark.parametrize("name", names())
def test_a_copy_is_the_same_recipe_and_ones_own(name: str) -> None:
    result = ghost("copy", name, "mine.toml")
    assert result.exit_code == 0 and result.stdout == "" and "--recipe mine.toml" in result.stderr
    assert load("mine.toml").recipe == load(name).recipe
    assert Path("mine.toml").read_text().startswith("# ")


def test_a_copy_stands_alone() -> None:
    Path("a").mkdir()
    Path("a/parent.toml").write_text("[train]\nepochs = 9\n")
    Path("a/child.toml").write_text('extends = "parent.toml"\n[data]\nlimit = 5\n')
    Path("recipe.json").write_text(json.dumps({"recipe": load("smoke").recipe.model_dump(mode="json")}))
    for source in ("a/child.toml", "recipe.json"):
        copy = f"copy-of-{Path(source).stem}.toml"
        assert ghost("copy", source, copy).exit_code == 0
        assert load(copy).recipe == load(source).recipe
    assert "extends" not in tomllib.loads(Path("copy-of-child.toml").read_text())


def test_copy_overwrites_nothing_and_leaves_nothing() -> None:
    Path("mine.toml").write_text("mine")
    Path("link.toml").symlink_to("nowhere.toml")
    Path("folder.toml").mkdir()
    for target in ("mine.toml", "link.toml", "folder.toml"):
        assert "not overwritten" in refused("copy", "paper", target)
    assert Path("mine.toml").read_text() == "mine" and not Path("nowhere.toml").exists()
    assert "ends in .toml" in refused("copy", "paper", "mine.txt")
    assert "cannot be written" in refused("copy", "paper", "nowhere/mine.toml")
    assert "did you mean paper" in refused("copy", "papr", "new.toml")
    Path("bad.toml").write_text("[train]\nepochs = 0\n")
    assert "bad.toml:2" in refused("copy", "bad.toml", "new.toml")
    assert not Path("new.toml").exists() and not Path("nowhere").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_copy_that_cannot_be_finished_leaves_nothing() -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from ghostcli.cli.recipe import copy; from ghostcli.errors import UsageError; from pathlib import Path\n"
        "try: copy('paper', Path('new.toml'))\n"
        "except UsageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False, env=_environment()
    )
    assert "new.toml: cannot be written" in done.stdout, done.stderr
    assert not Path("new.toml").exists()


def test_helpful_and_without_torch() -> None:
    for verb in ("list", "show", "check", "schema", "copy"):
        assert verb in ghost("--help").stdout
        assert ghost(verb, "--help").exit_code == 0
    code = "import sys; import ghostcli.cli.recipe as r; r.load('paper'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=_environment())
    assert done.stdout == "False\n", done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def test_keys_explains_each_key_and_finds_some() -> None:
    listed = json.loads(ghost("keys", "--json").stdout)
    assert [key["name"] for key in listed] == list(PATHS)
    assert all(key["purpose"] and key["allowed"] for key in listed)
    defaults = {key["name"]: key["default"] for key in listed}
    assert (defaults["train.batch_size"], defaults["augment.flip"], defaults["data.limit"]) == (256, "random", None)
    shown = ghost("keys", "momentum").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["key", "optim.momentum", "optim.nesterov", "optim.rest_momentum"]
    assert "sgd, muon: " in shown[1] and shown[1].endswith("muon's default is 0.95")
    assert [key["name"] for key in json.loads(ghost("keys", "dkd", "WARM", "--json").stdout)] == [
        "distill.warmup_epochs"
    ]
    assert refused("keys", "nosuch") == "no key of a recipe has nosuch; `ghost recipe keys` lists all"
