"""Samples: rows of tokens with a loss mask, their counts, and how sources are mixed."""
