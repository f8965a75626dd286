"""`--jobs auto`: how many runs at a time are fastest on this machine, from a curve that was measured once.

Invariant: the curve is of training steps of the plan's most frequent network with its batch and image size, in as many
processes as are compared. It is kept in the user's cache folder under the machine's name, and measured again for
another device, network, batch or image size, number of threads or version.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace

from ghostcli import __version__
from ghostcli.display import console
from ghostcli.errors import GhostError, printable
from ghostcli.machine import cores
from ghostcli.plan import Job, Plan
from ghostcli.records.storage import read_or_empty, write_json
from ghostcli.run.job import AUTO, Options, left
from ghostcli.zoo.own import cache_folder

#: Numbers of processes to compare, as far as there are cores, or without that limit on a GPU.
NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16)
#: Seconds of steps in each process, after two that warm up.
SECONDS = 4.0
#: A number of processes must be faster by this share to be chosen instead of a smaller one, or to try a larger one.
SHARE = 0.03

Curve = dict[int, float]  # processes -> images per second, all together


def packed(plan: Plan, options: Options) -> Options:
    """The options with a number of runs at a time. It is printed if it was to be found."""
    if options.jobs != AUTO:
        return options
    count, why = choose(left(plan, options), options)
    console.print(why, markup=False)
    return replace(options, jobs=count)


def choose(jobs: list[Job], options: Options) -> tuple[int, str]:
    """The number of runs at a time for these jobs, and a line that says why."""
    if len(jobs) < 2:
        return 1, "--jobs auto: 1 at a time, since one run is left"
    (student, batch, side), _ = Counter(map(_steps, jobs)).most_common(1)[0]
    device, cores = _device(options.device)
    threads = f"{options.place.cpus or 'shared'} threads"
    key = f"{device}, {student}, batch {batch} of {side} pixels, {threads}, ghost {__version__}"
    file, host = cache_folder() / "packing.json", socket.gethostname()
    known = read_or_empty(file, dict[str, dict[str, Curve]])
    curve, how = known.get(host, {}).get(key), "measured earlier"
    if not curve:
        curve, how = measured(student, batch, side, options, cores), "measured now"
        if not curve:
            why = f"the speed of {printable(student)} could not be measured (--jobs 2 shows why)"
            return 1, f"--jobs auto: 1 at a time, since {why}"
        known.setdefault(host, {})[key] = curve
        with contextlib.suppress(OSError, GhostError):  # then it is measured again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, known, "packing")
    count = min(best(curve), len(jobs))
    rates = ", ".join(f"{number}: {rate:,.0f}" for number, rate in curve.items())
    return count, (
        f"--jobs auto: {count} at a time. {printable(student)} on {printable(host)} ({device}) trains, in images/s by "
        f"number of processes: {rates} ({how}, kept in {printable(file)})"
    )


def _steps(job: Job) -> tuple[str, int, int]:
    """What decides the speed of a job's steps: network, batch size, side of an image in pixels."""
    return job.student, job.recipe.train.batch_size, job.recipe.data.side


def best(curve: Curve) -> int:
    """The smallest number of processes with (almost) the largest throughput."""
    most = max(curve.values())
    return min(count for count, rate in curve.items() if rate * (1 + SHARE) >= most)


def measured(student: str, batch: int, side: int, options: Options, cores: int | None) -> Curve:
    """Measure until more processes are no longer faster, or one of them fails, as without memory."""
    curve: Curve = {}
    for count in (number for number in NUMBERS if cores is None or number <= cores):
        rates, most = together(student, batch, side, options, count), max(curve.values(), default=0.0)
        if rates is None:
            break
        curve[count] = round(sum(rates), 1)
        if curve[count] < (1 + SHARE) * most:
            break
    return curve


def together(
    student: str, batch: int, side: int, options: Options, count: int, seconds: float = SECONDS
) -> list[float] | None:
    """Images per second of each of `count` processes that train for `seconds` at the same time; None if one fails."""
    from ghostcli.engine.device import dealt

    threads = options.place.cpus or max(1, cores() // count)
    words = [sys.executable, "-m", "ghostcli.packing", student, str(batch), str(side), options.device]
    words += [str(threads), str(seconds)]
    more = [{"OMP_NUM_THREADS": str(threads)} | dealt(options.device, number) for number in range(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(words, env=os.environ | own, text=True, **pipes) for own in more]  # type: ignore
    try:
        if any(process.stdout.readline() != "ready\n" for process in processes):  # type: ignore[union-attr]
            return None
        for process in processes:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        lines = [process.stdout.readline() for process in processes]  # type: ignore[union-attr]
        return [float(line) for line in lines] if all(lines) else None
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _device(name: str) -> tuple[str, int | None]:
    """The device's name, and the cores that limit the number of processes; None for a GPU."""
    from ghostcli.engine.device import dealt, describe, pick

    device = pick(name)
    if device.type == "cpu":
        return describe(device).partition(", ")[0], cores()
    several = {next(iter(dealt(name, number).values()), None) for number in range(NUMBERS[-1])}
    return describe(device).partition(", ")[0] + (f" x {len(several)}" if len(several) > 1 else ""), None


def main() -> None:
    """One measuring process: say `ready` after two steps, wait for a line, say the images per second."""
    import torch

    from ghostcli.deploy.bench import training_speed
    from ghostcli.engine.device import pick

    out, sys.stdout = sys.stdout, sys.stderr  # a user's own network may print

    def ready() -> None:
        print("ready", file=out, flush=True)
        sys.stdin.readline()

    student, batch, side, device, threads, seconds = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(training_speed(student, int(batch), pick(device), float(seconds), ready, int(side)), file=out, flush=True)


if __name__ == "__main__":
    main()
