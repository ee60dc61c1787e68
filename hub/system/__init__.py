"""The machine: memory, GPUs, signals, environment variables, files, the user's cache."""
