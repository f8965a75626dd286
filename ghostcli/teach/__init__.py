"""Trained networks as teachers: what they say about an image, live or from a table of its views."""
