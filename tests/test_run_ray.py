"""`--on ray`, on a Ray cluster of three nodes on this machine: the same bytes as here, whatever is lost on the way.

Skipped, by name, where Ray is not installed (`pip install 'ghostcli[ray]'`).
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
from collections import Counter
from types import SimpleNamespace

import clusters
import crash
import psutil
import pytest
from clusters import GRAPHS, KD, LONG, differences, trains, until

from ghostcli.errors import UsageError
from ghostcli.run import on_ray, spec
from ghostcli.run.job import Options

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ghostcli[ray]'")

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster():
    """Three nodes with one core each, and a port for Ray's client."""
    from ray.cluster_utils import Cluster

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    before = dict(os.environ)
    # Ray's own niceness, 15, starves the jobs beside other work.
    more = {name: crash.ENVIRONMENT[name] for name in ("PYTHONPATH", "GIT_DIR")}  # of the processes on its nodes
    more |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ.update(more)
    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port}
    try:
        nodes = Cluster(initialize_head=True, head_node_args=head)
        nodes.more = [nodes.add_node(num_cpus=1) for _ in range(2)]
    except Exception as error:  # Ray raises many kinds
        pytest.skip(f"Ray is installed and does not start on this machine: {error}")
    nodes.client = f"ray://127.0.0.1:{port}"
    yield nodes
    nodes.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def ghost(cluster, tmp_path):
    return functools.partial(clusters.ghost, tmp_path, {"RAY_ADDRESS": cluster.address})


HERE, LOST = "0f" * 28, "f0" * 28  # ids of machines


@pytest.mark.parametrize("left", [[HERE], [HERE, LOST]])
def test_a_machine_that_is_lost_while_it_is_asked(tmp_path, left):
    """It gets no jobs. One that is there and fails is an error."""
    lines, alive = [], [[HERE, LOST], left]

    def answer(node, timeout):
        if node == LOST:
            raise ray.exceptions.RayError("the node is dead or unavailable")
        return "one", "", spec.require_seen(tmp_path, executor.seen, "one")

    class Asked:
        def options(self, scheduling_strategy):
            return SimpleNamespace(remote=lambda *_: scheduling_strategy.node_id)

    executor = on_ray.Ray(Options(tmp_path, "cpu", quiet=True), 1)
    executor.show = SimpleNamespace(warn=lines.append)
    executor.seen = spec.mark(tmp_path)
    executor.ray = SimpleNamespace(remote=lambda **_: lambda _: Asked(), get=answer, exceptions=ray.exceptions)
    executor._nodes = lambda: dict.fromkeys(alive[0] if len(alive) == 1 else alive.pop(0))
    if LOST in left:
        with pytest.raises(UsageError, match="ghost cannot start on the machine f0f0f0f0"):
            executor._require_same_everywhere()
    else:
        executor._require_same_everywhere()
        assert lines == ["Ray: the machine f0f0f0f0 was lost while it was asked"]


@pytest.mark.long
def test_the_same_bytes(ghost, tmp_path):
    done = ghost(*KD, "--on", "ray", "--json")
    assert done.returncode == 0 and json.loads(done.out)["status"] == "done", done.err
    assert done.err.count("epoch 2/2") == 2 and "Traceback" not in done.err
    assert not differences(tmp_path / "runs")
    again = ghost(*KD, "--on", "ray")
    assert again.returncode == 0 and "found, finished earlier" in again.err


@pytest.mark.long
def test_a_chain_and_an_ensemble_have_the_same_bytes(ghost, tmp_path):
    """Two commands that share teachers: five runs, each once, as many at a time as there are nodes."""
    for command in GRAPHS:
        done = ghost(*command, "--on", "ray")
        assert done.returncode == 0, done.err
    assert not differences(tmp_path / "runs", *GRAPHS)
    assert len(list(tmp_path.glob("runs/*/s0/result.json"))) == 5


@pytest.mark.long
def test_a_fresh_start_renames_all_runs_before_the_first_begins(ghost, tmp_path):
    """So the same command without --no-resume, after a stop, finds none of them."""
    seeds = [*crash.COMMANDS["plain"], *crash.TINY, "--seed", "0", "--seed", "1"]
    assert ghost(*seeds).returncode == 0
    done = ghost(*seeds, "--on", "ray", "--jobs", "1", "--no-resume")
    assert done.returncode == 0 and done.err.count("was renamed to") == 2, done.err
    assert done.err.rindex("was renamed to") < done.err.index("epoch 2/2")


