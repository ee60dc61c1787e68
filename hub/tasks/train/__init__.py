"""`python -m hub`: trains what the recipe names, to the end of the run or to the signal that stops it."""
