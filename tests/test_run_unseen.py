"""A machine that does not see the folder of the runs: one line names the machine and says what to mount.

Such a machine is a process with mount points and a host name of its own. The tests are skipped where these may not be
made.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import crash
import hosts
import pytest
import slurm

from ghostcli import plan
from ghostcli.recipe import load
from ghostcli.run import queue, spec
from ghostcli.run.job import Options
from ghostcli.run.place import Place

pytestmark = pytest.mark.skipif(not hosts.namespaces(), reason="this user may not make mount points of its own")


def there(hidden: Path, *words: object, shown: Path | None = None, stdin: str | None = None):
    """A finished command on the machine that does not see `hidden`."""
    given = hosts.blind(hidden, *words, shown=shown)
    return subprocess.run(
        given, cwd=hidden.parent, env=crash.ENVIRONMENT, input=stdin, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def written(tmp_path) -> tuple[plan.Job, Path, Path]:
    """A job whose spec this machine wrote: the job, the folder of the runs, the spec."""
    found, runs = load("smoke", ["data.name=digits"]), tmp_path / "runs"
    job = plan.plain("gns:0.1", 0, found.recipe, found.name)
    return job, runs, spec.write(job, Options(runs), spec.mark(runs))


def test_slurms_script_says_what_to_mount(written):
    job, runs, _ = written
    done = there(runs, "bash", stdin=queue.script(job, runs, Place("slurm")))
    assert done.returncode == 2
    assert done.stderr == f"ghost: {runs} is not mounted on second: mount it at the same path on all machines\n"


def test_a_job_says_what_to_mount(written, tmp_path):
    """Where its folder is empty, and where another folder of the same name has the job without the command's mark."""
    _, runs, file = written
    words = (sys.executable, "-m", "ghostcli", "run-job", file)
    done = there(runs, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "mount the folder of the runs at the same path on all machines" in done.stderr
    other = tmp_path / "other" / file.relative_to(runs)
    other.parent.mkdir(parents=True)
    other.write_bytes(file.read_bytes())
    done = there(runs, *words, shown=tmp_path / "other")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{runs}: second does not see what was written there; mount the same file system" in done.stderr
    assert not [*runs.glob("*/s0"), *(tmp_path / "other").glob("*/s0")], "no run is begun"


def test_rays_first_task_says_what_to_mount(written):
    """The task that looks at each machine before the first job starts."""
    _, runs, file = written
    code = "import json, sys; from ghostcli.run.on_ray import look; print(json.dumps(look(*json.loads(sys.argv[1]))))"
    given = json.dumps([str(runs), spec.read(file).seen, spec.versions()])
    host, wrong, _ = json.loads(there(runs, sys.executable, "-c", code, given).stdout)
    assert host == "second" and wrong.startswith(f"{runs}: second does not see what was written there; mount the same")


@pytest.mark.long
@pytest.mark.xdist_group("slurm")
@pytest.mark.skipif(bool(slurm.missing()), reason=f"Slurm is not installed: {', '.join(slurm.missing())}")
def test_the_command_says_what_slurms_node_does_not_see(tmp_path):
    """A real node on which the folder of the runs is another file system."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            system = stack.enter_context(slurm.running())
        except (OSError, TimeoutError, subprocess.SubprocessError) as error:
            pytest.skip(f"Slurm is installed and does not start on this machine: {error}")
        system.kill("slurmd")
        system.slurmd(*hosts.blind(runs))
        words = [*crash.COMMANDS["kd"], *crash.TINY, "--on", "slurm"]
        done = subprocess.run(
            [sys.executable, "-m", "ghostcli", *words],
            cwd=tmp_path,
            env=crash.ENVIRONMENT | system.environment,
            capture_output=True,
            text=True,
            timeout=crash.HANGS,
        )
    assert done.returncode != 0 and f"is {runs} mounted at this path on its node?" in done.stderr, done.stderr
    assert "not started, its teacher" in done.stderr
