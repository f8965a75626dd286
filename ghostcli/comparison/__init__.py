"""Finished runs compared."""
