#!/usr/bin/env bash
# What each ingredient of ghost/fast is worth: GN-S 0.25 on all of CIFAR-10 for 8 epochs, three seeds, as it is and with
# one ingredient left out: none of it, or the usual value (of PyTorch or `paper`; 0.1 as a rate).
# The values of ghost/fast were chosen on held-out images (benchmarks/search.py) before these runs, whose accuracies
# are those of the test images. docs/networks.md shows the result.
#
#   benchmarks/ablation.sh          trains what runs/studies/ablation lacks in runs/ablation, two at a time; give it again
#                                   after a stop: it goes on
#   benchmarks/ablation.sh keep     copies what a comparison needs to runs/studies/ablation
#   benchmarks/ablation.sh compare  compares what lies there
set -euo pipefail
ghost=${GHOST:-.venv/bin/ghost}
runs=${RUNS:-runs/ablation}
study=${STUDY:-runs/studies/ablation}
with="--recipe ghost/fast --epochs 8 --seed 0 --seed 1 --seed 2 --jobs ${JOBS:-2} --runs $runs"
without=(
  augment.pad=4
  augment.flip=random
  augment.fill=zeros
  train.label_smoothing=0.0
  optim.anneal=cosine
  optim.warmup=0.0
  optim.lr=0.1
  optim.weight_decay=0.0
  optim.decay=all
  optim.nesterov=false
  model.init=native
)

# The ids of a folder with three finished seeds, the whole recipe first.
names() {
  $ghost runs list --runs "$1" --json | python3 -c '
import collections, json, pathlib, sys
done = collections.defaultdict(list)
for run in json.load(sys.stdin):
    if run["status"] == "done":
        result = json.loads(pathlib.Path(sys.argv[1], run["run"], "result.json").read_text())
        done[run["run"].split("/")[0]].append("-s" in result["command"])
print(*sorted((name for name in done if len(done[name]) == 3), key=lambda name: (done[name], name)))' "$1"
}

train() {
  local name
  name=$($ghost train-teacher gns:0.25 $with "$@" --dry-run --json | python3 -c '
import json, sys
print(json.load(sys.stdin)[0]["run"].split("/")[0])')
  [ -d "$study/$name" ] || $ghost train-teacher gns:0.25 $with "$@"
}

case "${1:-}" in
  keep) for name in $(names "$runs"); do $ghost runs study "$name" --runs "$runs" --out "$study"; done ;;
  compare) $ghost compare $(names "$study") --runs "$study" "${@:2}" ;;
  "")
    train
    for key in "${without[@]}"; do train -s "$key"; done
    ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
