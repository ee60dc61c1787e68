"""The tokenizer of a run: the model's own, with the chat template that the data asks for."""

from pathlib import Path
from typing import TYPE_CHECKING

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.tokens.template import load_template
from hub.data.tokens.template_date import set_date
from hub.models import load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(cfg: RunConfig, path: Path) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, with `data.template` in place of its chat template if that is set, and the date of the run.

    Raises:
        ModelError: the folder has no tokenizer that transformers can read.
        DataError: the template can't be read.
    """
    tokenizer = load.load_tokenizer(cfg.model, path)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    if cfg.data.date != AUTO:
        set_date(tokenizer, cfg.data.date)
    return tokenizer
