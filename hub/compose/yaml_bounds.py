"""Bounds on a YAML file: aliases of aliases of aliases are a billion values in a few lines, and an anchor may hold itself."""

from functools import cache

from yaml import MappingNode, Node, SequenceNode  # type: ignore[import-untyped]

from hub.errors import ConfigError

MOST_BYTES = 2**20
MOST_VALUES = 20_000
"""Values in a file, each alias counted as all that it stands for. A run.yaml has about 150."""

_DEPTH = 50


def check_text(text: str, source: str) -> None:
    """Refuse a text that is too long to be a config.

    Raises:
        ConfigError: it is.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{source}: this file has more than {MOST_BYTES >> 20} MiB, so it is no config")


def check_nodes(root: Node, source: str) -> None:
    """Refuse a file that is far larger than it looks.

    Args:
        root: the composed file, in which an alias is the node that it stands for.
        source: for messages.

    Raises:
        ConfigError: it is, or an anchor holds itself.
    """

    @cache
    def size(node: Node, depth: int) -> int:
        if depth > _DEPTH:
            raise ConfigError(f"{source}: it is nested more than {_DEPTH} deep, or an anchor holds itself")
        inner: list[Node] = []
        if isinstance(node, MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            inner = node.value
        return 1 + sum(size(part, depth + 1) for part in inner)

    if (found := size(root, 0)) > MOST_VALUES:
        raise ConfigError(f"{source}: its aliases stand for {found:,} values, and a config has at most {MOST_VALUES:,}")
