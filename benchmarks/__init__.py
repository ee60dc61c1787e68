"""Measurements that anyone can repeat: `python -m benchmarks`, `python -m benchmarks.NAME`. See README.md in this folder."""
