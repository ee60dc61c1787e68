"""Model folders to models in memory: weights, tokenizers, checks, tiny models for tests."""
