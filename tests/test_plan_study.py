"""The paper's tables as one graph: counts by table, teachers once and first, what is left out, what a failure costs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ghostcli.comparison import commands
from ghostcli.display import Display
from ghostcli.errors import Interrupted, NonFiniteError, UsageError
from ghostcli.paper import FAMILIES, paper
from ghostcli.plan import Job
from ghostcli.plan import study as reproduce
from ghostcli.plan.study import study
from ghostcli.recipe import load
from ghostcli.run import launch

RUNS = Path("runs")
ALL = ("I", "II", "III", "IV")


def strategies(jobs) -> dict[str, int]:
    return dict(Counter(job.strategy for job in jobs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (["I"], {"plain": 15}),
        # three students' baselines; ResNet-18, ResNet-50, VGG13, EfficientNetV2 (GN-S 2.8 is a baseline already)
        (["II"], {"plain": 7, "kd": 8}),
        # four baselines and ResNet-50; ResNet-34 is taught by one teacher, ResNet-18 and the students by a chain
        (["III"], {"plain": 5, "kd": 1, "chain": 5}),
        (["IV"], {"plain": 7, "ensemble": 3}),
        (["all"], {"plain": 15, "kd": 9, "chain": 5, "ensemble": 3}),
    ],
)
def test_each_table_rests_on_so_many_jobs(tables, expected, family):
    assert strategies(study(tables, family, 1).plan.jobs) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_teachers_are_there_once_and_before_their_students(family):
    graph = study(ALL, family, 2).plan
    ids = [job.id for job in graph.jobs]
    assert len(set(ids)) == len(ids)
    assert len({(job.student, job.seed) for job in graph.jobs if not job.taught}) == 30
    for job in graph.jobs:
        for teacher in job.teachers:
            assert ids.index(teacher.id) < ids.index(job.id)
            assert teacher.seed == 0


def test_seeds_multiply_rows_and_baselines_not_teachers_and_assistants():
    counts = [Counter(job.student for job in study(["III"], "paper", n).plan.jobs) for n in (1, 3)]
    assert counts[1]["gns:1.0"] == 6 and counts[0]["gns:1.0"] == 2  # baseline and chain
    for name in ("resnet50", "resnet34", "resnet18"):
        assert counts[0][name] == counts[1][name] == 1


def test_rows_are_the_papers_in_its_order():
    planned = study(ALL, "paper", 1).rows
    assert [each.row for each in planned] == list(paper().rows)
    for each in planned:
        (job,) = each.jobs
        assert (job.student, job.strategy, job.path) == (each.row.student, each.row.strategy, each.row.teachers)
        assert [base.student for base in each.baselines] == ([job.student] if each.row.teachers else [])
        assert all(base.protocol == job.protocol and not base.taught for base in each.baselines)


@pytest.mark.parametrize("family", ["paper", "ghost"])
def test_a_row_is_the_very_job_of_the_command_that_the_table_names(family, ghost, tmp_path):
    for each in study(ALL, family, 1).rows:
        command = commands.of_row(each.row, family, None, tmp_path)
        rows = json.loads(ghost(*shlex.split(command)[1:], "--dry-run", "--json").out)
        assert each.jobs[0].id == rows[-1]["run"]


def test_published_rows_use_their_own_recipes_and_the_authors_one_chain_of_assistants():
    planned = {(each.row.table, each.row.student, each.row.teachers): each for each in study(ALL, "published", 1).rows}
    for each in planned.values():
        assert each.jobs[0].recipe.family == "published"
        assert each.jobs[0].recipe.distill == load(each.row.published).recipe.distill or not each.row.teachers
    patch = planned["II", "gns:2.8", ("efficientnetv2",)].jobs[0]
    assert patch.recipe.distill.view == "patch" and not patch.shuffled
    assert planned["II", "gns:1.0", ("resnet18",)].jobs[0].recipe.distill.extra_step
    chains = [each.jobs[0] for key, each in planned.items() if key[0] == "III"]
    assert [job.recipe.distill.extra_step for job in chains] == [True, True, True, False]
    assert len({job.teachers[0].id for job in chains}) == 1
    assistant = chains[0].teachers[0]
    assert not assistant.recipe.distill.extra_step and not assistant.shuffled and assistant.student == "resnet18"
    assert all(job.path == ("resnet50", "resnet34", "resnet18") for job in chains)


def test_paper_and_published_share_baselines_and_teachers():
    graphs = [study(ALL, family, 1).plan.jobs for family in ("paper", "published")]
    plain = [{job.id for job in jobs if not job.taught} for jobs in graphs]
    taught = [{job.id for job in jobs if job.taught} for jobs in graphs]
    assert plain[0] == plain[1] and not taught[0] & taught[1]


def test_a_small_version_says_so_in_every_job():
    small = study(["II"], "published", 1, reproduce.settings("digits", 64, 2))
    for job in small.plan.jobs:
        data = job.recipe.data
        assert (data.name, data.limit, data.limit_test, job.recipe.train.epochs) == ("digits", 64, 64, 2)
    kept = study(["II"], "published", 1, [*reproduce.settings(None, 64, None), "data.limit_test=1000"])
    assert {job.recipe.data.limit_test for job in kept.plan.jobs} == {1000}
    assert reproduce.settings(None, None, None) == []


def test_skip_leaves_out_whom_the_network_teaches_and_says_so():
    found = study(ALL, "paper", 1, skip=["efficientnetv2", "inceptionv3"])
    assert len(found.skipped) == 1 + 1 + 1 + 3  # I twice, II once, all of IV
    assert {job.student for job in found.plan.jobs} & {"efficientnetv2", "inceptionv3"} == set()
    assert not any(each.row.table == "IV" for each in found.rows)
    assert study(["I"], "paper", 1, skip=["gns"]).skipped[0].student == "gns:1.0"


def test_needed_by_and_rows_of_tell_what_a_job_is_for():
    found = study(ALL, "paper", 1)
    by_student = {job.student: job for job in found.plan.jobs if not job.taught}
    assert found.needed_by[by_student["gns:1.0"].id] == ALL
    assert found.needed_by[by_student["gns:3.4"].id] == ("I",)
    assert found.needed_by[by_student["vgg13"].id] == ("I", "II", "IV")
    assert [row.table for row in found.rows_of(by_student["vgg13"])] == ["I"]
    assistant = next(job for job in found.plan.jobs if job.student == "resnet34" and job.taught)
    assert found.needed_by[assistant.id] == ("III",) and found.rows_of(assistant) == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tables": ["V"]}, "I, II, III, IV"),
        ({"tables": ["I"], "family": "smok"}, "paper, published, ghost, smoke"),
        ({"tables": ["I"], "skip": ["resnet19"]}, "resnet18"),
        ({"tables": ["III"], "skip": ["vgg13"]}, "none of these rows"),
        ({"tables": ["I"], "overrides": ["train.epoch=3"]}, "train.epochs"),
    ],
)
def test_mistakes_are_told_with_what_to_type_instead(arguments, said):
    with pytest.raises(UsageError, match=said):
        study(**{"family": "paper", "seeds": 1, **arguments})


def test_names_of_tables():
    assert reproduce.chosen(["iii", "I", "I"]) == ("I", "III")
    assert reproduce.chosen(["all"]) == ALL == reproduce.chosen(["ALL", "II"])


def test_the_control_of_a_taught_row_is_its_job_with_blind_teachers():
    plain = study(["I", "II"], "paper", 2)
    found = study(["I", "II"], "paper", 2, controls=True)
    assert not any(each.controls for each in found.rows if not each.row.teachers)
    for each in (each for each in found.rows if each.row.teachers):
        for job, control in zip(each.jobs, each.controls, strict=True):
            assert (control.student, control.seed, control.teachers) == (job.student, job.seed, job.teachers)
            assert control.protocol == job.protocol and control.digest != job.digest
            told = control.recipe.distill.model_dump()
            assert told == job.recipe.distill.model_dump() | {"blind": True}
    more = {job.id for job in found.plan.jobs} - {job.id for job in plain.plan.jobs}
    assert len(more) == 2 * 8  # no other teacher is trained for them


class Scripted:
    """An executor that trains nothing: `fails` maps a network to its error; up to `width` jobs end at each look."""

    ahead = False

    def __init__(self, fails: dict[str, Exception] | None = None, width: int = 1) -> None:
        self.fails, self.width, self.started, self.alive = fails or {}, width, [], []
        self.show = Display(quiet=True)
        self.left = False

    @property
    def free(self) -> bool:
        return len(self.alive) < self.width

    def start(self, job: Job) -> None:
        self.started.append(job)
        self.alive.append(job)

    def wait(self):
        ended, self.alive = self.alive, []
        errors = [(job, None if job.taught else self.fails.get(job.student)) for job in ended]
        for _, error in errors:
            if isinstance(error, Interrupted):
                raise error
        return errors

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True


@pytest.fixture(autouse=True)
def nothing_to_prepare(monkeypatch):
    monkeypatch.setattr(launch, "prepare", lambda graph, options: None)


@pytest.mark.parametrize("width", [1, 3])
def test_every_job_is_carried_out_once_after_its_teachers(width, tmp_path):
    graph, place = study(ALL, "paper", 1).plan, Scripted(width=width)
    outcomes = list(launch.run(graph, launch.Options(tmp_path), place))
    assert sorted(o.job.id for o in outcomes) == sorted(job.id for job in graph.jobs) and len(place.started) == len(
        outcomes
    )
    order = [job.id for job in place.started]
    for job in graph.jobs:
        assert all(order.index(teacher.id) < order.index(job.id) for teacher in job.teachers)
    assert width > 1 or order == [job.id for job in graph.jobs]
    assert place.left


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("error", [NonFiniteError("the loss became non-finite"), UsageError("other images")])
def test_a_failure_costs_what_rests_on_it_and_no_more(error, width, tmp_path):
    graph, place = study(["II", "III"], "paper", 1).plan, Scripted({"vgg13": error}, width)
    found = {o.job.id: o for o in launch.run(graph, launch.Options(tmp_path), place)}
    assert len(found) == len(graph.jobs)

    def rests_on_it(job: Job) -> bool:
        return job.student == "vgg13" or any(rests_on_it(teacher) for teacher in job.teachers)

    failed = [job for job in graph.jobs if found[job.id].error]
    assert failed == [job for job in graph.jobs if rests_on_it(job)] and len(failed) == 4
    (own,) = (job for job in failed if job.student == "vgg13")
    assert found[own.id].error is error
    for job in failed:
        if job != own:
            (lost,) = (t.id for t in job.teachers if found[t.id].error)
            assert str(found[job.id].error) == f"not started, its teacher {lost} failed"
            assert found[job.id].error.exit_code == error.exit_code
    assert not [job for job in place.started if job in failed and job != own]


@pytest.mark.parametrize("width", [1, 3])
def test_a_signal_ends_everything(width, tmp_path):
    graph, place = study(["II"], "paper", 1).plan, Scripted({"resnet18": Interrupted("stopped")}, width)
    with pytest.raises(Interrupted):
        list(launch.run(graph, launch.Options(tmp_path), place))
    assert place.left and len(place.started) < len(graph.jobs)


def test_planning_imports_no_torch():
    code = (
        "import sys, ghostcli.cli.reproduce, ghostcli.plan.estimate; from ghostcli.plan import study as reproduce;"
        "reproduce.study(['all'], 'published', 1); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
