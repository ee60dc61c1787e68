"""The setup that a backend gets: process group, base weights, tokenizer and data of a run."""
