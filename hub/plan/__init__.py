"""What a run would take before it runs: memory, layout, time. Nothing here needs weights or a GPU."""
