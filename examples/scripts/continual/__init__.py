"""Parts of `continual_learning.py`."""
