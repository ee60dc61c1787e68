"""Jobs on a cluster: an engine that exists starts the run on its machines. Nothing here imports torch."""
