"""`python -m hub continual`: what a model learns of one task after another, and what it forgets."""
