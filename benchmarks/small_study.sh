#!/usr/bin/env bash
# A study small enough for a CPU, on real CIFAR-10: is a student better taught or alone, are soft labels enough, and
# what does an unshuffled loader cost? 4,000 training and 4,000 test images, 8 epochs, three seeds: `paper` otherwise.
# About half an hour on two cores; its records are in runs/small, its table is
#   ghost table also --runs runs/small
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 # two commands side by side, a core each
seeds=(--seed 0 --seed 1 --seed 2)
small=(--data cifar10 --epochs 8 -s data.limit=4000 -s data.limit_test=4000 -s train.batch_size=128 -s optim.lr=0.05)
common=("${seeds[@]}" "${small[@]}" --runs runs/small)
ghost=${GHOST:-ghost}
{
  $ghost train-teacher gns:0.5 "${common[@]}"
  $ghost train-teacher gns:0.5 "${common[@]}" -s data.shuffle=false
  $ghost train-teacher gns:0.5 "${common[@]}" -s train.label_smoothing=0.42 # as soft as the teacher's targets at T = 1
} &
$ghost distill gns:1.3 --student gns:0.5 "${common[@]}"
$ghost distill gns:1.3 --student gns:0.5 "${common[@]}" --temperature 4 --alpha 0.1
wait
