"""`python -m hub average`: one model from several runs, from the last checkpoints of one, or from a run and its base."""
