"""The model before training, for `compare=true`: the base under an adapter, or the model that a run began with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from hub.config.schema import ModelConfig
from hub.errors import ConfigError
from hub.models.finished import Asked, Finished

if TYPE_CHECKING:
    from hub.tasks.loading import Loaded, Say


def check_before(asked: Asked) -> None:
    """Refuse `compare=true` where there is nothing to compare with.

    Raises:
        ConfigError: it is not known what the model was before training, or that is gone.
    """
    finished = asked.model
    if finished.before is None:
        raise ConfigError(
            f"compare=true: it is not known what {finished.name} was before training. Type run=RUN_FOLDER, or "
            "model.path=FOLDER with an adapter"
        )
    if finished.adapter is None and (problems := list(plain(finished.before).problems(asked.cfg))):
        raise ConfigError([f"compare=true: the model before training: {line}" for line in problems])


def plain(model: ModelConfig) -> ModelConfig:
    """The options of a model without the tokens that training added to it."""
    return replace(
        ModelConfig(),
        path=model.path,
        revision=model.revision,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
        quantization=model.quantization,
        gguf_package=model.gguf_package,
        family=model.family,
    )


def load_before(asked: Asked, template: object, say: "Say") -> "Loaded":
    """Load the model that a run of a whole model began with. It is asked with the template of the tuned one.

    Args:
        asked: what was asked. Its model is whole.
        template: the chat template of the tuned model's tokenizer.
        say: receives lines for the user.

    Raises:
        ModelError: it can't be loaded.
    """
    from hub.tasks.loading import load_finished

    assert asked.model.before is not None
    before = plain(asked.model.before)
    loaded = load_finished(
        replace(asked, cfg=replace(asked.cfg, model=before)), Finished(name=f"{before.path} (before)", base=before), say
    )
    loaded.tokenizer.chat_template = template
    return loaded


@contextmanager
def base_of_adapter(loaded: "Loaded") -> Iterator["Loaded"]:
    """The base under an adapter, while the context lasts."""
    with loaded.without_adapter():
        yield replace(loaded, name=f"{loaded.name} (before)")
