"""Measurements that anyone can repeat: `python -m benchmarks.NAME`. Each prints a table; ratios come from one run."""
