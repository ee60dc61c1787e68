"""Source text of plugins, for the fixture `plugin_folder`."""

from hub.config.schema import AlgoConfig
from hub.plugins.registry import Registry

HEAD = """
from dataclasses import dataclass
from pathlib import Path
from hub import AlgoConfig, Algorithm, Backend, hookimpl, option

@dataclass(kw_only=True)
class Options(AlgoConfig):
    depth: int = option(3, ge=1)
    \"\"\"How deep.\"\"\"
"""


def algorithm(name: str, config: str = "Options") -> str:
    """Source of a plugin with one algorithm."""
    return f"""{HEAD}
@hookimpl
def hub_algorithms():
    return [Algorithm(name="{name}", config={config}, summary="digs")]
"""


def backends(*arguments: str) -> str:
    """Source of a plugin with backends of the algorithm `dig`."""
    listed = ", ".join(f"Backend(algorithm='dig', build='nowhere.train:build', {text})" for text in arguments)
    return f"{HEAD}\n@hookimpl\ndef hub_backends():\n    return [{listed}]\n"


def options_of(found: Registry, name: str = "dig", **values: object) -> AlgoConfig:
    return found.algorithms[name].config(**values)
