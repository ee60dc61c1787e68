"""New tokens: added to the tokenizer, given rows in the embeddings and the output layer, and a start that means something.

The mean over the tokens that a new token's text consisted of is near its meaning from the start. The mean over all tokens keeps
the model's probabilities nearly as they were (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Tokenizer

from hub.config.schema import ModelConfig
from hub.errors import ModelError, first_line
from hub.models import load
from hub.models.structure import input_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a run, compared with those that the model is stored with."""

    num_stored: int
    """Rows of the stored embeddings."""

    num_tokens: int
    """Rows that the tokenizer needs."""

    num_rows: int
    """Rows of the embeddings in training."""

    new: dict[int, str]
    """Tokens that the model has not been trained with, by id: added ones, and those beyond its embeddings."""

    old: tuple[int, ...]
    """Ids of the other tokens."""

    parts: dict[int, list[int]]
    """The old tokens that the text of each new one consists of."""

    @property
    def new_rows(self) -> list[int]:
        """Rows that are not as they were stored: those of the new tokens, and those that only pad."""
        return sorted({*self.new, *range(self.num_stored, self.num_rows)})


def add_tokens(cfg: ModelConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Add the tokens of `model.add_tokens` and `model.add_special_tokens`.

    They match as they are written. With a normalizer, such as that of Llama 2, they would match at the start of a word only.
    """
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in cfg.add_tokens])
    special = [AddedToken(token, normalized=False, special=True) for token in cfg.add_special_tokens]
    tokenizer.add_tokens(special, special_tokens=True)


def num_rows(cfg: ModelConfig, tokenizer: "PreTrainedTokenizerBase", num_stored: int) -> int:
    """Rows that the embeddings have in training.

    Args:
        cfg: which tokens are added.
        tokenizer: has them already.
        num_stored: rows of the stored embeddings.
    """
    rows = max(num_stored, _num_tokens(tokenizer)) if cfg.has_new_tokens else num_stored
    multiple = cfg.pad_vocab_to_multiple_of or 1
    return -(-rows // multiple) * multiple


def vocabulary_of(cfg: ModelConfig, path: Path, tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """Which tokens of a run are new to its model.

    Args:
        cfg: the model's options.
        path: local folder of the base weights, with the stored tokenizer.
        tokenizer: the tokenizer of the run.

    Raises:
        ModelError: the model can't have more tokens.
    """
    config = load.load_config(cfg, path).get_text_config()
    if getattr(config, "vocab_size_per_layer_input", None) is not None:
        raise ModelError(
            f"model.path={cfg.path} has embeddings in each layer, which can't get rows for new tokens. Leave model.add_tokens, "
            "model.resize_vocab and model.pad_vocab_to_multiple_of out"
        )
    num_stored: int = config.vocab_size
    stored = load.load_tokenizer(cfg, path)
    before = stored.get_vocab()
    rows = num_rows(cfg, tokenizer, num_stored)
    new = {
        number: word
        for word, number in tokenizer.get_vocab().items()
        if number < rows and (word not in before or number >= num_stored)
    }
    new = dict(sorted(new.items()))
    old = tuple(sorted(number for number in before.values() if number < num_stored and number not in new))
    return Vocabulary(num_stored, _num_tokens(tokenizer), rows, new, old, _parts(stored, new, set(old)))


def resize_embeddings(
    model: "PreTrainedModel", vocabulary: Vocabulary, cfg: ModelConfig, say: Callable[[str], None] = lambda line: None
) -> None:
    """Give a loaded model rows for the new tokens, in the embeddings and the output layer. Tied ones stay tied.

    Args:
        model: with the stored embeddings.
        vocabulary: the tokens.
        cfg: how the new rows begin.
        say: takes a line for the log.

    Raises:
        ModelError: the model can't be resized.
    """
    if vocabulary.num_rows > input_embeddings(model).weight.shape[0]:
        try:
            model.resize_token_embeddings(vocabulary.num_rows, mean_resizing=False)
        except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"model.path={cfg.path}: its embeddings can't be resized for new tokens: {first_line(error)}"
            ) from None
    head: torch.nn.Module | None = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    for table in {id(table): table for table in tables if isinstance(table, torch.Tensor)}.values():
        begin_rows(table.data, vocabulary, cfg.new_token_init)
    words = ", ".join([*list(vocabulary.new.values())[:3], *(["..."] if len(vocabulary.new) > 3 else [])])
    say(
        f"{len(vocabulary.new):,} new tokens{f' ({words})' if words else ''}: the embeddings have "
        f"{vocabulary.num_rows:,} rows, and {vocabulary.num_stored:,} in the model's folder"
    )


def begin_rows(table: torch.Tensor, vocabulary: Vocabulary, init: str) -> None:
    """Set the new rows of an embedding, of an output layer's weight, or of its bias."""
    mean = _mean(table, vocabulary.old)
    for row in vocabulary.new_rows:
        parts = vocabulary.parts.get(row, []) if init == "parts" else []
        table[row] = (_mean(table, parts) if parts else mean).to(table.dtype)


def _mean(table: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The mean of some rows in float64. A few at a time: a copy of all may not fit."""
    total = torch.zeros_like(table[0], dtype=torch.float64)
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        total += table[torch.tensor(rows[start : start + _ROWS_AT_A_TIME], device=table.device)].sum(0, dtype=torch.float64)
    return total / max(1, len(rows))


def _num_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """One more than the highest id. Ids may have gaps, so it can be above the number of tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def _parts(stored: "PreTrainedTokenizerBase", new: dict[int, str], old: set[int]) -> dict[int, list[int]]:
    """What the stored tokenizer makes of the texts of new tokens. It may know some of them, without an embedding."""
    if stored.is_fast:
        state = json.loads(stored.backend_tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] in old]
        plain = Tokenizer.from_str(json.dumps(state))
        found = {number: plain.encode(word, add_special_tokens=False).ids for number, word in new.items()}
    else:
        found = {number: stored.encode(word, add_special_tokens=False) for number, word in new.items()}
    return {number: [part for part in parts if part in old] for number, parts in found.items()}
