"""ghost: train small image classifiers, distil into them, and say honestly whether it helped."""

__version__ = "0.1.0"
