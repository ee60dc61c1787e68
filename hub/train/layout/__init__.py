"""How steps run on this machine: token budget, checkpointed layers, kernels, and what they cost."""
