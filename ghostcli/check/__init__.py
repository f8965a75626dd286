"""The teaching check: a sample of what a student would be taught, and what is wrong with it."""
