"""The hub: fine-tune language models with algorithms that are plugins. See `python -m hub --help` and README.md."""

from typing import NoReturn

from hub.system import interrupt as _interrupt

with _interrupt.one_line_on_interrupt(_interrupt.is_command_line()):
    from hub import api as _api
    from hub import data as data
    from hub import plan as plan
    from hub.api import dpo, finished_calls, lora_dpo, lora_sft, osft, osft_dpo, register, sft, show, verify
    from hub.compose.compose import compose
    from hub.config.data import DataSource
    from hub.config.option import option
    from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
    from hub.errors import ConfigError, DataError, DivergedError, HubError, Interrupted, LaunchError, ModelError, PluginError
    from hub.plugins.hookspecs import hookimpl
    from hub.plugins.offers import Algorithm, Backend, DataFormat, Exporter, Metric
    from hub.reports import DataReport, Options
    from hub.result import Outcome, Result
    from hub.run import Run
    from hub.version import VERSION

__version__ = VERSION

run = _api.run  # the import of the module of this name has set it, too: the call counts
average = finished_calls["average"]
continual = finished_calls["continual"]
chat = finished_calls["chat"]
evaluate = finished_calls["evaluate"]
export = finished_calls["export"]
generate = finished_calls["generate"]
report = finished_calls["report"]
scale = finished_calls["scale"]
serve = finished_calls["serve"]

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
    "Exporter",
    "HubError",
    "Interrupted",
    "LaunchConfig",
    "LaunchError",
    "Metric",
    "ModelConfig",
    "ModelError",
    "Options",
    "Outcome",
    "PluginError",
    "Result",
    "Run",
    "RunConfig",
    "TrackConfig",
    "average",
    "chat",
    "compose",
    "continual",
    "data",
    "dpo",
    "evaluate",
    "export",
    "generate",
    "hookimpl",
    "lora_dpo",
    "lora_sft",
    "option",
    "osft",
    "osft_dpo",
    "plan",
    "register",
    "report",
    "run",
    "scale",
    "serve",
    "sft",
    "show",
    "verify",
]


def __getattr__(name: str) -> NoReturn:
    """Raise the error for a name that is not here, with what may have been meant."""
    from hub.errors import did_you_mean
    from hub.plugins.known import ALGORITHMS

    # Python asks for each submodule before it imports it, so nothing slow may happen here.
    if name in ALGORITHMS:
        hint = f'. Type hub.run("{name}", ...)'
    else:
        near = "" if name.startswith("_") else did_you_mean(name, __all__)
        hint = f".{near}" if near else ""
    raise AttributeError(f"module 'hub' has no attribute {name!r}{hint}")
