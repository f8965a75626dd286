"""The report: what records hold as one HTML page that needs nothing else."""
