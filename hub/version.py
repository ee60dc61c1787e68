"""The version of the hub. pyproject.toml has it too."""

VERSION = "0.1.0"
