"""Fast ways through a model on a GPU, how much of its memory they take, and what is chosen for a run."""
