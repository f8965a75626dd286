"""The teaching check: takes a sample of the teaching before a run starts, and reports faults."""
