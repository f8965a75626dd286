"""The training engine: one loop, a schedule in closed form, checkpoints, results."""
