"""Checkpoints of every origin, opened by one door, and the published ones as data."""
