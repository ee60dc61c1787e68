"""The tokenizer of a run: the model's own, with the tokens that are added and the chat template that the data asks for."""

from pathlib import Path
from typing import TYPE_CHECKING

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.tokens.template import load_template
from hub.data.tokens.template_date import set_date
from hub.data.tokens.vocabulary import limit_to
from hub.models import load
from hub.models.tokens import add_tokens, num_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(cfg: RunConfig, path: Path) -> "PreTrainedTokenizerBase":
    """The model's tokenizer with the tokens of `model.add_tokens`, the template of `data.template`, and the date of the run.

    Raises:
        ModelError: the folder has no tokenizer that transformers can read.
        DataError: the template can't be read.
    """
    tokenizer = load.load_tokenizer(cfg.model, path)
    add_tokens(cfg.model, tokenizer)
    num_stored = getattr(load.load_config(cfg.model, path).get_text_config(), "vocab_size", None)
    if num_stored is not None:
        limit_to(tokenizer, num_rows(cfg.model, tokenizer, num_stored))
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    if cfg.data.date != AUTO:
        set_date(tokenizer, cfg.data.date)
    return tokenizer
