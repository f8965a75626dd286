"""Worker processes: one takes several jobs, gives each the bits of a run alone, and leaves after a failure."""

from __future__ import annotations

import pytest

from ghostcli import plan
from ghostcli.errors import NonFiniteError
from ghostcli.recipe import load
from ghostcli.run import launch
from ghostcli.run.place import Place
from ghostcli.run.spawned import Spawned

TINY = ("data.name=digits", "data.limit=48", "data.limit_test=20", "train.batch_size=16", "train.epochs=1")


def job(seed: int, *more: str) -> plan.Job:
    found = load("smoke", [*TINY, *more])
    return plan.plain("gns:0.1", seed, found.recipe, found.name)


@pytest.mark.long
def test_two_workers_do_five_jobs(tmp_path, monkeypatch):
    hired, hire = [], Spawned._hire

    def counted(self):
        hired.append(worker := hire(self))
        return worker

    monkeypatch.setattr(Spawned, "_hire", counted)
    good, bad = [job(seed) for seed in range(4)], job(0, "optim.lr=1e30")
    options = launch.Options(tmp_path / "many", "cpu", jobs=2, quiet=True, place=Place(cpus=1))
    outcomes = {outcome.job.id: outcome.error for outcome in launch.run(plan.order([*good, bad]), options)}
    assert {name for name, error in outcomes.items() if error} == {bad.id}
    assert outcomes[bad.id].exit_code == NonFiniteError.exit_code and "became non-finite" in str(outcomes[bad.id])
    assert len(hired) <= 3, "two, and one more if a job was left when the failed worker had gone"
    assert all(worker.process.exitcode is not None for worker in hired), "none outlives the plan"

    alone = launch.Options(tmp_path / "alone", "cpu", quiet=True, place=Place(cpus=1))
    launch.carry_out(plan.order([good[-1]]), alone)
    path = f"{good[-1].id}/model.safetensors"
    assert (tmp_path / "many" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
