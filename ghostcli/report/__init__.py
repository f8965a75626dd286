"""Statistics, tables and figures made from run records.

Invariant: reads records and prints; never imports torch, never writes into a run.
"""
