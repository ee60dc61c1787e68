"""Options of the time before the first step. They are part of `LaunchConfig`."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class FirstStepOptions:
    """What happens between the start of a run and its first step."""

    reuse_measurements: bool = True
    """Take what is measured before the first step (packing, kernels, memory of a pass) from an earlier run of the same kind on
    this machine, if the user's cache has it. false: measure it anew, and keep nothing."""

    timeline: bool = False
    """Print where the seconds until the end of the first step went. plan.json has it in any case."""
