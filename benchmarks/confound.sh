#!/usr/bin/env bash
# What training in the file's order costs, without any teacher: GN-S 0.25 on all of CIFAR-10 by the paper's recipe at 16
# epochs, four seeds, shuffled and not. The paper compares taught students that were not shuffled with students that were.
# docs/paper.md shows the result.
#
#   benchmarks/confound.sh          trains in runs/confound, two at a time; give it again after a stop: it goes on
#   benchmarks/confound.sh keep     copies what a comparison needs to runs/studies/confound
set -euo pipefail
ghost=${GHOST:-.venv/bin/ghost}
runs=${RUNS:-runs/confound}
study=${STUDY:-runs/studies/confound}
with="--recipe paper --epochs 16 --seed 0 --seed 1 --seed 2 --seed 3 --jobs ${JOBS:-2} --runs $runs"

case "${1:-}" in
  keep) for run in "$runs"/gns-0.25-plain-*; do $ghost runs study "$(basename "$run")" --runs "$runs" --out "$study"; done ;;
  "")
    $ghost train-teacher gns:0.25 $with
    $ghost train-teacher gns:0.25 $with -s data.shuffle=false
    ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
