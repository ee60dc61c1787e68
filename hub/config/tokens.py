"""Options for tokens that a model does not have yet. They are part of `ModelConfig`."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hub.config.option import option


@dataclass(kw_only=True)
class TokenOptions:
    """Which tokens are new, and with which embeddings they begin."""

    add_tokens: list[str] = field(default_factory=list)
    """Tokens to add, e.g. '["<tool>","</tool>"]'. Each becomes one token wherever it stands in a text, with an embedding that
    trains (docs/models.md)."""

    add_special_tokens: list[str] = field(default_factory=list)
    """As add_tokens, but marked as special: decoding can leave them out (`skip_special_tokens`)."""

    resize_vocab: bool = False
    """Add embeddings for tokens that the model's tokenizer has and the model has none for. add_tokens does so, too."""

    pad_vocab_to_multiple_of: int | None = option(None, ge=1)
    """Round the number of embeddings up to a multiple, e.g. 64. null: as many as the tokens need."""

    new_token_init: str = option("parts", choices=("parts", "mean"))
    """Embeddings of new tokens before training. parts: the mean over the tokens that their text had been. mean: over all."""

    @property
    def has_new_tokens(self) -> bool:
        """Whether there may be tokens that the model was not trained with."""
        return bool(self.add_tokens or self.add_special_tokens or self.resize_vocab)

    @property
    def changes_vocab(self) -> bool:
        """Whether the model may get other embeddings than it is stored with."""
        return self.has_new_tokens or self.pad_vocab_to_multiple_of is not None

    def token_problems(self) -> Iterator[str]:
        """One line for each token that can't be added, and for options of new tokens without any."""
        if self.new_token_init != TokenOptions.new_token_init and not self.has_new_tokens:
            yield f"model.new_token_init={self.new_token_init}: no tokens are added. Type model.add_tokens=[...] too"
        seen: set[str] = set()
        for name in ("add_tokens", "add_special_tokens"):
            for token in getattr(self, name):
                if not token.strip():
                    yield f"model.{name} has an empty token. Take it out"
                elif token in seen:
                    yield f"model.{name}: {token} is there twice (add_tokens, add_special_tokens). Take one out"
                seen.add(token)
