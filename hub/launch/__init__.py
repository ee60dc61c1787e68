"""From a checked config to a finished run: checks, the run folder, worker processes, resuming, sweeps."""
