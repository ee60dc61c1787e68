"""Which token comes next: penalty, temperature, top-k, top-p, min-p, and a draw that depends on the seed and the row alone.

The draw is the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv 1411.0030): the largest of `logit + g` with independent
standard Gumbel noise `g` is a sample of the softmax. Each row has a random generator of its own. So, but for rounding,
an answer depends neither on the other rows of its batch nor on the answers before it, and a call of `generate` that continues
gives the answers of one that was not stopped.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hub.config.generate import GenerateConfig


class Sampler:
    """Turns logits into scores, of which the largest is the next token. It has the state of each row."""

    def __init__(
        self,
        settings: GenerateConfig,
        stop_ids: Collection[int],
        prompts: Sequence[Sequence[int]],
        keys: Sequence[str],
        device: torch.device,
    ) -> None:
        """Args:
        settings: temperature and so on.
        stop_ids: tokens that end an answer.
        prompts: of each row.
        keys: of each row; equal keys draw the same noise.
        device: of the logits.
        """
        self._penalty = RepetitionPenalty(settings.repetition_penalty, stop_ids, prompts, device)
        self._warpers: list[Any] = []
        self._noise: GumbelNoise | None = None
        if settings.temperature == 0:
            return
        if settings.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p > 0.0:
            self._warpers.append(MinPLogitsWarper(settings.min_p))
        self._noise = GumbelNoise(settings.seed, keys, device)

    def scores(self, logits: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
        """Args:
        logits: of the next token, (rows, vocabulary).
        last: the tokens that were chosen before, (rows,). None: the prompts come before.
        """
        if self._noise is None and self._penalty.is_off:
            return logits
        scores = self._penalty(logits.float(), last)
        if self._noise is None:
            return scores
        for warper in self._warpers:
            scores = warper(None, scores)
        return self._noise(scores)

    def keep(self, order: Sequence[int]) -> None:
        """Keep some rows.

        Args:
            order: the row that comes to each place.
        """
        self._penalty.keep(order)
        if self._noise is not None:
            self._noise.generators = [self._noise.generators[row] for row in order]

    def join(self, other: "Sampler") -> None:
        """Add the rows of another one with the same settings."""
        self._penalty.join(other._penalty)
        if self._noise is not None and other._noise is not None:
            self._noise.generators += other._noise.generators


class RepetitionPenalty:
    """Makes tokens that are in the prompt or the answer less likely (Keskar et al., arXiv 1909.05858).

    The tokens that end an answer are left alone. They are in most prompts, behind earlier turns, and an answer has to end.
    """

    def __init__(
        self, penalty: float, stop_ids: Collection[int], prompts: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        """Args:
        penalty: divides positive logits, and multiplies negative ones. 1: it does nothing.
        stop_ids: tokens that end an answer.
        prompts: of each row.
        device: of the logits.
        """
        self._penalty, self._prompts = penalty, prompts
        self._stop_ids = torch.tensor(sorted(stop_ids), device=device, dtype=torch.long)
        self._seen: torch.Tensor | None = None

    @property
    def is_off(self) -> bool:
        return self._penalty == 1.0

    def __call__(self, logits: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
        """As `Sampler.scores`."""
        if self.is_off:
            return logits
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, prompt in enumerate(self._prompts):
                self._seen[row, torch.tensor(sorted(set(prompt)), device=logits.device)] = True
        if last is not None:
            self._seen.scatter_(1, last[:, None], True)
        self._seen[:, self._stop_ids[self._stop_ids < logits.shape[1]]] = False
        return torch.where(self._seen, torch.where(logits < 0, logits * self._penalty, logits / self._penalty), logits)

    def keep(self, order: Sequence[int]) -> None:
        """As `Sampler.keep`."""
        if self._seen is not None:
            self._seen = self._seen[torch.tensor(order, device=self._seen.device, dtype=torch.long)]

    def join(self, other: "RepetitionPenalty") -> None:
        """As `Sampler.join`."""
        if self._seen is not None and other._seen is not None:
            self._seen = torch.cat([self._seen, other._seen])


class GumbelNoise:
    """Adds Gumbel noise, so that the largest score is a sample."""

    def __init__(self, seed: int, keys: Sequence[str], device: torch.device) -> None:
        """Args:
        seed: of all rows.
        keys: of each row; equal keys draw the same noise.
        device: of the scores.
        """
        self.generators = []
        for key in keys:
            digest = hashlib.blake2b(f"{seed}\n{key}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
            self.generators.append(torch.Generator(device).manual_seed(int.from_bytes(digest, "big")))

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Args:
        scores: (rows, vocabulary).
        """
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(torch.finfo(torch.float32).tiny).log()


class Processor(LogitsProcessor):
    """A sampler for `generate` of transformers."""

    def __init__(self, sampler: Sampler) -> None:
        """Args:
        sampler: of the rows.
        """
        self._sampler, self._is_first = sampler, True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Args:
        input_ids: (rows, tokens so far).
        scores: logits, (rows, vocabulary).
        """
        last = None if self._is_first else input_ids[:, -1]
        self._is_first = False
        return self._sampler.scores(scores, last)
