"""Commands of `ghost` that can be killed by the dozen: forked from a process that has torch imported already.

Invariant: a command runs in a process of its own, with the real entry point and the real signals; only the cost
of a new interpreter is saved. The warm process never runs a gradient, which autograd does not carry over a fork.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.sitecustomize import arm

from ghostcli.recipe import UNDIGESTED

ROOT = Path(__file__).resolve().parent.parent

#: Six updates of a network of some 45,000 parameters.
TINY = ("--data", "digits", "--epochs", "2", "--device", "cpu", "-s", "data.limit=48", "-s", "data.limit_test=48")
TINY += ("-s", "train.batch_size=16")

#: One thread everywhere, and no commit in the records: the checkout may move while the tests run.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "GIT_DIR": os.devnull}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests/faults")))
ENVIRONMENT.pop("GHOST_FAULT", None)

#: Everything that reads a clock (neither an epoch's duration nor a run's is the same twice), and the command line.
CIRCUMSTANCES = {"seconds", "images_per_second", "train_seconds", "teacher_seconds", "checksum", "command"}


#: Seconds after which a command counts as hanging. Only a guard: a busy machine may need minutes for a second's work.
HANGS = 600


# The warm process ----------------------------------------------------------------------------------------------


def serve() -> None:
    """Fork a child for each line of JSON on stdin: {"argv", "env", "cwd", "out"}; answer its pid, later its status."""
    import torch
    import typer

    torch.set_num_threads(1)
    import ghostcli.check.findings
    import ghostcli.cli
    import ghostcli.run.results
    import ghostcli.zoo.ghost
    import ghostcli.zoo.stages
    from ghostcli.data import digits
    from ghostcli.run import environment
    from ghostcli.zoo import ghost, kernels

    if "--small" in sys.argv:
        ghost.ROWS["gns"] = (ghost.GNS[0], ghost.GNS[1], ghost.GNS[3])  # a stride, a gate and a squeeze-excite
    # What every child would do again, to the same effect. An optimiser imports torch's compiler: that takes two
    # seconds, and under a limit of memory it raises whatever it likes. Typer builds 40 commands from their signatures.
    import torch._dynamo

    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(ghostcli.cli.app)
    kernels.status()
    environment.commit()
    platform.platform()
    digits.read = functools.cache(digits.read)
    digits.read("digits", Path("data"))
    ghostcli.cli.train.draw_curves = lambda *_: None  # after the run is done, and slower than all of it
    gc.freeze()  # what is shared stays shared: a collection would copy it into every child
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "argv" in order:
            pid = os.fork()
            if pid == 0:
                _child(order)
            answer: Any = pid
        else:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)
    os._exit(0)


def _child(order: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(order["cwd"])
        os.environ.update(order["env"])
        arm()
        nothing = os.open(os.devnull, os.O_RDWR)
        out = os.open(order["out"] + ".out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        err = os.open(order["out"] + ".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, source in enumerate((nothing, out, err)):
            os.dup2(source, number)
        sys.argv = ["ghost", *order["argv"]]
        if order["before"]:
            exec(order["before"], {})
        from ghostcli.cli import main

        main()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# Its client ----------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """A `ghost` command under way, or ended: `code` is negative for the signal that killed it."""

    server: Server
    pid: int
    log: str
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def wait(self, timeout: float = HANGS) -> int:
        if not self.until(lambda: False, timeout) and self.poll() is None:
            self.kill()
            raise TimeoutError(f"{self.log}: not over after {timeout} s\n{self.err}")
        assert self.code is not None
        return self.code

    def until(self, happened: Callable[[], bool], timeout: float = HANGS) -> bool:
        """Wait for something to happen while the command runs; False where the command ended first."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if happened():
                return True
            if self.poll() is not None:
                return happened()
            time.sleep(0.002)
        return False

    def send(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """kill -9, and wait for the end; returns the exit code, which may be an earlier one."""
        self.send(signal.SIGKILL)
        return self.wait()

    @property
    def out(self) -> str:
        return self._read(".out")

    @property
    def err(self) -> str:
        return self._read(".err")

    def _read(self, suffix: str) -> str:
        path = Path(self.log + suffix)
        return path.read_text() if path.exists() else ""


@dataclass
class Server:
    """The warm process and its pipe."""

    process: subprocess.Popen[str]
    logs: Path
    started: list[Command] = field(default_factory=list)

    def ask(self, order: dict[str, Any]) -> Any:
        self.process.stdin.write(json.dumps(order) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self.process.stdout.readline())  # type: ignore[union-attr]

    def start(self, argv: Sequence[Any], cwd: Path, env: dict[str, str] | None = None, *, before: str = "") -> Command:
        """Begin `ghost ARGV` in `cwd`. `before` is Python that runs first in its process: limits, patches."""
        log = str(self.logs / f"command{len(self.started)}")
        order = {"argv": [str(a) for a in argv], "cwd": str(cwd), "env": env or {}, "out": log, "before": before}
        command = Command(self, self.ask(order), log)
        self.started.append(command)
        return command

    def run(self, argv: Sequence[Any], cwd: Path, env: dict[str, str] | None = None, **more: Any) -> Command:
        command = self.start(argv, cwd, env, **more)
        command.wait()
        return command


@contextmanager
def warm(logs: Path, small: bool = True) -> Iterator[Server]:
    """A server; what it started and still runs is killed at the end. `small`: three rows to a network, not ten."""
    process = subprocess.Popen(
        [sys.executable, __file__, *(["--small"] if small else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=logs,
    )
    server = Server(process, logs)
    assert json.loads(process.stdout.readline()) == "ready"  # type: ignore[union-attr]
    try:
        yield server
    finally:
        for command in server.started:
            if command.code is None:
                command.kill()
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(HANGS)


# What must be equal --------------------------------------------------------------------------------------------


def strike(where: str, number: int = signal.SIGTERM, nth: int = 1, times: int = 1) -> str:
    """Python for `before`: the `nth` call of a function, `MODULE:NAME`, first sends its process a signal."""
    module, _, name = where.partition(":")
    return f"""
import importlib, os
owner = importlib.import_module({module!r})
*path, name = {name!r}.split(".")
for part in path:
    owner = getattr(owner, part)
original, strikes = getattr(owner, name), []
def struck(*args, **kwargs):
    strikes.append(1)
    if len(strikes) == {nth}:
        for _ in range({times}):
            os.kill(os.getpid(), {int(number)})
    return original(*args, **kwargs)
setattr(owner, name, struck)
"""


def without_circumstances(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in CIRCUMSTANCES} if isinstance(value, dict) else value


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished run directory must say again, whatever happened on the way."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {
        "status": json.loads((run / "status.json").read_text())["status"],
        "weights": (run / "model.safetensors").read_bytes(),
        "predictions": (run / "predictions.npz").read_bytes(),
        "metrics": [without_circumstances(json.loads(line)) for line in lines],
        "result": without_speed(without_circumstances(json.loads((run / "result.json").read_text()))),
    }


def without_speed(result: dict[str, Any]) -> dict[str, Any]:
    """A result whose recipe lacks the keys that change no result: a test may set them on one side only."""
    for path in UNDIGESTED:
        section, _, key = path.partition(".")
        result["recipe"][section].pop(key)
    return result


def outcomes(runs: Path) -> dict[str, dict[str, Any]]:
    """The outcome of every run directory under `runs`; what was set aside is none."""
    found = sorted(path for path in runs.glob("*/s*/status.json") if path.parent.name[1:].isdecimal())
    return {str(s.parent.relative_to(runs)): outcome(s.parent) for s in found}


def differences(expected: dict[str, dict[str, Any]], runs: Path) -> list[str]:
    """Where the runs under `runs` are not what they are without interruption, in words; [] where they are."""
    found = outcomes(runs)
    wrong = [f"{name}: missing" for name in expected if name not in found]
    wrong += [f"{name}: not expected" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        wrong += [f"{name}: {part}" for part in expected[name] if expected[name][part] != found[name][part]]
    return wrong


# What the tests share -------------------------------------------------------------------------------------------

COMMANDS = {
    "plain": ["train-teacher", "gns:0.1"],
    "kd": ["distill", "gns:0.15", "--student", "gns:0.1"],
    "live": ["distill", "gns:0.15", "--student", "gns:0.1", "-s", "distill.source=live"],
    "chain": ["assist-chain", "gns:0.2", "gns:0.15", "--student", "gns:0.1"],
}


@functools.cache
def server() -> Server:
    """One warm process for the whole session."""
    stack = ExitStack()
    atexit.register(stack.close)
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ghost-crash-")))
    return stack.enter_context(warm(logs))


@functools.cache
def teacher() -> Path:
    """A folder with the finished teacher of the kd command, without a table. To be copied."""
    runs = server().logs / "teacher"
    command = server().run(["train-teacher", "gns:0.15", *TINY, "--runs", runs], server().logs)
    assert command.code == 0, command.err
    return runs


@functools.cache
def uninterrupted(name: str, *more: str) -> tuple[dict[str, dict[str, Any]], float]:
    """The outcomes of a command that nobody disturbs, and the seconds it takes."""
    runs = server().logs / f"{name}{abs(hash(more))}"
    began = time.monotonic()
    command = server().run([*COMMANDS[name], *TINY, *more, "--runs", runs], server().logs)
    assert command.code == 0, command.err
    return outcomes(runs), time.monotonic() - began


def at_work(runs: Path, command: Command) -> bool:
    """Whether the command has begun a run of its own: only then is a kill worth its cost."""
    for status in runs.glob("*/s*/status.json"):
        with suppress(FileNotFoundError):
            lease = lease_of(status.parent)
            if json.loads(status.read_text())["status"] == "running" and lease["pid"] == command.pid:
                return True
    return False


def lease_file(run: Path) -> Path | None:
    """The file of the process that works on a run; None if nobody does."""
    return next(iter(run.with_name(run.name + ".lease").glob("*")), None)


def lease_of(run: Path) -> dict[str, Any]:
    """What that file says; {"pid": None} if nobody works on the run."""
    file = lease_file(run)
    return json.loads(file.read_text()) if file else {"pid": None}


def place(runs: Path) -> str:
    """Where a killed command was, as far as its files tell."""
    states = {s.parent: json.loads(s.read_text())["status"] for s in runs.glob("*/s*/status.json")}
    done = f"run {sum(state == 'done' for state in states.values()) + 1}"
    now = next((run for run, state in states.items() if state != "done"), None)
    if now is None:
        return f"{done}: not begun"
    saved = [path for name in ("fresh", "last") if (path := now / f"checkpoint/{name}.safetensors").exists()]
    at = "no checkpoint yet"
    if saved:
        with open(saved[0], "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        meta = json.loads(header["__metadata__"]["ghost"])["meta"]
        at = f"checkpoint of epoch {meta['epoch']}, batch {meta['batch']}"
    left = [path.name for path in (*now.rglob(".*.tmp"), *now.rglob("fresh*"))]
    return f"{done}: {at}" + (f", {re.sub('[0-9]+[.]tmp', 'tmp', left[0])} left" if left else "")


def kill_loop(
    server: Server,
    argv: Sequence[str],
    expected: dict[str, dict[str, Any]],
    usual: float,
    folder: Path,
    kills: int,
    rng: random.Random,
    seconds: float = 600,
) -> list[str]:
    """Kill -9 `argv` at random and start it again until it is done, and all over again, `kills` times in all.

    Whenever it is done, what it left must be what is `expected`: AssertionError otherwise. `usual` is how long it
    takes undisturbed. Returns where each kill struck.
    """
    places: list[str] = []
    end, attempt = time.monotonic() + seconds, 0
    while len(places) < kills:
        assert time.monotonic() < end, f"only {len(places)} kills in {seconds} s"
        attempt += 1
        runs = folder / f"runs{attempt}"
        while True:
            command = server.start([*argv, "--runs", runs], folder)
            command.until(lambda c=command, r=runs: at_work(r, c))
            delay = rng.uniform(0, 0.7 * usual)
            command.until(lambda: False, delay)
            code = command.kill() if len(places) < kills else command.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"{code}: {command.err}"
            places.append(place(runs))
        wrong = differences(expected, runs)
        assert not wrong, f"after {len(places)} kills: {wrong}"
    return places


if __name__ == "__main__":
    serve()
