"""What a worker does with a recipe. One folder for each task."""
