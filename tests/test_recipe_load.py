"""What a recipe file, its parents and the overrides resolve to, and what is said where they do not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from ghostcli.errors import UsageError
from ghostcli.recipe import canonical, digest, load, names
from ghostcli.recipe.lines import key_lines


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def refusal(name: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(name, overrides)
    return str(caught.value).splitlines()


# --- what resolves ---------------------------------------------------------------------------------------------


def test_a_child_changes_only_what_it_names() -> None:
    write("mine.toml", 'extends = "paper"\n[optim]\nlr = 0.5\n')
    mine, paper = load("mine.toml"), load("paper")
    assert mine.recipe.optim.lr == 0.5
    assert mine.recipe.optim.momentum == 0.9
    assert mine.recipe.model_copy(update={"optim": paper.recipe.optim}) == paper.recipe
    assert mine.name == "mine.toml"


def test_every_value_says_where_it_came_from() -> None:
    write("mine.toml", 'extends = "paper/t4"\n\n[train]\nepochs = 7\ndata = {}\n'.replace("data = {}\n", ""))
    origin = load("mine.toml", ["optim.lr=0.2"]).provenance
    assert origin["train.epochs"] == "mine.toml:4"
    assert origin["optim.lr"] == "--set"
    assert origin["distill.drop"] == "default"
    assert re.fullmatch(r"recipes/paper/t4\.toml:\d+", origin["distill.temperature"])
    assert re.fullmatch(r"recipes/paper/base\.toml:\d+", origin["optim.momentum"])


def test_provenance_names_the_very_line(tmp_path: Path) -> None:
    for name in names():
        resolved = load(name)
        for key, origin in resolved.provenance.items():
            if origin == "default":
                continue
            file, line = origin.split(":")
            text = (Path(__file__).parent.parent / file).read_text().splitlines()[int(line) - 1]
            assert text.split("=")[0].strip() == key.rpartition(".")[2], (name, key, origin)


def test_the_last_override_wins_and_overrides_beat_files() -> None:
    write("mine.toml", "[train]\nepochs = 7\n")
    assert load("mine.toml", ["train.epochs=8", "train.epochs=9"]).recipe.train.epochs == 9


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("data.name=digits", "data", "name", "digits"),
        ('data.name="digits"', "data", "name", "digits"),
        ("data.name=folder:/a b/c=d", "data", "name", "folder:/a b/c=d"),
        ("data.limit=2_000", "data", "limit", 2000),
        ("data.limit=none", "data", "limit", None),
        ("augment.flip=none", "augment", "flip", "none"),
        ("optim.lr=1e-3", "optim", "lr", 1e-3),
        ("optim.lr=.5", "optim", "lr", 0.5),
        ("optim.lr=1.", "optim", "lr", 1.0),
        ("optim.lr=1", "optim", "lr", 1.0),
        ("optim={lr = 0.25}", "optim", "lr", 0.25),
        ("engine.deterministic=false", "engine", "deterministic", False),
    ],
)
def test_override_values_are_toml_and_bare_words(override: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(load("smoke", [override]).recipe, section), key)
    assert found == value and type(found) is type(value)


def test_none_in_a_file_unsets_what_the_parent_set() -> None:
    write("mine.toml", 'extends = "smoke"\ndata.limit = "none"\n')
    assert load("smoke").recipe.data.limit is not None
    assert load("mine.toml").recipe.data.limit is None


def test_another_kind_drops_what_only_the_old_one_knew() -> None:
    write("old.toml", '[distill]\nkind = "hint"\nstage = 3\nweight = 7.0\ntemperature = 3.0\n')
    write("new.toml", 'extends = "old.toml"\n[distill]\nkind = "at"\n')
    at = load("new.toml").recipe.distill
    assert at.kind == "at" and at.temperature == 3.0
    assert at.weight == 1000.0, "a hint's weight is not attention's, though both are called so"
    dkd = load("old.toml", ["distill.other_weight=2.0", "distill.kind=dkd"]).recipe.distill
    assert dkd.other_weight == 2.0
    assert load("old.toml", ["distill.kind=hint"]).recipe.distill.stage == 3


def test_parents_are_found_from_the_file_not_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("a/child.toml", 'extends = "deep/parent.toml"\n')
    write("a/deep/parent.toml", 'extends = "../grand.toml"\n[train]\nepochs = 3\n')
    write("a/grand.toml", "[optim]\nlr = 0.75\n")
    for start, path in ((tmp_path, "a/child.toml"), (tmp_path / "a" / "deep", "../child.toml")):
        monkeypatch.chdir(start)
        found = load(path).recipe
        assert (found.train.epochs, found.optim.lr) == (3, 0.75)


def test_a_runs_record_resolves_to_the_same_work() -> None:
    asked = load("ghost/dkd", ["data.limit=10", "distill.teacher_epochs=none"]).recipe
    tree = asked.model_dump(mode="json")
    for document in (tree, {"run": "x", "recipe": tree}):
        write("recipe.json", json.dumps(document))
        again = load("recipe.json").recipe
        assert again == asked
        assert digest(canonical(again)) == digest(canonical(asked))


def test_a_mark_of_byte_order_and_windows_line_ends_do_no_harm() -> None:
    Path("mine.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nepochs = 3\r\n")
    found = load("mine.toml")
    assert found.recipe.train.epochs == 3 and found.provenance["train.epochs"] == "mine.toml:2"


# --- what is refused, and what is said ---------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_each_with_its_line() -> None:
    write("parent.toml", "[optim]\nlr = -1\n")
    write(
        "mine.toml",
        'extends = "parent.toml"\nepochs = 3\n[data]\nshufle = true\nlimit = 0\n[dta]\nx = 1\n'
        '[distill]\nkind = "kd"\nstage = 2\n',
    )
    lines = refusal("mine.toml", "train.epochs=yes", "optim.lR=1")
    told = {line.split(": ")[0] + " " + line.split(": ")[1]: line for line in lines}
    assert set(told) == {
        "mine.toml:2 epochs",
        "mine.toml:4 data.shufle",
        "mine.toml:5 data.limit",
        "mine.toml:6 dta",
        "mine.toml:10 distill.stage",
        "parent.toml:2 optim.lr",
        "--set train.epochs",
        "--set optim.lR",
    }
    assert "did you mean data.shuffle?" in told["mine.toml:4 data.shufle"]
    assert "did you mean train.epochs?" in told["mine.toml:2 epochs"]
    assert "did you mean data?" in told["mine.toml:6 dta"]
    assert "at least 1" in told["mine.toml:5 data.limit"]
    assert "hint" in told["mine.toml:10 distill.stage"]
    assert 'got "yes"' in told["--set train.epochs"]
    assert "did you mean optim.lr?" in told["--set optim.lR"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nepochs = 1.0", "train.epochs: needs a whole number"),
        ("[train]\nepochs = true", "train.epochs: needs a whole number"),
        ("[train]\nepochs = 0", "train.epochs: needs a whole number from 1"),
        ("[train]\nepochs = " + "9" * 80, "train.epochs: needs a whole number"),
        ("[train]\nlabel_smoothing = 1", "train.label_smoothing: needs a number from 0.0 to below 1.0"),
        ("[optim]\nnesterov = 'yes'", "optim.nesterov: needs true or false"),
        ("[optim]\nnesterov = 1", "optim.nesterov: needs true or false"),
        ("[optim]\nlr = true", "optim.lr: needs a number above 0; got true"),
        ("[optim]\nlr = nan", "optim.lr: needs a number above 0; got nan"),
        ("[optim]\nlr = inf", "optim.lr: needs a number above 0; got inf"),
        ("[optim]\nlr = 0x" + "f" * 1900, "optim.lr: needs a number above 0; got a number of more than 40 digits"),
        ("[optim]\nlr = 1979-05-27", "optim.lr: needs a number above 0; got 1979-05-27"),
        ("[optim]\nlr = [1]", "optim.lr: needs a number above 0; got an array"),
        ("[optim.lr]\nx = 1", "optim.lr: needs a number above 0; got a table"),
        ("[[optim]]\nlr = 1", "optim: is a section"),
        ("optim = 3", "optim: is a section"),
        ("[augment]\nflip = 'randm'", "augment.flip: needs one of none, random, alternating"),
        ("[distill]\nkind = 'kdd'", "distill.kind: needs one of kd, dkd, dist, hint, at, rkd"),
        ("[distill]\nkind = ['kd']", "distill.kind: needs one of"),
        ("[data]\nname = 'cifar-10'", "did you mean cifar10"),
        ("[data]\nname = 'folder:'", "data.name: needs cifar10, cifar100, digits or folder:PATH"),
        ("[data]\nname = 'my/pets'", "did you mean folder:my/pets?"),
        ("[data]\nname = \"folder:a\\u0000b\"", "data.name: needs one line"),
        ("family = 'papers'", "family: needs one of paper, published, ghost, smoke"),
        ('summary = "a\\nb"', "summary: needs one line"),
        ("extends = 3", "extends: needs one recipe's name or file"),
        ("extends = ['paper']", "extends: needs one recipe's name or file"),
        ("extends = ''", "extends: "),
        ("augment = {fill = 'reflect', pad = 32}", "augment.pad: an image of 32 pixels reflects at most 31"),
        (
            "data = {name = 'folder:pets', size = 256}\ndistill = {view = 'patch'}",
            "distill.view: a patch is cut from an image of 224 pixels",
        ),
        ("train = {stop = 3, epochs = 2}", "train.stop: 3 is past the last of 2 epochs"),
        ("distill.teacher_epochs = 201", "distill.teacher_epochs: 201 is past the last of 200 epochs"),
        (
            "distill = {source = 'table', view = 'patch'}",
            "distill.source: no table can hold the teacher outputs that distill.view needs",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_located_line(text: str, said: str) -> None:
    write("mine.toml", "# a comment\n" + text + "\n")
    (line,) = refusal("mine.toml")
    assert re.match(r"mine\.toml:[23]: ", line) and said in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[train]\nepochs 3\n", r"mine\.toml:2: not TOML"),
        (b"[train]\nepochs = 3\nepochs = 4\n", r"mine\.toml:3: not TOML"),
        (b"x = '''\n\n", r"mine\.toml:\d: not TOML"),
        (b"# fine\n\xff\n", r"mine\.toml:2: not UTF-8"),
        (b"x = " + b"[" * 1900, r"mine\.toml: nested too deeply"),
        (b"x = " + b"[\n" * 30_000, r"mine\.toml: nested too deeply"),
        (b"\nx = " + b"9" * 5000, r"mine\.toml:2: a line of 5004 characters"),
        (b"#" * 70_000, r"mine\.toml: longer than any recipe"),
        (b"train." + b"a." * 900 + b"a = 1", r"mine\.toml:1: train\.a: unknown key"),
        (b"train." + b"a." * 30_000 + b"a = 1", r"mine\.toml:1: a line of 60011 characters"),
        (b"\n".join(b"x%d = 1" % i for i in range(6000)), r"mine\.toml:1: x0: unknown key"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(content: bytes, said: str) -> None:
    Path("mine.toml").write_bytes(content)
    lines = refusal("mine.toml")
    assert re.match(said, lines[0]) and len(lines) <= 21
    assert all(len(line) < 400 for line in lines)


def test_circles_are_refused_by_name() -> None:
    write("self.toml", 'extends = "self.toml"\n')
    assert "mine.toml" not in refusal("self.toml")[0]
    assert refusal("self.toml") == ["self.toml:1: extends: a recipe cannot extend itself: self.toml -> self.toml"]
    write("a.toml", '\nextends = "b.toml"\n')
    write("b.toml", 'extends = "a.toml"\n')
    assert refusal("a.toml") == ["b.toml:1: extends: a recipe cannot extend itself: a.toml -> b.toml -> a.toml"]


def test_nothing_leads_out_of_the_recipes_folder(tmp_path: Path) -> None:
    write("secret.toml", "[train]\nepochs = 3\n")
    Path("in").mkdir()
    os.symlink(tmp_path / "secret.toml", "in/link.toml")
    for parent in ("../secret.toml", str(tmp_path / "secret.toml"), "link.toml", "../../x.toml", "a\\u0000.toml"):
        write("in/mine.toml", f'extends = "{parent}"\n')
        (line,) = refusal("in/mine.toml")
        assert line.startswith("in/mine.toml:1: extends: ") and "is outside" in line
    for name in ("../secret", "paper/../../secret", "/etc/passwd", "..", "paper/..", "./paper", "", "paper/base/x"):
        assert "no such recipe" in refusal(name)[0]


def test_a_missing_recipe_gets_the_nearest_names() -> None:
    write("mine.toml", "")
    assert "did you mean paper" in refusal("papr")[0]
    assert "did you mean published/ensemble" in refusal("published/ensembles")[0]
    assert "did you mean mine.toml" in refusal("mne.toml")[0]
    assert "folder does not exist" in refusal("nowhere/mine.toml")[0]
    assert "did you mean mine.toml or paper?" in refusal("paper.toml")[0]
    write("child.toml", '\nextends = "smok"\n')
    (line,) = refusal("child.toml")
    assert line.startswith("child.toml:2: extends: smok: ") and "did you mean smoke" in line


def test_what_is_no_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder.toml").mkdir()
    assert "is a folder" in refusal("folder.toml")[0]
    os.mkfifo("pipe.toml")
    assert "no regular file" in refusal("pipe.toml")[0]
    os.symlink("loop.toml", "loop.toml")
    assert refusal("loop.toml")
    assert refusal("a" * 5000 + ".toml")
    assert refusal("a\0b.toml")
    assert refusal("\udcff.toml")
    write("child.json", '{"train": {"epochs": 3}, "extends": "paper"}')
    assert refusal("child.json") == [
        "child.json: extends: a recipe in JSON has all keys itself; write this one in TOML"
    ]
    write("broken.json", "{")
    assert refusal("broken.json")[0].startswith("broken.json:1: not JSON")
    for text in ("[]", "3", "{}", '{"recipe": 3, "run": "x"}', "[" * 50_000, '{"train": {"epochs": NaN}}'):
        write("odd.json", text)
        assert refusal("odd.json")[0].startswith("odd.json: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused() -> None:
    write("mine.toml", "")
    os.chmod("mine.toml", 0)
    assert "cannot be read" in refusal("mine.toml")[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("foo", "needs key=value"),
        ("=3", "needs key=value"),
        ("train.=3", "needs key=value"),
        ("extends=paper", "choose a recipe with --recipe"),
        ("train=3", "is a section"),
        ("train.epochs.x=3", "unknown key"),
        ("trian.epochs=3", "did you mean train?"),
        ("epochs=3", "did you mean train.epochs?"),
        ("family.x=3", "needs one of paper"),
        ("train.epochs=", 'got ""'),
        ("train.epochs=1\nbatch_size=2", "needs a whole number"),
        ("train.epochs=" + "[" * 50_000, "needs a whole number"),
        ("data.name=\udcff", "needs one line"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, said: str) -> None:
    (line,) = refusal("paper", override)
    assert line.startswith("--set: ") and said in line and line.isprintable()


def test_control_characters_never_reach_the_screen() -> None:
    name = "\x1b[31mred.toml"
    write(name, '"\\u001b[2J" = 1\n[data]\nname = "\\u001b]0;x\\u0007"\n')
    for line in (*refusal(name), *refusal("no\x1b[31m.toml"), *refusal("no\x1b[31m")):
        assert line.isprintable()


# --- lines -------------------------------------------------------------------------------------------------------


def test_lines_of_keys_however_they_are_spelled() -> None:
    text = '''\
a.b = 1                       # 1
"q.r".'s t' = """x
[no]
no = 1""""                    # 2..4
[ data ] # [not]
limit = [ # 6
  {x = 1, y = [2]}, "]",
]
"na\\u006de" = '#'             # 9
shuffle = 1979-05-27 07:32:00.5
lit = \'\'\'
k = 2
\'\'\'
[[ t . "u" . v ]]             # 14
w = 1
[inline]
p = {}
q = { x = {y = 1}, z = 2 } # 18
[optim]'''
    one = key_lines(text + "\n" + "e = { x = {y = 1},\tz = [{}, {a = 1}], w = 2 }\n")
    assert one == {
        ("a",): 1, ("a", "b"): 1, ("q.r",): 2, ("q.r", "s t"): 2,
        ("data",): 5, ("data", "limit"): 6, ("data", "name"): 9, ("data", "shuffle"): 10, ("data", "lit"): 11,
        ("t",): 14, ("t", "u"): 14, ("inline",): 16, ("inline", "p"): 17, ("inline", "q"): 18,
        ("optim",): 19, ("optim", "e"): 20,
    }  # fmt: skip
    top = key_lines("data = {limit = 1, 'size' = 2}\n\ntrain = {\tepochs = 1}\n")
    assert top == {("data",): 1, ("data", "limit"): 1, ("data", "size"): 1, ("train",): 3, ("train", "epochs"): 3}
    assert key_lines("a = 1\nb = [\n" + "1,\n" * 20_000 + "]\nc = 1\n") == {("a",): 1}, "in no time"
