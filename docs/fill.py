"""Writes the tables of the documentation from committed records: what is between `<!-- NAME -->` and `<!-- end -->`.

python docs/fill.py
"""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ghostcli import zoo
from ghostcli.comparison import against, power, tables
from ghostcli.comparison.admission import admit
from ghostcli.comparison.rows import Options, Row
from ghostcli.comparison.verdicts import UNDECIDED
from ghostcli.records import record, trained
from ghostcli.render import text_table

ROOT = Path(__file__).resolve().parent.parent
INFERENCE = "deploy form channels_last / train form NCHW"
STUDIES, RESULTS = ROOT / "runs" / "studies", ROOT / "benchmarks" / "results"
#: Strategy of a run -> how the demo calls this way of learning.
WAYS = {"plain": "alone", "kd": "one teacher", "chain": "via an assistant", "ensemble": "two teachers"}
#: The studies of docs/study.md.
CIFAR10 = ("cifar10", "cifar10-64", "cifar10-ways")
#: A study of the demo's question -> what differs from the demo.
AGAIN = {
    "demo": "the demo as it is",
    "demo-avx2": "on a processor without AVX-512",
    "demo-seeds": "a new teacher (seed 1), new students (seeds 5 to 9)",
}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))


def rows_of(runs: list[record.RunRecord]) -> list[Row]:
    """The rows that some run fills, of all tables."""
    return [row for one in tables.judged(tables.every(admit(runs))) for row in one.filled]


def students(study: str) -> list[Row]:
    """The rows of a study's students `gns:0.2`, the untaught first."""
    order = list(WAYS)
    mine = [row for row in rows_of(record.scan(STUDIES / study)) if row.student == "gns:0.2"]
    return sorted(mine, key=lambda row: order.index(row.group.about.strategy))


def accuracy(row: Row) -> str:
    return text_table.accuracy(row.ours, row.group).rstrip("†")


def against_base(row: Row) -> str:
    return "" if row.delta is None else text_table.interval(row.delta).rstrip("†")


def verdict(row: Row) -> str:
    if row.delta is None:
        return ""
    return (row.verdict or "") + " (1 run)" * row.delta.of_two_networks


def demo() -> str:
    rows = [
        [WAYS[row.group.about.strategy], accuracy(row), against_base(row), verdict(row)] for row in students("demo")
    ]
    return table(["how it learnt", "accuracy, %", "against alone [95 %]", "verdict"], rows)


def study(name: str = "cifar10") -> str:
    """The students of a study of docs/study.md, the untaught first. Each control follows what it is the control of."""
    found = [row for row in rows_of(record.scan(STUDIES / name)) if row.student == "gns:0.25"]
    rows = []
    for row in sorted(found, key=lambda row: (row.taught, row.group.strategy)):
        how = f"taught: {row.group.how}" if row.taught else "alone"
        rows.append([how, accuracy(row), against_base(row), verdict(row)])
        if row.control and row.control.group:
            gain = text_table.interval(row.control.delta).rstrip("†")
            rows.append(["control: a blind teacher", text_table.accuracy(row.control.ours, row.control.group), "", ""])
            rows.append(["taught minus control", "", gain, row.control.verdict or ""])
    return table(["how it learnt", "accuracy, %", "gain [95 %]", "verdict"], rows)


def together() -> str:
    """What one correction over all studies of docs/study.md makes of the first one's verdict."""
    runs = {run.id: run for study in CIFAR10 for run in record.scan(STUDIES / study)}
    rows = rows_of(list(runs.values()))
    deltas = [row.delta for row in rows] + [row.control.delta for row in rows if row.control]
    several = [delta for delta in deltas if delta and not delta.of_two_networks]
    [mine] = (row for row in rows if row.delta and row.group.strategy == "kd" and row.group.about.epochs == 16)
    return (
        f"Each table is a study of its own, with its own correction. One correction over all {len(several)} "
        f"comparisons of this page would make the first gain, {mine.delta.mean:+.2f}, "
        f"*{mine.verdict}* (p = {mine.p_adjusted:.3f})."
    )


