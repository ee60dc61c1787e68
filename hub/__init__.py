"""The hub: fine-tune language models with algorithms that are plugins. See `python -m hub --help` and README.md."""

from hub.api import lora_sft, osft, run, sft
from hub.compose.compose import compose
from hub.config.data import DataSource
from hub.config.option import option
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.errors import ConfigError, DataError, DivergedError, HubError, Interrupted, LaunchError, ModelError, PluginError
from hub.plugins.hookspecs import hookimpl
from hub.plugins.offers import Algorithm, Backend, DataFormat
from hub.run import Outcome, Result, Run
from hub.version import VERSION

__version__ = VERSION

__all__ = [
    "AlgoConfig",
    "Algorithm",
    "Backend",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DataFormat",
    "DataSource",
    "DivergedError",
    "HubError",
    "Interrupted",
    "LaunchConfig",
    "LaunchError",
    "ModelConfig",
    "ModelError",
    "Outcome",
    "PluginError",
    "Result",
    "Run",
    "RunConfig",
    "TrackConfig",
    "compose",
    "hookimpl",
    "lora_sft",
    "option",
    "osft",
    "run",
    "sft",
]
