"""Faults: what becomes of a run that is disturbed, for many faults, moments and addressees: `python -m benchmarks.faults`."""