def compared(study: str, whole: str) -> str:
    """The trainings of a study against the one whose command sets no key; `whole` is what that one is called."""
    runs = record.scan(STUDIES / study)
    jobs = {run.id.rpartition("/")[0]: "-s" in run.setup.command for run in runs if run.setup}
    options = Options(runs=STUDIES / study)
    [judged] = tables.judged([against.table(sorted(jobs, key=lambda job: (jobs[job], job)), admit(runs), options)])
    base, *others = judged.rows
    rows = [[whole, accuracy(base), "", ""]]
    for row in sorted(others, key=lambda row: row.delta.mean):
        keys = ", ".join(f"`{key} = {json.dumps(value)}`" for key, (_, value) in row.differs.items() if "." in key)
        rows.append([keys, accuracy(row), against_base(row), verdict(row)])
    return table(["training", "accuracy, %", "difference [95 %]", "verdict"], rows)


def again() -> str:
    rows = []
    for study, what in AGAIN.items():
        alone, taught, *_ = students(study)
        rows.append([what, f"`{study}`", accuracy(alone), accuracy(taught), against_base(taught), verdict(taught)])
    return table(["what", "records", "alone, %", "taught, %", "difference [95 %]", "verdict"], rows)


def certain() -> str:
    """How often a demo would find its difference, with the spread of all recorded pairs."""
    pairs = []
    for study in AGAIN:
        sides: dict[str, dict[int, float]] = {"plain": {}, "kd": {}}
        for run in record.scan(STUDIES / study):
            if run.result and run.result.student == "gns:0.2" and run.result.strategy in sides:
                sides[run.result.strategy][run.result.seed] = run.result.accuracy.selected
        pairs.append([sides["kd"][seed] - alone for seed, alone in sorted(sides["plain"].items())])
    effect = statistics.mean(value for part in pairs for value in part)
    variance, seeds = statistics.mean(statistics.variance(part) for part in pairs), len(pairs[0])
    often, count = power.found(effect, [variance / seeds], [seeds - 1.0]), sum(map(len, pairs))
    return f"With the mean and spread of these {count} pairs, about {100 * often:.0f} of 100 demos find a difference."


