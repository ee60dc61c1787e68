"""The one training loop and its parts. The only folder of the hub that imports torch; imported in workers only.

A backend's train function puts the parts together: `session` (processes, device, precision), `weights` and `model`
(load), `hub.data.prepare` (samples), then `loop.fit` (steps, evaluation, checkpoints) with its own way to save.
`fast` has what a GPU gains by, `parallel` the strategies for several processes, `checkpoints` the state on disk.
"""
