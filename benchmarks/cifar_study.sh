#!/usr/bin/env bash
# Does teaching help GN-S 0.5 on all of CIFAR-10, four epochs long? Are soft labels enough, or the teacher's epochs
# spent on the student instead? And what is the `ghost` recipe worth against `paper`? 50,000 training and 10,000 test
# images, three seeds. Under two hours on two cores; its records are in runs/cifar10x4, its tables are
#   ghost table also --runs runs/cifar10x4        ghost table also --runs runs/cifar10x4 --equal-budget
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 # two lanes side by side, a core each
common=(--runs runs/cifar10x4 --epochs 4) # a later --epochs takes its place
three=(--seed 0 --seed 1 --seed 2)
ghost=${GHOST:-ghost}
{
  $ghost train-teacher resnet18 --recipe ghost "${common[@]}"
  $ghost distill resnet18 --student gns:0.5 --recipe ghost "${common[@]}" --seed 0 --seed 1
  $ghost train-teacher gns:0.5 --recipe ghost "${common[@]}" --epochs 8 --seed 1
} &
$ghost train-teacher gns:0.5 --recipe ghost "${common[@]}" "${three[@]}"
$ghost train-teacher gns:0.5 --recipe paper "${common[@]}" "${three[@]}"
$ghost distill resnet18 --student gns:0.5 --recipe ghost "${common[@]}" --seed 2
# As soft as the teacher's targets at T = 4, measured by the check.
$ghost train-teacher gns:0.5 --recipe ghost "${common[@]}" "${three[@]}" -s train.label_smoothing=0.631
$ghost train-teacher gns:0.5 --recipe ghost "${common[@]}" --epochs 8 --seed 0 --seed 2
wait
