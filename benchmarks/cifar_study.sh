#!/usr/bin/env bash
# Does teaching help GN-S 0.5 on all of CIFAR-10, four epochs long, and what is the `ghost` recipe worth against
# `paper`? 50,000 training and 10,000 test images, three seeds. About an hour and a half on two cores; its records are
# in runs/cifar10x4, its table is
#   ghost table also --family ghost --runs runs/cifar10x4
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 # two lanes side by side, a core each
common=(--epochs 4 --runs runs/cifar10x4)
three=(--seed 0 --seed 1 --seed 2)
ghost=${GHOST:-ghost}
{
  $ghost train-teacher resnet18 --recipe ghost "${common[@]}"
  $ghost distill resnet18 --student gns:0.5 --recipe ghost "${common[@]}" --seed 0 --seed 1
} &
$ghost train-teacher gns:0.5 --recipe ghost "${common[@]}" "${three[@]}"
$ghost train-teacher gns:0.5 --recipe paper "${common[@]}" "${three[@]}"
$ghost distill resnet18 --student gns:0.5 --recipe ghost "${common[@]}" --seed 2
wait
