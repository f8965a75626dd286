"""The training engine: loop, learning rate schedule, optimisers, devices."""
