"""The task `train`, which `python -m hub` runs by default."""
