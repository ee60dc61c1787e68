"""Which samples make a step, how they are split into micro-batches, and their tensors."""
