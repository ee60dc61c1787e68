"""Jobs on a cluster: Slurm, Kubernetes or SkyPilot starts the run on its machines. Nothing here imports torch."""
