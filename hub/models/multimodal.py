"""Models of images and text: the class that loads them, and the files of their processor.

transformers maps some of their configs to a class of the text part alone in `AutoModelForCausalLM`, and others to none. The hub
loads the class that the base was stored with, so that all of it is kept. The text part trains: `structure.text_modules`.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM, PretrainedConfig

if TYPE_CHECKING:
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_preprocessor_config.json",
)
"""Files of a processor, beside those of its tokenizer (`transformers.utils`)."""

CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Files with a chat template. The tokenizer writes the first."""


def auto_class(config: PretrainedConfig) -> "type[_BaseAutoModelClass]":
    """The class of transformers that loads a model whole, as it was stored, to generate text.

    Args:
        config: of the model. `architectures` names the class that the weights were saved from.
    """
    if config.get_text_config() is config:
        return AutoModelForCausalLM
    for found in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        known = found._model_mapping.get(type(config), None)
        kinds = known if isinstance(known, tuple) else (known,)
        names = {kind.__name__ for kind in kinds if kind is not None}
        if names and (not config.architectures or names & set(config.architectures)):
            return found
    return AutoModelForCausalLM


def copy_processor(base: Path, folder: Path) -> None:
    """Copy what a processor needs beside its tokenizer, if the base has it. A chat template that is there already stays.

    Args:
        base: folder of the base model.
        folder: folder with the saved model and tokenizer.
    """
    wanted = [name for name in PROCESSOR_FILES if not (folder / name).exists()]
    if any((base / name).is_file() for name in wanted) and not any((folder / name).exists() for name in CHAT_TEMPLATES):
        wanted += CHAT_TEMPLATES
    for name in wanted:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
