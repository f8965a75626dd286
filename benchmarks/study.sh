#!/usr/bin/env bash
# The studies of docs/study.md, in runs/study: GN-S 0.25 on all of CIFAR-10, recipe ghost/fast. For 16 epochs: alone;
# taught by GN-S 1.0; by the same teacher made blind to the image (the control). The first two for 64 epochs. Then by two
# teachers and by way of an assistant.
# The teachers were pretrained/gns-1.0 (24 epochs) and pretrained/gns-0.5 (16 epochs) as they came with ghost then: the
# networks that are trained here, rounded to float16. So the ids of taught runs differ from those in runs/studies.
# Two at a time, on one core each. Give it again after a stop: it goes on.
# `benchmarks/study.sh keep` copies what tables need to runs/studies/cifar10, cifar10-64 and cifar10-ways.
set -euo pipefail
ghost=${GHOST:-.venv/bin/ghost}
runs=${RUNS:-runs/study}
with="--recipe ghost/fast --jobs 2 --runs $runs"
three="--seed 0 --seed 1 --seed 2"
five="$three --seed 3 --seed 4"

if [ "${1:-}" = keep ]; then
  $ghost runs list --runs "$runs" --json | python3 -c '
import json, sys
for run in json.load(sys.stdin):
    name, epochs = run["run"], run["epochs"]
    if run["status"] != "done" or not name.startswith("gns-0.25-"):
        continue
    if "-ensemble-" not in name and "-chain-" not in name:
        print("cifar10-64" if epochs == 64 else "cifar10", name)
    if "-kd-" not in name and epochs == 16:
        print("cifar10-ways", name)' |
    while read -r study run; do $ghost runs study "$run" --runs "$runs" --out "runs/studies/$study"; done
  exit
fi
teacher=run/$($ghost train-teacher gns:1.0 --seed 0 $with --epochs 24 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["run"])')

$ghost distill $teacher --student gns:0.25 $five $with
$ghost train-teacher gns:0.25 $five $with
$ghost distill $teacher --student gns:0.25 $five $with -s distill.blind=true
$ghost distill $teacher --student gns:0.25 $three $with --epochs 64
$ghost train-teacher gns:0.25 $three $with --epochs 64
$ghost ensemble $teacher gns:0.5 --student gns:0.25 $three $with
$ghost assist-chain $teacher gns:0.5 --student gns:0.25 $three $with
