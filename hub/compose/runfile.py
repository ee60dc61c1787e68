"""run.yaml: the RunConfig that the launcher writes and every worker reads."""

from dataclasses import asdict
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from hub.compose.yaml_bounds import MOST_BYTES, check_nodes, check_text
from hub.config.schema import AlgoConfig, RunConfig
from hub.errors import ConfigError, first_line
from hub.plugins.registry import registry

_schemas: dict[type[AlgoConfig], DictConfig] = {}


def to_text(cfg: RunConfig) -> str:
    """The config as YAML, with the algorithm's name."""
    values = asdict(cfg)
    values["algo"] = {"name": registry().algorithm_of(cfg.algo).name, **values["algo"]}
    return OmegaConf.to_yaml(OmegaConf.create(values))


def from_text(text: str, source: str = "run.yaml") -> RunConfig:
    """The config that `to_text` wrote.

    Raises:
        ConfigError: a value does not have the type of its option, or an option does not exist.
        PluginError: the algorithm is not installed.
    """
    check_text(text, source)
    try:
        loader = get_yaml_loader()(text)
        root = loader.get_single_node()
        check_nodes(root, source)
        values = loader.construct_document(root) if root else {}
        schema = _schema(registry().algorithm(values["algo"].pop("name")).config)
        return cast(RunConfig, OmegaConf.to_object(OmegaConf.merge(schema, values)))
    except (OmegaConfBaseException, YAMLError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{source} is damaged or of another version: {first_line(error)}") from None


def _schema(options: type[AlgoConfig]) -> DictConfig:
    """A config of defaults, for merging, which copies it.

    Args:
        options: the options class of the algorithm.
    """
    if options not in _schemas:
        schema = OmegaConf.structured(RunConfig)
        schema.algo = options()
        _schemas[options] = schema
    return _schemas[options]


def read(file: Path) -> RunConfig:
    """The config in a run folder's run.yaml."""
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file. Name a run folder, e.g. runs/latest")
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} can't be read ({error})") from None
    return from_text(text, str(file))
