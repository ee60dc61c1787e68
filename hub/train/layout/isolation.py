"""Whether a model isolates packed samples from each other. Measured on the model itself, before training.

A packed row is correct only if no token sees another sample. Position ids that restart at 0 mark the samples for
transformers. Here is measured whether a model's attention (or convolution, or recurrence, or position table) respects them:

1. packed, the samples must have the log-probabilities that each has alone, by a plain call of the model;
2. if one of them is changed, those behind it must keep theirs.

`leaks.py` tells rounding from a leak. A token that rounding sends to another expert changes by more than that, so a failure
counts only if three orders of the samples show it: a leak is there in each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from hub.data.samples.sample import Sample, random_samples
from hub.models.structure import max_positions, text_config, waits_for_others
from hub.parallel.group import max_over_ranks
from hub.system.answers import doubt, is_known, measured
from hub.system.memory import is_out_of_memory
from hub.train.attempts import twice
from hub.train.batch.collate import MicroBatch, pack
from hub.train.layout.leaks import (
    FLOAT32_LIMIT,
    LEAST_LIMIT,
    LEAST_SPREAD,
    MOST_LIMIT,
    Effects,
    Leak,
    log_probabilities,
    measure,
)
from hub.train.losses.causal_lm import model_inputs

LENGTHS = (19, 37, 3, 23)
"""Tokens of the samples: none a multiple of a block, and one shorter than the usual window of a convolution."""

CHANGED = (1, 3)
"""Places of the samples that are changed, each in turn. The second has none behind it and shows rounding."""

NUM_ORDERS = 3
"""Orders of the samples in which a leak must show."""

LARGEST_TABLE = 8192
"""Positions from which on no model has a mask of that many rows and columns."""

NARROW_CHUNK = 16
"""Tokens of an attention chunk (Llama 4) during the trial: the real ones are longer than its samples."""

Inputs = Callable[[torch.nn.Module, MicroBatch], Mapping[str, object]]


class Trial:
    """A trial of packing on a model. Made before its attention is replaced: what samples have alone is from its own.

    Args:
        model: any causal language model.
        vocab_size: upper bound of the random tokens.
        device: of the model.
        dtype: of the arithmetic.
        inputs: returns the keywords of the model's forward for a micro-batch.
        most_tokens: of a row in the run. If the model has fewer positions, a row longer than these is tried too.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        vocab_size: int,
        device: torch.device,
        dtype: torch.dtype,
        inputs: Inputs = model_inputs,
        most_tokens: int = 0,
    ) -> None:
        self._model, self._device, self._dtype, self._inputs = model, device, dtype, inputs
        self._most_tokens = most_tokens
        self._vocab_size, self._positions = vocab_size, max_positions(text_config(model)) or LARGEST_TABLE
        self._tries_long_row = self._positions < min(most_tokens, LARGEST_TABLE)
        room = min(self._positions, sum(LENGTHS))
        lengths = [max(2, length * room // sum(LENGTHS)) for length in LENGTHS]
        self._samples, self._others = (random_samples(vocab_size, lengths, seed) for seed in range(2))
        self._alone: list[torch.Tensor] = []
        self._problem = ""
        if is_known("isolation"):
            return
        try:
            self._alone = twice(model, self._each_alone)
        except Exception as error:
            self._problem = self._named(error)

    def _each_alone(self) -> list[torch.Tensor]:
        with self._trying():
            return [self._run(None, [sample])[0] for sample in self._samples]

    def again(self) -> "Trial":
        """Return the same trial of the model as it is now: what samples have alone is from its present attention."""
        return Trial(self._model, self._vocab_size, self._device, self._dtype, self._inputs, self._most_tokens)

    def run_once(self) -> None:
        """Run the model once, on one sample alone."""
        with self._trying():
            self._run(None, self._samples[:1])

    def difference(self, other: "Trial") -> Leak:
        """Compare what samples have alone, here and in a trial with another attention. Equal on all ranks.

        All ranks must call it. In half precision any difference that can be rounding passes: a token may go to another expert.
        What was not run, since its outcome is known, passes.
        """
        allowed = MOST_LIMIT if self._dtype in LEAST_LIMIT else FLOAT32_LIMIT
        problem, worst = self._problem or other._problem, float("inf")
        if not problem and not (self._alone and other._alone):
            worst = 0.0
        elif not problem:
            spread = max(float(torch.cat(self._alone).std()), LEAST_SPREAD)
            pairs = zip(self._alone, other._alone, strict=True)
            worst = max(float((one - another).square().mean().sqrt()) / spread for one, another in pairs)
        measured = max_over_ranks(worst)
        return Leak(measured, allowed, problem or "another process can't" if np.isinf(measured) else "")

    def leak(self) -> Leak:
        """Measure the effect of packing, in the order of the samples that shows least. Equal on all ranks.

        All ranks must call it.
        """
        found: list[Effects] = []
        while True:
            worst = Leak(float("inf"), FLOAT32_LIMIT, self._problem)
            if not self._problem:
                try:
                    found.append(twice(self._model, partial(self._effects, len(found))))
                    worst = self._judge(found)
                except Exception as error:
                    worst = replace(worst, problem=self._named(error))
            # On every rank the same decision, and as many passes.
            measured, allowed = max_over_ranks(worst.measured), -max_over_ranks(-worst.allowed)
            problem = worst.problem or "another process can't" if np.isinf(measured) else ""
            leak = Leak(measured, allowed, problem)
            if leak.passes or leak.problem or len(found) == NUM_ORDERS:
                return leak

    def _judge(self, found: Sequence[Effects]) -> Leak:
        # What couples samples in one order couples them in all, also where the few that are ahead do not show it.
        coupling = max(effects.coupling for effects in found)
        leaks = []
        for effects in found:
            both = effects.packed(self._dtype), replace(effects, coupling=coupling).changed(self._dtype)
            leaks.append(max(both, key=lambda leak: leak.badness))
        return min(leaks, key=lambda leak: leak.badness)

    def can_pack(self) -> tuple[bool, str]:
        """Decide whether packing is safe for this model, as it is now. Returns the reason too."""
        return measured("isolation", self._can_pack, lambda answer: (bool(answer[0]), str(answer[1])), list)

    def _can_pack(self) -> tuple[bool, str]:
        if not self._alone and not self._problem:
            self._problem = "an earlier run of this kind has tried less, and what samples have alone is not known"
            doubt()
        found = self.leak()
        if found.passes and self._tries_long_row and (problem := self._long_row_problem()):
            return (
                False,
                f"packed rows may be longer than the model's {self._positions} positions, which it can't run ({problem})",
            )
        if found.passes:
            return True, f"packed samples do not see each other ({found})"
        if found.problem:
            return False, f"the model can't run packed samples ({found})"
        return False, f"packed samples would see each other ({found})"

    def _effects(self, turn: int) -> Effects:
        """Measure with the samples rotated by so many places."""
        order = [(place - turn) % len(LENGTHS) for place in range(len(LENGTHS))]
        half = self._dtype in LEAST_LIMIT
        with self._trying():
            return measure(
                lambda row: self._run(pack(row), row),
                [self._samples[i] for i in order],
                [self._alone[i] for i in order],
                {place: self._others[order[place]] for place in (CHANGED if half else CHANGED[:1])},
                repeat=half,
            )

    def _long_row_problem(self) -> str:
        """Run the samples in a row behind as many tokens as the model has positions. Empty: they have what each has alone.

        Some models mask by a table of that size (GPT-Neo), which longer rows do not fit.
        """
        half = self._positions // 2
        filling = random_samples(self._vocab_size, [half, self._positions - half], NUM_ORDERS)
        found = Leak(float("inf"), 0.0)
        try:
            with self._trying():
                effects = measure(
                    lambda row: self._run(pack([*filling, *row]), [*filling, *row])[len(filling) :],
                    self._samples,
                    self._alone,
                    {},
                    repeat=False,
                )
            found = Leak(effects.apart, FLOAT32_LIMIT if self._dtype not in LEAST_LIMIT else MOST_LIMIT)
        except Exception as error:
            if is_out_of_memory(error) and not waits_for_others(self._model):
                found = Leak(0.0, 0.0)  # rows as long as this will not be chosen either
            else:
                found = replace(found, problem=self._named(error))
        return "" if max_over_ranks(float(not found.passes)) == 0 else str(found)

    def _run(self, batch: MicroBatch | None, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Run a micro-batch of the samples. None: one sample by a plain call of the model."""
        if batch is None:
            ids = torch.from_numpy(samples[0].input_ids.astype(np.int64))[None].to(self._device)
            inputs: Mapping[str, object] = {"input_ids": ids, "use_cache": False}
        else:
            inputs = self._inputs(self._model, batch.to(self._device))
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits: torch.Tensor = self._model(**inputs).logits[0]
        parts = logits.split(list(map(len, samples)))
        return [log_probabilities(part, sample) for part, sample in zip(parts, samples, strict=True)]

    def _named(self, error: Exception) -> str:
        """Name an error of the trial. Memory that runs out is none of the model's: then rows are padded, which needs no trial.

        Raises:
            OutOfMemoryError: it is that, and another rank waits within the pass.
        """
        if is_out_of_memory(error):
            if waits_for_others(self._model):
                raise error
            return f"out of memory in a pass over {sum(map(len, self._samples))} tokens"
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Run the model without gradient and dropout, and with attention chunks so short that samples are longer."""
        was_training = self._model.training
        config = text_config(self._model)
        chunk = getattr(config, "attention_chunk_size", None)
        self._model.eval()
        if chunk:
            config.attention_chunk_size = min(chunk, NARROW_CHUNK)
        try:
            with torch.no_grad():
                yield
        finally:
            self._model.train(was_training)
            if chunk:
                config.attention_chunk_size = chunk


def can_pack(
    model: torch.nn.Module,
    vocab_size: int,
    device: torch.device,
    dtype: torch.dtype,
    inputs: Inputs = model_inputs,
    most_tokens: int = 0,
) -> tuple[bool, str]:
    """Decide whether packing is safe for a model as it is, see `Trial`. Returns the reason too."""
    return Trial(model, vocab_size, device, dtype, inputs, most_tokens).can_pack()
