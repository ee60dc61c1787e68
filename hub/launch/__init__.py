"""From a config to a finished run: checks, the run folder, worker processes, resume, sweeps."""
