"""Checkpoints of a run: written while training continues, complete or absent, and restored bit for bit."""
