"""Comparisons as text, data and pictures."""
