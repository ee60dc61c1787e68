"""`python -m hub generate`: the answers of a finished model to prompts. Its modules serve `chat` and `evaluate` as well."""
