"""Load models from folders: weights, tokenizers, safety checks, tiny models for tests."""
