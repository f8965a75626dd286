"""A real Slurm on this machine for the tests: munged, slurmctld and slurmd in a folder of their own, without systemd.

Invariant: it uses no file of an installed configuration and no fixed port, so several may run side by side.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

CONFIGURATION = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=1
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={port}
SlurmdPort={second}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0,default_queue_depth=2000
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=20
CompleteWait=0
SlurmdTimeout=300
InactiveLimit=0
MaxJobCount=20000
NodeName={node} NodeAddr=127.0.0.1 NodeHostname={host} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=short Nodes={node} MaxTime=1 State=UP
"""


def missing() -> list[str]:
    """The commands that are not installed."""
    where = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    return [name for name in COMMANDS if shutil.which(name, path=where) is None]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


@dataclass
class Slurm:
    """A running Slurm. `environment` is what its commands need."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str, before: Sequence[str] = ()) -> None:
        path = shutil.which(name, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
        log = open(self.folder / f"{name}.out", "ab")  # noqa: SIM115 the daemon keeps it
        self.daemons[name] = subprocess.Popen(
            [*before, path, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )
        log.close()

    def slurmd(self, *before: str) -> None:
        """Start the node. `before`: words of a command that becomes slurmd."""
        self.start("slurmd", "-D", "-N", "one", before=before)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a daemon of ours."""
        self.daemons[name].send_signal(number)
        self.daemons[name].wait(30)

    def ask(self, *words: str) -> str:
        """The output of a command of Slurm."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() or done.stderr.strip()

    def until(self, *words: str, is_: str, seconds: float = 60) -> None:
        """Wait until a command prints `is_`."""
        end = time.monotonic() + seconds
        while (said := self.ask(*words)) != is_:
            if time.monotonic() > end:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                raise TimeoutError(f"{' '.join(words)}: {said!r}, not {is_!r}\n{logs}")
            time.sleep(0.1)


@contextlib.contextmanager
def running(cpus: int = 2) -> Iterator[Slurm]:
    """A Slurm with one node, which is idle when this begins and gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="ghost-slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o755)
    port, second = free_ports(2)
    values = {
        "name": "ghost", "host": socket.gethostname(), "user": getpass.getuser(), "folder": folder, "port": port,
        "second": second, "cpus": cpus, "socket": folder / "munge.socket", "node": "one",
    }  # fmt: skip
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    system = Slurm(folder, os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path})
    try:
        munge = ["--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket", "--force"]
        munge += [f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/seed"]
        system.start("munged", *munge)
        system.start("slurmctld", "-D", "-i")
        system.slurmd()
        system.until("sinfo", "-h", "-p", "main", "-o", "%T", is_="idle")
        yield system
    finally:
        system.ask("scancel", "-p", "main", "--signal=KILL", "--full")
        for name in ("slurmd", "slurmctld", "munged"):
            if name in system.daemons and system.daemons[name].poll() is None:
                system.kill(name, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)
