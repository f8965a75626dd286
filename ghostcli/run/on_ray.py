"""An executor: a Ray task for each job. The task starts `ghost run-job` and waits for it.

Invariant: no code and no result passes through Ray: a task gets the path of a spec and returns an exit code. A job
whose machine was lost goes on elsewhere; a job that failed by itself is not tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ghostcli import signals
from ghostcli.errors import GhostError, Interrupted, OutOfMemoryError, UsageError, printable
from ghostcli.plan import Job, record_of
from ghostcli.run import spec
from ghostcli.run.executor import Executor
from ghostcli.run.job import Options

#: Seconds between two looks at the tasks; for a cluster to answer; for a machine to answer; for jobs to save.
PAUSE, ANSWERS, LOOKS, SAVES = 0.2, 10.0, 60.0, 60.0
#: A job does not go back to a machine that was lost under it so often.
TWICE = 2
#: Losses in a row, with nothing saved in between, after which a job is given up: the machines are not the reason.
FRUITLESS = 4
#: What Ray says where the server of a client did not start in time.
UNREADY = "Initialization failure from server"
#: The label by which Ray knows a machine.
NODE = "ray.io/node-id"


# What runs on the machines of the cluster ----------------------------------------------------------------------


def carry(file: str, runs: str, run: str) -> int:
    """The body of a task: the exit code of `ghost run-job`. A cancelled task lets it save first."""
    import ray

    spec.path(Path(runs), run, "node").write_text(ray.get_runtime_context().get_node_id())
    with open(spec.path(Path(runs), run, "log"), "ab") as log:
        process = subprocess.Popen([*spec.argv(Path(file)), "--with-parent"], stdout=log, stderr=log)
    try:
        while process.poll() is None:
            time.sleep(PAUSE)
    except BaseException:  # Ray raises KeyboardInterrupt here
        process.terminate()
        process.wait()
        return Interrupted.exit_code
    return process.returncode


def look(runs: str, token: str, versions: dict[str, str]) -> tuple[str, str, float]:
    """The body of the first task on each machine: (its name, what is wrong, the time of the file in `runs`)."""
    host = socket.gethostname()
    try:
        spec.refuse_other_versions(versions, host)
        return host, "", spec.require_seen(Path(runs), token, host)
    except GhostError as error:
        return host, str(error), 0.0


# What runs here ------------------------------------------------------------------------------------------------


@dataclass
class Losses:
    """How often a job was lost: on each machine, and in a row with nothing saved in between."""

    nodes: Counter[str] = field(default_factory=Counter)
    in_a_row: int = 0
    saved: dict[str, int] = field(default_factory=dict)

    def add(self, node: str, saved: dict[str, int]) -> None:
        self.nodes[node] += 1
        self.in_a_row = self.in_a_row + 1 if saved == self.saved else 1
        self.saved = saved

    @property
    def avoided(self) -> set[str]:
        return {node for node, count in self.nodes.items() if count >= TWICE}


class Ray(Executor):
    """Ray holds as many tasks as have room, and queues the others. `--jobs K` limits them to K."""

    def __init__(self, options: Options, total: int) -> None:
        super().__init__(replace(options, runs=options.runs.absolute()), total)
        self.tasks: dict[Any, Job] = {}
        self.losses: defaultdict[str, Losses] = defaultdict(Losses)
        self.followed = 0.0

    @property
    def free(self) -> bool:
        return not self.options.jobs or len(self.tasks) < self.options.jobs

    def __enter__(self) -> Ray:
        try:
            import ray
        except ImportError as error:
            raise UsageError("--on ray: needs Ray; install it with pip install 'ghostcli[ray]'") from error
        self.ray = ray
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.show)
            stack.enter_context(signals.polled())
            stack.enter_context(self._connected())
            self._require_room()
            self.seen = spec.mark(self.options.runs)
            self._require_same_everywhere()
            self.carry = ray.remote(max_retries=0)(carry)  # sent to the cluster once, for all jobs
            self.stack = stack.pop_all()
        self.show.begin("runs", self.total)
        return self

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        address = self.options.place.address or os.environ.get("RAY_ADDRESS")
        _require_answer(address)
        handlers = {number: signal.getsignal(number) for number in signals.STOP}
        try:
            self._init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        except Exception as error:  # Ray raises many kinds
            first, *lines = str(error).strip().splitlines() or [type(error).__name__]
            message = printable(f"{first} {lines[-1].strip()}" if lines and first.endswith(":") else first)
            raise UsageError(f"--on ray: no connection to {address or 'a cluster'}: {message}") from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray sets its own
        try:
            yield
        finally:
            self.ray.shutdown()

    def _init(self, **options: Any) -> None:
        """`ray.init`, twice if the head of the cluster was too busy to start this client's server in time."""
        try:
            self.ray.init(**options)
        except ConnectionError as error:
            if UNREADY not in str(error):
                raise
            self.show.line("Ray started no server for this command in time; trying once more")
            self.ray.init(**options)

    def _nodes(self) -> dict[str, dict[str, float]]:
        """The machines that are alive and could hold a job: their id -> their resources."""
        place = self.options.place
        alive = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        return {
            one: has
            for one, has in alive.items()
            if has.get("CPU", 0) >= place.threads and has.get("GPU", 0) >= place.gpus
        }

    def _require_room(self) -> None:
        if self._nodes():
            return
        place = self.options.place
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus, cpus = (max((has.get(kind, 0) for has in alive), default=0) for kind in ("GPU", "CPU"))
        if place.gpus > gpus:
            flag, most = f"--gpus-per-job {place.gpus:g}", f"{gpus:g} GPUs"
        else:
            flag, most = f"--cpus-per-job {place.threads}", f"{cpus:g} cores"
        raise UsageError(f"{flag}: no machine of the Ray cluster has so many (the largest has {most}); ask for fewer")

    def _require_same_everywhere(self) -> None:
        """UsageError if a machine has other versions, or does not see what is written under the runs here."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        runs, here = self.options.runs, spec.require_seen(self.options.runs, self.seen, "this machine")
        task = self.ray.remote(num_cpus=0, max_retries=0)(look)
        nodes = {}
        for node in self._nodes():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            nodes[task.options(scheduling_strategy=there).remote(str(runs), self.seen, spec.versions())] = node
        for ref, node in nodes.items():
            try:
                host, wrong, when = self.ray.get(ref, timeout=LOOKS)
            except self.ray.exceptions.GetTimeoutError as error:
                raise UsageError(f"--on ray: the machine {node[:8]} did not answer in {LOOKS:.0f} s") from error
            except self.ray.exceptions.RayError as error:
                if node not in self._nodes():  # the jobs go to the others
                    self.show.warn(f"Ray: the machine {node[:8]} was lost while it was asked")
                    continue
                message = printable(str(error).strip().splitlines()[-1])
                raise UsageError(f"--on ray: ghost cannot start on the machine {node[:8]}: {message}") from error
            if not wrong and abs(when - here) > 1:
                wrong = f"{printable(runs)}: {host} sees another file there; mount the same file system on all machines"
            if wrong:
                raise UsageError(wrong)

    def start(self, job: Job) -> None:
        place, runs = self.options.place, self.options.runs
        file = spec.write(job, self.options, self.seen)
        spec.path(runs, job.id, "node").unlink(missing_ok=True)
        avoided = sorted(self.losses[job.id].avoided)
        away = {"label_selector": {NODE: f"!in({','.join(avoided)})"}} if avoided else {}
        task = self.carry.options(num_cpus=place.threads, num_gpus=place.gpus, name=job.id, **away)
        self.tasks[task.remote(str(file), str(runs), job.id)] = job

    def wait(self) -> list[tuple[Job, GhostError | None]]:
        ended, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=PAUSE)
        outcomes = []
        for ref in ended:
            job = self.tasks.pop(ref)
            error = self._error_of(job, ref)
            if error is not False:
                outcomes.append(self._told(job, error))
        if time.monotonic() - self.followed > 1:
            self.followed = time.monotonic()
            self._follow(self.tasks.values())
        self._end_if_told()
        return outcomes

    def _error_of(self, job: Job, ref: Any) -> GhostError | Literal[False] | None:
        """The error of a task that ended; None if its job is done; False if it was submitted again."""
        errors = self.ray.exceptions
        try:
            code = self.ray.get(ref)
        except errors.OutOfMemoryError:
            return OutOfMemoryError("its machine ran out of memory, and Ray ended it; give it more with --cpus-per-job")
        except (errors.NodeDiedError, errors.WorkerCrashedError, errors.LocalRayletDiedError, errors.ObjectLostError):
            return self._submit_after_loss(job, "its machine was lost")
        except errors.RayError as error:
            return GhostError(f"Ray: {printable(str(error).strip().splitlines()[-1])}")
        if code < 0:
            return self._submit_after_loss(job, f"its process was ended by signal {-code}")
        outcome = spec.outcome(self.options.runs, job.id)
        if outcome is not False:
            return outcome
        log = spec.path(self.options.runs, job.id, "log")
        return GhostError(f"ended with code {code} without a result; see {log}") if code else None

    def _submit_after_loss(self, job: Job, why: str) -> GhostError | Literal[False]:
        """Submit a job again after a loss, not to a machine that was lost under it twice, and not for ever."""
        try:
            node = spec.path(self.options.runs, job.id, "node").read_text()
        except OSError:
            node = "unknown"
        losses = self.losses[job.id]
        losses.add(node, record_of(job, self.options.runs).saved)
        if losses.in_a_row == FRUITLESS:
            log = spec.path(self.options.runs, job.id, "log")
            return GhostError(f"{why}, {FRUITLESS} times in a row, and nothing was saved in between; see {log}")
        if losses.nodes["unknown"] >= TWICE or not self._nodes().keys() - losses.avoided:
            times = losses.nodes.total()
            return GhostError(f"{why}, {times} times, and no other machine is left; the same command goes on")
        self.show.warn(f"{job.id}: {why} ({node[:8]}); it goes on from its last checkpoint")
        self.start(job)
        return False

    def _end(self) -> None:
        for ref in self.tasks:
            with contextlib.suppress(Exception):  # one that has just ended
                self.ray.cancel(ref)
        if self.tasks:
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=SAVES)
        self.tasks.clear()


def _require_answer(address: str | None) -> None:
    """UsageError if nobody answers at HOST:PORT. Ray itself would try for long."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--on ray: nobody answers at {printable(address)} ({error}); start the cluster first"
        ) from error
