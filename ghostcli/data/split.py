"""Splits and orders of images by class.

Invariant: a split depends only on the labels, its size and its own seed.
"""

from __future__ import annotations

import torch

from ghostcli.data.batches import generator


def stratified(labels: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits `labels` int64 [N] into (rest [N - count], taken [count]): ascending indices.

    Each class gives its share of `count`, rounded by largest remainder. Ties go to lower classes.
    """
    sizes = torch.bincount(labels).tolist()
    quotas = [count * size // len(labels) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda c: (-(count * sizes[c] % len(labels)), c))
    for c in by_remainder[: count - sum(quotas)]:
        quotas[c] += 1

    taken = torch.zeros(len(labels), dtype=torch.bool)
    for c, quota in enumerate(quotas):
        members = (labels == c).nonzero().squeeze(1)
        taken[members[torch.randperm(len(members), generator=generator(seed, "split", c))[:quota]]] = True
    return (~taken).nonzero().squeeze(1), taken.nonzero().squeeze(1)


def interleaved(sizes: list[int]) -> list[tuple[int, int]]:
    """(class, member) pairs, ordered so that every prefix holds the classes in proportion to `sizes`."""
    places = [((2 * j + 1) / (2 * size), c, j) for c, size in enumerate(sizes) for j in range(size)]
    return [(c, j) for _, c, j in sorted(places)]
