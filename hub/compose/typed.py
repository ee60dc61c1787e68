"""A config as the words of a command line that compose to it, without presets and files."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hub.compose.overrides import quoted
from hub.config.option import leaves
from hub.config.schema import RunConfig
from hub.plugins.registry import registry

FOR_INFORMATION = ("model.family", "model.notes")
"""Options that change nothing in a run."""

_PLAIN = re.compile(r"[A-Za-z_/.~][\w/.~@+-]*(:[\w/.@+-]+)*")
_WORDS_OF_YAML = ("null", "true", "false", "nan", "inf", "yes", "no", "on", "off")


def typed(cfg: RunConfig) -> list[str]:
    """The words that compose to a config: its algorithm, and each option that is not at its default.

    Args:
        cfg: the config. Its algorithm must be that of a plugin.
    """
    words = [f"algo={registry().algorithm_of(cfg.algo).name}"]
    return words + [
        f"{name}={value_as_typed(value)}"
        for name, value, default, _ in leaves(cfg)
        if value != default and name not in FOR_INFORMATION
    ]


def value_as_typed(value: Any) -> str:
    """A value in the notation of the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if is_dataclass(value):
        value = {item.name: part for item in fields(value) if (part := getattr(value, item.name)) != item.default}
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{value_as_typed(key)}:{value_as_typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(value_as_typed(part) for part in value)}]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML else quoted(value)
    return str(value)
