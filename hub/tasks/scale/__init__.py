"""`python -m hub scale`: how strong an adapter should be, measured on held-out rows."""
