#!/usr/bin/env bash
# The study of docs/study.md, in runs/study: GN-S 0.25 on all of CIFAR-10, recipe ghost/fast, 16 epochs. Alone; taught by
# pretrained/gns-1.0; by the same teacher made blind to the image (the control); in other ways, with fewer seeds; and
# the first two for 64 epochs.
# Two at a time, on one core each. Give it again after a stop: it goes on.
# `benchmarks/study.sh keep` copies what tables need to runs/studies/cifar10.
set -euo pipefail
ghost=${GHOST:-.venv/bin/ghost}
runs=${RUNS:-runs/study}
with="--recipe ghost/fast --jobs 2 --runs $runs"
three="--seed 0 --seed 1 --seed 2"
five="$three --seed 3 --seed 4"
teacher=pretrained/gns-1.0

if [ "${1:-}" = keep ]; then
  mapfile -t done < <($ghost runs list --runs "$runs" --json |
    python3 -c 'import json, sys; print(*(run["run"] for run in json.load(sys.stdin) if run["status"] == "done"), sep="\n")')
  exec $ghost runs study "${done[@]}" --runs "$runs" --out runs/studies/cifar10
fi
$ghost distill $teacher --student gns:0.25 $five $with
$ghost train-teacher gns:0.25 $five $with
$ghost distill $teacher --student gns:0.25 $five $with -s distill.blind=true
$ghost distill $teacher --student gns:0.25 $three $with --epochs 64
$ghost train-teacher gns:0.25 $three $with --epochs 64
$ghost distill $teacher --student gns:0.25 $three $with --kind dist -s distill.alpha=0.5 -s distill.inter_weight=2.0 -s distill.intra_weight=2.0
$ghost ensemble $teacher pretrained/gns-0.5 --student gns:0.25 $three $with
$ghost assist-chain $teacher gns:0.5 --student gns:0.25 $three $with
