"""The hub: fine-tune language models with algorithms that are plugins. See `python -m hub --help` and README.md."""

from hub import data as data
from hub.api import finished_calls, lora_sft, osft, register, run, sft, show, verify
from hub.compose.compose import compose
from hub.config.data import DataSource
from hub.config.option import option
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.errors import ConfigError, DataError, DivergedError, HubError, Interrupted, LaunchError, ModelError, PluginError
from hub.plugins.hookspecs import hookimpl
from hub.plugins.offers import Algorithm, Backend, DataFormat
from hub.reports import DataReport, Options
from hub.run import Outcome, Result, Run
from hub.version import VERSION

__version__ = VERSION

report = finished_calls["report"]

__all__ = [
    "AlgoConfig",
    "Algorithm",
    "Backend",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DataFormat",
    "DataReport",
    "DataSource",
    "DivergedError",
    "HubError",
    "Interrupted",
    "LaunchConfig",
    "LaunchError",
    "ModelConfig",
    "ModelError",
    "Options",
    "Outcome",
    "PluginError",
    "Result",
    "Run",
    "RunConfig",
    "TrackConfig",
    "compose",
    "data",
    "hookimpl",
    "lora_sft",
    "option",
    "osft",
    "register",
    "report",
    "run",
    "sft",
    "show",
    "verify",
]
