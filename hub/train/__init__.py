"""The training loop and its parts, for workers only: most modules import torch.

`loop` runs the steps of `step` on a `recipe`. `setup` prepares what a backend gets, `batch` splits steps into micro-batches,
`losses` has the objectives, `kernels` the GPU optimizations, `layout` chooses among them by memory, `checkpoints` stores the
state.
"""