def choice() -> str:
    rows = []
    for name, found in results("demo-choice").items():
        mean, low, high = found["difference"]
        sides = [f"{found[side]['mean']:.2f} ± {found[side]['sd']:.2f}" for side in ("alone", "taught")]
        rows.append([name, *sides, f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"])
    return table(["setting", "alone, %", "taught, %", "difference [95 %, over seeds]"], rows)


def own_images() -> str:
    rows = []
    for way, runs in results("own-images").items():
        if way == "others":
            continue
        names = sorted(each["class"] for each in runs[0]["by_class"])
        shares = {n: [e["accuracy"] for run in runs for e in run["by_class"] if e["class"] == n] for n in names}
        cells = [spread([run["class_mean"] for run in runs]), *(f"{statistics.mean(shares[n]):.1f}" for n in names)]
        rows.append([way, *cells])
    return table(["training", "mean over classes, %", *(f"{name}, %" for name in names)], rows)


def newcomer() -> str:
    found = results("newcomer")
    minutes = found["minutes to"]
    seconds = {name: f"{value:,.0f}" for name, value in found["seconds"].items()}
    rows = [[name, value] for name, value in seconds.items()]
    verdict, prediction = minutes["first verdict"], minutes["first own-image prediction"]
    said = (
        f"From the clone it took {verdict:.1f} minutes to the first verdict, and {prediction:.1f} minutes to the first "
        f"answer about a picture of one's own. The machine had {found['machine']['cores']} cores, and about "
        f"{found['machine']['load'][1]:.0f} processes were busy on them."
    )
    return f"{said}\n\n{table(['step', 'seconds'], rows)}"


def networks() -> str:
    rows = []
    for name in trained.shipped():
        run = trained.find(ROOT / "runs", name)
        found = run.result
        taught = ", ".join(found.path) or "no teacher"
        seeds = list(json.loads((run.path / "seeds.json").read_text()).values())
        spread = f"{statistics.mean(seeds):.2f}" + (f" ± {statistics.stdev(seeds):.2f}" if len(seeds) > 1 else "")
        network = zoo.deploy(zoo.build(found.student, found.classes))
        costs = [f"{zoo.count_parameters(network):,}", f"{zoo.count_macs(network) / 1e6:.2f} M"]
        reached = [f"{found.accuracy.selected:.2f}", f"{spread} ({len(seeds)})"]
        recipe = f"`{found.recipe_name}`, {found.epochs} epochs"
        size = f"{run.weights.stat().st_size / 1e6:.2f}"
        rows.append([f"`{name}`", found.data, *costs, *reached, recipe, taught, size])
    costs = ["parameters, deployed", "MACs, deployed"]
    titles = ["network", "data", *costs, "accuracy, %", "all seeds, %", "recipe", "taught by", "MB"]
    return table(titles, rows)


def formats() -> str:
    found = results("formats")
    proven = [row for row in found["rows"] if not row["problem"]]
    rows = []
    for row in proven:
        within = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        speed = row["images_per_second"]
        cells = [f"`{row['format']}`", row["runtime"], f"{row['bytes'] / 1000:,.0f}", f"{row['accuracy']:.2f}", within]
        rows.append([*cells, f"{row['latency_ms']['median']:.2f}", f"{speed:,.0f}" if speed else "-"])
    times = ["ms, one image", "images/s, batches of 256"]
    titles = ["format", "runtime", "kB", "accuracy, %", "difference [95 %]", *times]

    def least(value: Callable[[Any], float], int8: bool) -> float:
        return min(value(row) for row in proven if row["format"].endswith("int8") == int8 and row["images_per_second"])

    one, many = (
        least(value, False) / least(value, True)
        for value in (lambda row: row["latency_ms"]["median"], lambda row: 1 / row["images_per_second"])
    )
    said = (
        f"`{found['network']}`, {found['cores']} cores of an {found['processor']} ({', '.join(found['integers'])}). "
        f"The fastest integers are {one:.2f} x as fast as the fastest float for one image, {many:.2f} x for batches."
    )
    return f"{said}\n\n{table(titles, rows)}"


def peers() -> str:
    found = results("peers")
    machine, versions = found["machine"], found["versions"]
    rows = []
    for student, raced in found["students"].items():
        faster = raced["ghost's times faster"]
        for lesson, ways in raced["epochs"].items():
            for way, one in ways.items():
                pairs = [faster.get(f"{ours} / {way}, {lesson}") for ours in (lesson, f"{lesson} again")]
                ratios = [f"{pair['ratio']:.2f} x" if pair else "" for pair in pairs]
                cells = [f"{one['seconds']['median']:.2f}", f"{one['images/s']:,.0f}", *ratios, f"{one['MiB']:,.0f}"]
                rows.append([f"`{student}`", lesson, way, *cells])
    titles = ["student", "epoch", "trained by", "seconds", "images/s", "ghost", "ghost, again", "peak, MiB"]
    said = (
        f"{machine['device']}, {machine['cores']} cores, load {machine['load']:.1f}. An epoch of {found['images']:,} "
        f"images, batches of {found['batch']}, teacher `{found['teacher']}`, {found['rounds']} rounds. "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}."
    )
    return f"{said}\n\n{table(titles, rows)}"


def engine(name: str = "engine-cpu") -> str:
    """The engine's ratios; how each contestant is called in the record."""
    found = results(name)

    def faster(part: str, name: str) -> str:
        return f"{found[part]['times faster'][name]['ratio']:.2f} x"

    kernel, plain = "folded, kernel", "plain NCHW"
    rows = [
        ["training step, folded with kernel", "plain multi-branch, NCHW", faster("step", f"{kernel} / {plain}")],
        ["training step, folded without kernel", "the same", faster("step", f"folded, no kernel / {plain}")],
        [
            "an epoch on real CIFAR-10 images",
            "plain NCHW fed by per-image torchvision transforms, 2 workers",
            faster("epoch", "engine, resident data / plain NCHW, 2 loader workers"),
        ],
        ["KD step fed from a table", "the untaught step", faster("teaching", "taught from a table / untaught")],
        ["KD step, ResNet-18 computed live", "the untaught step", faster("teaching", "taught live / untaught")],
        ["inference, deploy form, batch 256", "train form, NCHW", faster("inference", INFERENCE)],
        ["inference, deploy form, batch 1", "train form, NCHW", faster("latency", INFERENCE)],
    ]
    share = found["memory"]["share"][f"{kernel} / {plain}"]
    said = (
        f"{found['machine']['device']}, torch {found['machine']['torch']}, `{found['model']}`, batches of "
        f"{found['batch']}. A step of the folded network with kernel needs {share:.2f} x the memory of the plain one."
    )
    return f"{said}\n\n{table(['what', 'against', 'times as fast'], rows)}"


def scale() -> str:
    found = results("scale")
    counts = list(next(iter(found["figures"].values())))
    rows = []
    for command, sizes in found["figures"].items():
        seconds = [f"{sizes[count]['seconds']:.1f}" for count in counts]
        rows.append([command, *seconds, f"{max(size['megabytes'] for size in sizes.values())}"])
    said = f"{found['machine']}, load {found['load']}."
    return f"{said}\n\n{table(['command', *(f'{int(count):,} runs, s' for count in counts), 'at most, MB'], rows)}"


def calibration() -> str:
    """Verdicts on real trainings, by the number of runs on a side."""
    groups = results("calibration")["groups"]
    rows = []

    def add(what: str, difference: str, counted: Sequence[dict[str, Any]]) -> None:
        for one in counted:
            shares = [f"{100 * one[verdict]:.1f}" for verdict in ("better", "worse", "equivalent", UNDECIDED)]
            rows.append([what, difference, f"{one['runs a side']}", *shares, f"{one['apart']}"])

    for group in groups:
        add(f"{group['epochs']} epochs, nothing differs", "0", group["nothing differs"])
    for group in groups:
        for other in group["against"]:
            difference = f"{other['difference']:+.2f} ± {other['its standard error']:.2f}"
            add(f"{group['epochs']} against {other['epochs']} epochs", difference, other["verdicts"])
    of = " and ".join(f"{group['mean']:.2f} ± {group['sd']:.2f} % ({group['epochs']} epochs)" for group in groups)
    said = f"`{groups[0]['student']}`, {groups[0]['runs']} seeds of each training: {of}."
    verdicts = ["better, %", "worse, %", "equivalent, %", "not distinguished, %"]
    return f"{said}\n\n{table(['what', 'true difference', 'runs a side', *verdicts, 'apart'], rows)}"


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


MADE: dict[str, Callable[[], str]] = {
    "demo": demo,
    "study": study,
    "study-64": functools.partial(study, "cifar10-64"),
    "study-ways": functools.partial(study, "cifar10-ways"),
    "study-together": together,
    "confound": functools.partial(compared, "confound", "shuffled, as the paper says"),
    "ablation": functools.partial(compared, "ablation", "`ghost/fast` as it is"),
    "again": again,
    "certain": certain,
    "choice": choice,
    "calibration": calibration,
    "own-images": own_images,
    "newcomer": newcomer,
    "networks": networks,
    "formats": formats,
    "engine": engine,
    "engine-avx2": functools.partial(engine, "engine-avx2"),
    "scale": scale,
    "peers": peers,
}


def filled(text: str) -> str:
    """A page with its tables made anew."""

    def put(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{MADE[found[1]]()}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(MADE)}) -->\n.*?<!-- end -->", put, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if (new := filled(page.read_text())) != page.read_text():
            page.write_text(new)
            print(page.relative_to(ROOT))
