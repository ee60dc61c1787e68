"""Which token comes next: penalty, temperature, top-k, top-p, min-p, and a draw that depends on the seed and the row alone.

The draw is the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv 1411.0030): the largest of `logit + g` with independent
standard Gumbel noise `g` is a sample of the softmax. Each row has a random generator of its own. So, but for rounding,
an answer depends neither on the other rows of its batch nor on the answers before it, and a call of `generate` that continues
gives the answers of one that was not stopped.
"""

import hashlib
from collections.abc import Collection, Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hub.config.generate import GenerateConfig


class RepetitionPenalty(LogitsProcessor):
    """Makes tokens that are in the prompt or the answer less likely (Keskar et al., arXiv 1909.05858).

    The tokens that end an answer are left alone. They are in most prompts, behind earlier turns, and an answer has to end.
    """

    def __init__(self, penalty: float, lengths: torch.Tensor, stop_ids: Collection[int]) -> None:
        """Args:
        penalty: divides positive logits, and multiplies negative ones.
        lengths: tokens of each prompt, (rows,). Prompts are padded on the left.
        stop_ids: tokens that end an answer.
        """
        self._penalty, self._lengths = penalty, lengths
        self._stop_ids = torch.tensor(sorted(stop_ids), device=lengths.device, dtype=torch.long)
        self._width: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Args:
        input_ids: (rows, tokens so far).
        scores: logits, (rows, vocabulary).
        """
        if self._width is None:
            self._width = input_ids.shape[1]
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        is_padding = places[None] < (self._width - self._lengths)[:, None]
        last = torch.where(is_padding, input_ids[:, -1:], input_ids)  # in place of padding: a token that is there anyway
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, last, True)
        known = self._stop_ids[self._stop_ids < scores.shape[1]]
        seen[:, known] = False
        penalized = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return torch.where(seen, penalized, scores)


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise, so that the largest score is a sample."""

    def __init__(self, seed: int, keys: Sequence[str], device: torch.device) -> None:
        """Args:
        seed: of all rows.
        keys: of each row; equal keys draw the same noise.
        device: of the scores.
        """
        self._generators = []
        for key in keys:
            digest = hashlib.blake2b(f"{seed}\n{key}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
            self._generators.append(torch.Generator(device).manual_seed(int.from_bytes(digest, "big")))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As `RepetitionPenalty`."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(torch.finfo(torch.float32).tiny).log()


def processors(
    settings: GenerateConfig, keys: Sequence[str], lengths: torch.Tensor, stop_ids: Collection[int]
) -> LogitsProcessorList:
    """What is done with the logits of a batch. The largest score is the next token.

    Args:
        settings: temperature and so on.
        keys: of each row, see `GumbelNoise`.
        lengths: tokens of each prompt, (rows,).
        stop_ids: tokens that end an answer.
    """
    chain = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        chain.append(RepetitionPenalty(settings.repetition_penalty, lengths, stop_ids))
    if settings.temperature == 0:
        return chain
    if settings.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        chain.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0.0:
        chain.append(MinPLogitsWarper(settings.min_p))
    chain.append(GumbelNoise(settings.seed, keys, lengths.device))
    return chain
