"""Calibration of probabilities: likelihood, bins of confidence, calibration error. Also confusion.

Invariant: pure functions of logits and labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, [..., C], at temperature 1."""
    x = _finite(logits)
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def _finite(logits: np.ndarray) -> np.ndarray:
    """Logits in float64. Values that overflowed in float16 are set to the limits of float16."""
    most = float(np.finfo(np.float16).max)
    return np.nan_to_num(np.asarray(logits, dtype=np.float64), nan=0.0, posinf=most, neginf=-most)


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of `labels` [N] under `logits` [N, C], in nats."""
    x = _finite(logits)
    x = x - x.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), labels]))


@dataclass(frozen=True)
class Bins:
    """Equal-width bins of confidence: number of images, mean confidence and accuracy (fractions)."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> Bins:
    """Confidence (the largest probability) against accuracy; bins are (k/bins, (k+1)/bins]. Empty ones hold 0."""
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    safe = np.maximum(count, 1)
    mean = [np.bincount(which, weights=values, minlength=bins) / safe for values in (confidence, correct)]
    return Bins(count, *mean)


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo 2017), a fraction: mean |confidence - accuracy| in 15 bins, weighted by count."""
    table = calibration(logits, labels)
    return float(np.sum(table.count * np.abs(table.confidence - table.accuracy)) / table.count.sum())


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images of each true class (row) were given each class (column), [C, C]."""
    n = logits.shape[1]
    return np.bincount(labels * n + logits.argmax(axis=1), minlength=n * n).reshape(n, n)
