"""Passes of a model over the rows of one cache: the first over prompts, then one token of each row at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from hub.tasks.generate.cache_rows import join, keep, take_over

_CACHES = ("past_key_values", "cache_params")
_KNOWN = {*_CACHES, "attention_mask", "position_ids", "use_cache", "logits_to_keep"}
_OF_GENERATE = ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer", "assistant_model")


@dataclass
class Passes:
    """Rows of one cache: each step feeds a token to each and gives the logits of the next."""

    model: Any
    """What transformers' `generate` works on, without what is around it."""

    inputs: dict[str, Any]
    """What each step gets beside its tokens."""

    lengths: list[int]
    """Tokens of each row in the cache."""

    device: torch.device
    width: int = 0
    _lengths: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.width = max(self.lengths)
        self._count()

    @property
    def cache(self) -> Any:
        return next((self.inputs[name] for name in _CACHES if name in self.inputs), None)

    def can_move(self) -> bool:
        """Whether rows can be taken out and added."""
        return set(self.inputs) <= _KNOWN and take_over(self.cache)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the model on the next token of each row.

        Args:
            tokens: (rows,).

        Returns:
            The logits of the tokens behind them, (rows, vocabulary).
        """
        inputs = dict(self.inputs)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = None
            if min(self.lengths) < self.width:
                columns = torch.arange(self.width + 1, device=self.device)
                inputs["attention_mask"] = (columns >= (self.width - self._lengths)[:, None]).long()
        if inputs.get("position_ids") is not None:
            places = self._lengths[:, None]
            inputs["position_ids"] = places.expand(*inputs["position_ids"].shape[:-2], *places.shape)
        prepared = self.model.prepare_inputs_for_generation(tokens[:, None], next_sequence_length=1, **inputs)
        logits: torch.Tensor = self.model(**prepared, return_dict=True).logits[:, -1]
        self.lengths = [length + 1 for length in self.lengths]
        self.width += 1
        self._lengths += 1
        return logits

    def keep(self, order: Sequence[int]) -> None:
        """Keep some rows: see `cache_rows.keep`."""
        self.lengths = [self.lengths[row] for row in order]
        self.width = max(self.lengths)
        keep(self.cache, order, self.width, self.device)
        self._count()

    def join(self, other: "Passes") -> None:
        """Add rows behind these."""
        self.lengths = self.lengths + other.lengths
        self.width = max(self.width, other.width)
        join(self.cache, other.cache, self.width)
        self._count()

    def _count(self) -> None:
        self._lengths = torch.tensor(self.lengths, device=self.device)


def first_pass(model: Any, prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, Passes]:
    """Run a model on prompts, as `generate` of transformers begins.

    Args:
        model: of transformers or peft.
        prompts: token ids.
        pad: the token in front of shorter ones.
        device: of the model.

    Returns:
        The logits behind each prompt, (prompts, vocabulary), and the state for the next tokens.
    """

    def run(inner: Any, input_ids: torch.Tensor, **given: Any) -> tuple[torch.Tensor, Passes]:
        inputs = {name: given[name] for name in given if name not in _OF_GENERATE}
        prepared = inner.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **inputs)
        outputs = inner(**prepared, return_dict=True)
        inputs = inner._update_model_kwargs_for_generation(outputs, inputs)
        return outputs.logits[:, -1].clone(), Passes(inner, inputs, [len(prompt) for prompt in prompts], device)

    ids, mask = padded(prompts, pad, device)
    found: tuple[torch.Tensor, Passes] = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=plain_config(max_new_tokens=2, pad_token_id=pad),
        custom_generate=run,
    )
    return found


def plain_config(**values: Any) -> GenerationConfig:
    """A generation config that takes the most likely token. What the model's own one sets beside is switched off.

    Args:
        values: further settings.
    """
    off = {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": [],
    }
    return GenerationConfig(**(off | values))


def padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left, and which tokens are theirs: both (prompts, longest).

    Args:
        prompts: token ids.
        pad: the token in front of shorter ones.
        device: of the result.
    """
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
