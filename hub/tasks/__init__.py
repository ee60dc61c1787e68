"""Tasks: what a worker runs on a recipe. Each has its own folder."""
