"""Finished runs elsewhere: on a model hub, and in trackers."""
