"""Trained networks measured and made into files."""
