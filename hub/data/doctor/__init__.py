"""`python -m hub data`: inspects a dataset before training."""
