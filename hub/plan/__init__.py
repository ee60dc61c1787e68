"""Plan: what a run would take on a GPU that need not be here: memory, time, disk, and what to change if it does not fit."""
