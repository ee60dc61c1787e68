"""Passes of a model over many rows of tokens: the log-probability of chosen tokens, in micro-batches that fit.

`ways.py` chooses between rows that share beginnings, packed rows and padded ones. Figures do not depend on the way or on the
micro-batches beyond rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from hub.data.samples.sample import Sample, random_samples
from hub.errors import ModelError
from hub.models.patches import patches_of
from hub.models.structure import text_config
from hub.system.memory import allowed_memory
from hub.tasks.evaluate.scoring_head import ScoringHead, log_probabilities
from hub.tasks.evaluate.shared_prefixes import Ids, Shared, SharedPrefixes, num_shared, order_of, share
from hub.tasks.loading import Loaded
from hub.train.batch.collate import MicroBatch, pack, pad
from hub.train.kernels.attention import PackedAttention
from hub.train.layout.memory_budget import CPU_TOKENS, FREE_MEMORY_FRACTION, MAX_MASK_TOKENS, MAX_TOKENS, Line
from hub.train.losses.causal_lm import model_inputs, takes_positions

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]
"""Called with the number of rows that are done."""

Report = Callable[[str, int, int], None]
"""Called with what is done, how many of it, of how many."""

MEASURED_TOKENS = (1024, 2048)
"""Of the passes on a GPU whose memory gives the token budget."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens that a model reads, and what it is asked there."""

    input_ids: Ids
    """(T,)"""

    places: npt.NDArray[np.int64]
    """(n,) positions among them, each of which predicts a token."""

    targets: Ids
    """(n,) the tokens whose log-probabilities are asked."""

    @classmethod
    def of_sample(cls, sample: Sample) -> "Row":
        """All loss tokens of a sample."""
        places = np.flatnonzero(sample.loss_mask[1:])
        return cls(sample.input_ids, places, sample.input_ids[places + 1])

    @classmethod
    def of_end(cls, context: Sequence[int], end: Sequence[int]) -> "Row":
        """The tokens of `end` behind `context`. The last one need not be read."""
        tokens = np.asarray([*context, *end], np.int32)
        places = np.arange(len(tokens) - len(end), len(tokens)) - 1
        return cls(tokens[:-1], places, tokens[places + 1])


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model gives the targets of a row."""

    log_probabilities: Floats
    """(n,) in nats."""

    greedy: npt.NDArray[np.bool_]
    """(n,) whether the target is the most likely token."""


def adding(report: Report, what: str, total: int, done: int = 0) -> Callable[[int], None]:
    """A function of the number of things that were done just now, which reports how many that makes.

    Args:
        report: is called.
        what: is done.
        total: of all.
        done: before.
    """

    def add(new: int) -> None:
        nonlocal done
        done += new
        report(what, done, total)

    return add


class Scorer:
    """Runs a model over rows. `open_scorer` makes it."""

    def __init__(
        self, loaded: Loaded, packed: bool, shared: SharedPrefixes | None, head: ScoringHead | None, most_rows: int | None
    ) -> None:
        self.loaded, self.packed, self.shared, self.head = loaded, packed, shared, head
        self._most_rows = most_rows
        self._vocab_size = text_config(loaded.model).vocab_size
        self.max_tokens = CPU_TOKENS

    @property
    def layout(self) -> str:
        """The way of the passes, in words."""
        return "packed, shared beginnings once" if self.shared else "packed" if self.packed else "padded"

    @torch.no_grad()
    def scores(self, rows: Sequence[Row], progress: Progress = lambda done: None) -> list[Scores]:
        """Compute the log-probabilities of all targets.

        Args:
            rows: in any order. Each is at most as long as the model's positions.
            progress: called now and then.

        Returns:
            Of each row, in the same order.

        Raises:
            ModelError: memory runs out with a single row.
        """
        found: list[Scores | None] = [None] * len(rows)
        pending = self._in_order(rows)
        waiting: list[tuple[list[int], torch.Tensor]] = []
        num_done = 0
        while pending:
            chosen = self._take(rows, pending)
            try:
                values = self._run([rows[i] for i in chosen])
            except torch.OutOfMemoryError:
                self._halve(len(chosen))
                continue
            pending = pending[len(chosen) :]
            waiting.append((chosen, values))
            if len(waiting) > 1:  # the device computes the latest one meanwhile
                _deliver(rows, found, *waiting.pop(0))
            num_done += len(chosen)
            progress(num_done)
        for chosen, values in waiting:
            _deliver(rows, found, chosen, values)
        return [scores for scores in found if scores is not None]

    def _in_order(self, rows: Sequence[Row]) -> list[int]:
        if self.shared is not None:
            return order_of([row.input_ids for row in rows])
        return sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i))

    def _take(self, rows: Sequence[Row], pending: Sequence[int]) -> list[int]:
        """The first pending rows that fit into a micro-batch, at least one."""
        chosen: list[int] = []
        total = 0
        for i in pending[: self._most_rows]:
            ids = rows[i].input_ids
            if self.shared is not None:
                total += len(ids) - (num_shared(ids, rows[chosen[-1]].input_ids) if chosen else 0)
            elif self.packed:
                total += len(ids)
            else:
                total = (len(chosen) + 1) * len(rows[pending[0]].input_ids)
            if chosen and total > self.max_tokens:
                break
            chosen.append(i)
        return chosen

    def _halve(self, num_rows: int) -> None:
        torch.cuda.empty_cache()
        if num_rows == 1:
            raise ModelError("out of memory with a single row. Type a smaller data.max_seq_len, or use a larger GPU")
        self.max_tokens //= 2

    def _run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Run one micro-batch. (n, 2) of all targets, row after row."""
        targets = torch.from_numpy(np.concatenate([row.targets for row in rows]).astype(np.int64))
        if self.shared is not None:
            shared = share([row.input_ids for row in rows])
            batch = _batch_of(shared, rows, targets)
            context: AbstractContextManager[None] = self.shared.reading(shared, self.loaded.device)
        else:
            batch = collate(rows, self.packed, targets)
            context = nullcontext()
        batch = batch.to(self.loaded.device)
        with context, self.loaded.autocast():
            return self._values(batch)

    def _values(self, batch: MicroBatch) -> torch.Tensor:
        model = self.loaded.model
        inputs = model_inputs(model, batch) if self.shared is None else plain_inputs(batch)
        selects = batch.packed and takes_positions(model)
        if selects:
            inputs["logits_to_keep"] = batch.loss_positions
        if selects and self.head is not None:
            with self.head.scoring(batch.targets):
                values: torch.Tensor = model(**inputs).logits
                return values
        logits = model(**inputs).logits.flatten(0, 1)
        if not selects:
            logits = logits[batch.loss_positions]
        return log_probabilities(logits, batch.targets)

    def choose_budget(self) -> None:
        """Choose the token budget: on a GPU from the measured memory of two passes."""
        device = self.loaded.device
        if device.type != "cuda":
            self.max_tokens = CPU_TOKENS * (2 if self.shared else 1)
            return
        length = min(256, self.loaded.max_positions or 256)
        points = []
        for size in (MEASURED_TOKENS[0], *MEASURED_TOKENS):  # the first one lets libraries allocate their buffers
            lengths = [length] * max(1, size // length)
            rows = [Row.of_sample(sample) for sample in random_samples(self._vocab_size, lengths, 0)]
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            try:
                self._run(rows)
            except torch.OutOfMemoryError:
                break
            points.append((sum(lengths), float(torch.cuda.max_memory_allocated(device) - before)))
        torch.cuda.empty_cache()
        free = min(torch.cuda.mem_get_info(device)[0], allowed_memory(device) - torch.cuda.memory_reserved(device))
        most = MAX_TOKENS if self.shared or patches_of(self.loaded.model).find(PackedAttention) else MAX_MASK_TOKENS
        fitting = Line.through(points[1:]).tokens(free * FREE_MEMORY_FRACTION) if len(points) > 1 else MEASURED_TOKENS[0]
        self.max_tokens = max(length, min(most, fitting))


def collate(rows: Sequence[Row], packed: bool, targets: torch.Tensor) -> MicroBatch:
    """A micro-batch of rows without anything shared."""
    samples = [Sample(row.input_ids, np.zeros(len(row.input_ids), bool), "") for row in rows]
    batch = pack(samples) if packed else pad(samples, 0)
    width = 0 if packed else batch.input_ids.shape[1]
    starts = accumulate((len(row.input_ids) if packed else width for row in rows), initial=0)
    places = np.concatenate([start + row.places for start, row in zip(starts, rows, strict=False)])
    return _with_places(batch, places, targets)


def _batch_of(shared: Shared, rows: Sequence[Row], targets: torch.Tensor) -> MicroBatch:
    """A micro-batch of rows that share beginnings. A position counts once for each row that asks it."""
    places = np.concatenate([of_row[row.places] for of_row, row in zip(shared.places, rows, strict=True)])
    batch = MicroBatch(
        input_ids=torch.from_numpy(shared.input_ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(shared.positions)[None],
        attention_mask=None,
        loss_positions=torch.from_numpy(places),
        targets=targets,
        num_tokens=len(shared.input_ids),
    )
    return batch


def _with_places(batch: MicroBatch, places: npt.NDArray[np.int64], targets: torch.Tensor) -> MicroBatch:
    return replace(batch, loss_positions=torch.from_numpy(places), targets=targets)


def plain_inputs(batch: MicroBatch) -> dict[str, object]:
    """Return the keyword arguments of the model's forward for rows that share beginnings: its attention knows the rest."""
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}


def _deliver(rows: Sequence[Row], found: list[Scores | None], chosen: Sequence[int], values: torch.Tensor) -> None:
    """Put the values of a micro-batch where its rows are."""
    numbers = values.double().cpu().numpy()
    ends = list(accumulate((len(rows[i].targets) for i in chosen), initial=0))
    for i, start, end in zip(chosen, ends, ends[1:], strict=False):
        found[i] = Scores(numbers[start:end, 0], numbers[start:end, 1] > 0.5)
