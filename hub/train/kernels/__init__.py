"""GPU optimizations of a model's forward and backward pass."""
