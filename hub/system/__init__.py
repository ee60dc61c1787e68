"""The machine: memory, GPUs, signals, the environment, the user's cache."""
