"""Hydra's edge: presets and overrides to a RunConfig, and run.yaml."""
