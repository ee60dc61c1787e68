"""The state of a run on disk: written beside training, whole or not at all, and read again to the bit."""
