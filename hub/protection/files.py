"""Files in which a run leaves what it protected and learned, for the next one. Nothing here imports torch."""

import os
from pathlib import Path

PROTECTION = "protection.safetensors"
"""File in a model's folder with statistics of the protected data: covariances, and how much each weight matters to it."""

SAMPLES = "protected_samples.safetensors"
"""File in a run folder with the samples that the next run protects."""

NONE = "none"
"""Typed in place of an earlier run's folder: there is none."""


def protection_file(folder: Path) -> Path | None:
    """Find what an earlier run left for the next one: statistics in its model's folder, else samples in its run folder.

    Args:
        folder: of a run, or of its model.

    Returns:
        The file. None: it left none.
    """
    folder = folder.expanduser()
    # A merged model lies in exports/merged of the run that trained its adapter.
    above = [parent / SAMPLES for parent in (folder, *folder.parents[:2])]
    places = (folder / PROTECTION, folder / "model" / PROTECTION, *above)
    return next((place for place in places if os.path.isfile(place)), None)  # Path.is_file raises for a name that is too long