@pytest.mark.long
def test_through_rays_client(ghost, cluster, tmp_path):
    done = ghost(*KD, "--on", cluster.client)
    assert done.returncode == 0, done.err
    assert not differences(tmp_path / "runs")


@pytest.mark.long
def test_ctrl_c_saves_on_every_node(ghost, tmp_path):
    command = ghost(*LONG, "--on", "ray", wait=False)
    until(lambda: trains(tmp_path))
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 75 and "the same command goes on" in err, err
    [status] = tmp_path.glob("runs/*/s0/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"
    assert ghost(*LONG, "--on", "ray").returncode == 0
    assert not differences(tmp_path / "runs", LONG)


@pytest.mark.long
def test_the_command_is_killed(ghost, tmp_path):
    """Its tasks end with it, after they saved."""
    command = ghost(*LONG, "--on", "ray", wait=False)
    until(lambda: trains(tmp_path))
    command.kill()
    command.communicate()
    done = ghost(*LONG, "--on", "ray")
    assert done.returncode == 0, done.err
    assert not differences(tmp_path / "runs", LONG)


@pytest.mark.long
def test_a_lost_node_costs_the_time_since_the_last_checkpoint(ghost, cluster, tmp_path):
    command = ghost(*LONG, "--on", "ray", wait=False)
    until(lambda: trains(tmp_path))
    [file] = tmp_path.glob("runs/.jobs/*-plain-*/s0.node")
    nodes = {node.node_id: node for node in (cluster.head_node, *cluster.more)}
    lost = nodes[file.read_text()]
    if lost is cluster.head_node:  # with it the cluster is gone: lose the process instead
        [run] = tmp_path.glob("runs/*-plain-*/s0")
        os.kill(crash.lease_of(run)["pid"], signal.SIGKILL)
    else:
        cluster.remove_node(lost, allow_graceful=False)
        cluster.more.remove(lost)
        cluster.more.append(cluster.add_node(num_cpus=1))
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 0 and "it goes on from its last checkpoint" in err, err
    assert not differences(tmp_path / "runs", LONG)


@pytest.mark.long
def test_a_job_avoids_a_node_on_which_it_was_lost_twice(ghost, cluster, tmp_path):
    """Its process is killed as soon as it begins, wherever that is. Since it never saves anything, that has an end."""
    command = ghost(*crash.COMMANDS["plain"], *crash.TINY, "--on", "ray", wait=False)
    killed: dict[int, str] = {}  # process -> node

    def kill() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "run-job" in words and any(str(tmp_path) in word for word in words) and process.pid not in killed:
                [node] = tmp_path.glob("runs/.jobs/*/s0.node")
                killed[process.pid] = node.read_text()
                process.kill()
        return command.poll() is not None

    until(kill)
    _, err = command.communicate(timeout=crash.HANGS)
    assert command.returncode == 1 and "4 times in a row, and nothing was saved in between" in err, err
    assert err.count("it goes on from its last checkpoint") == 3, err
    assert Counter(killed.values()).most_common(1)[0][1] == 2 and len(killed) == 4, killed


@pytest.mark.long
def test_a_job_that_fails_by_itself_is_not_tried_again(ghost, tmp_path):
    done = ghost(*crash.COMMANDS["plain"], *crash.TINY, "--on", "ray", "-s", "optim.lr=1e30")
    assert done.returncode == 3 and "non-finite" in done.err, done.err
    [log] = tmp_path.glob("runs/.jobs/*/s0.log")
    assert log.read_text().count("became non-finite") == 1


BAD = {
    "GPUs": (
        ["--on", "ray", "--gpus-per-job", "2"],
        "no machine of the Ray cluster has so many (the largest has 0 GPUs)",
    ),
    "cores": (["--on", "ray", "--cpus-per-job", "64"], "the largest has 1 cores"),
    "nobody": (["--on", "ray://127.0.0.1:1"], "nobody answers at ray://127.0.0.1:1"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_at_once(ghost, tmp_path, case):
    flags, told = BAD[case]
    done = ghost(*crash.COMMANDS["plain"], *crash.TINY, *flags)
    assert done.returncode == 2 and told in done.err and done.err.count("\n") == 1, done.err
