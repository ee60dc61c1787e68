"""Files in which a run leaves what it protected and learned, for the next one. Nothing here imports torch."""

import os
from pathlib import Path

PROTECTION = "protection.safetensors"
"""File beside a model with the covariances of the protected data, and the importance of each weight to it."""

KEPT = "protected_samples.safetensors"
"""File of a run folder with the samples that the next run protects."""

NONE = "none"
"""Named in place of an earlier run: there is none."""


def protection_file(folder: Path) -> Path | None:
    """What an earlier run left for the next one: statistics beside its model, else samples in its run folder.

    Args:
        folder: of a run, or of its model.
    """
    folder = folder.expanduser()
    # A merged model lies in exports/merged of the run that trained its adapter.
    above = [parent / KEPT for parent in (folder, *folder.parents[:2])]
    places = (folder / PROTECTION, folder / "model" / PROTECTION, *above)
    return next((place for place in places if os.path.isfile(place)), None)  # Path.is_file raises for a name that is too long
