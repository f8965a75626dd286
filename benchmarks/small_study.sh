#!/usr/bin/env bash
# The study in runs/studies/cifar10-5000x8: 5,000 images of CIFAR-10, 8 epochs, three seeds, all 10,000 test images.
# A small student alone, taught by ResNet-18, and taught by the same teacher made blind to the image (the control).
# About 25 minutes of one core. Give it again after a stop: it goes on.
set -euo pipefail
ghost=${GHOST:-.venv/bin/ghost}
with="--recipe ghost --epochs 8 -s data.limit=5000 -s train.batch_size=128 --runs runs/studies/cifar10-5000x8"
seeds="--seed 0 --seed 1 --seed 2"
$ghost train-teacher gns:0.5 $seeds $with
$ghost distill resnet18 --student gns:0.5 $seeds $with
$ghost distill resnet18 --student gns:0.5 $seeds -s distill.blind=true $with
