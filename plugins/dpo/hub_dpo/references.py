"""The reference's log-probabilities: computed once before the first step, kept in the cache and in the run folder.

`algo.reference=base` is the model as training begins: adapters add nothing yet, OSFT's coordinates are zero, all weights are
those of the base. So no second model is in memory, whatever trains. The passes are those of training: the units of a step
together, in the same micro-batches, so that the first step finds the model exactly at its reference.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import PreTrainedModel

from hub import AlgoConfig, ConfigError, ModelError
from hub.config.option import AUTO
from hub.data.samples.sample import Sample, Unit, samples_of
from hub.models.fingerprint import fingerprint
from hub.models.load import load_causal_lm, load_tokenizer
from hub.parallel.group import broadcast_bytes, max_over_ranks
from hub.parallel.sharded_tensors import local_tensor
from hub.recipe import Passes, Recipe, Setup
from hub.system.cache import cache_dir, make_once
from hub.system.memory import free_host_memory_for_each, is_out_of_memory, shortage_of
from hub.train.attempts import too_little
from hub.train.layout.layout import Layout
from hub.train.setup.setup import find_weights
from hub.train.step import Criterion, log_probabilities
from hub.version import VERSION
from hub_dpo.config import BASE, PreferenceOptions
from hub_dpo.drift import moved

Values = dict[bytes, npt.NDArray[np.float32]]
"""Digest of a sample -> the log-probabilities of its loss tokens, (n,) in nats."""

FILE = "references.npz"
CHECKED = 0.01
"""Share of the training samples whose references are computed again after training."""


class References:
    """The reference's log-probabilities of the loss tokens of each sample, in nats."""

    def __init__(self, setup: Setup, recipe: Recipe) -> None:
        """Create them, without values yet.

        Args:
            setup: config, run folder, processes, tokenizer, data.
            recipe: the model as training begins.
        """
        algo = setup.cfg.algo
        assert isinstance(algo, PreferenceOptions)
        self._setup, self._recipe, self._algo = setup, recipe, algo
        self.is_start = algo.reference in (AUTO, BASE)
        """Whether the reference is the model as training begins."""

        self.dtype = setup.session.compute_dtype
        self._values: Values = {}
        self._start: dict[str, torch.Tensor | None] | None = None
        self._other = None if self.is_start else _OtherModel(setup, algo.reference)

    def of(self, sample: Sample) -> float:
        """The log-probability of a sample's answer: the sum over its loss tokens, in nats."""
        return float(self.tokens_of(sample).sum())

    def tokens_of(self, sample: Sample) -> torch.Tensor:
        """The log-probability of each loss token of a sample, (n,) float64 in nats."""
        return torch.from_numpy(self._values[_digest(sample)]).double()

    def prepare(self, passes: Passes) -> None:
        """Read the values, or compute them. On all ranks.

        Raises:
            HubError: the other model can't be the reference.
        """
        setup = self._setup
        chunks = list(_first_seen(passes))
        digests = [_digest(sample) for units, _ in chunks for sample in samples_of(units)]
        in_run, folder = setup.run.path / FILE, cache_dir() / "references" / self._key(passes, digests)
        started, source = time.monotonic(), "the run folder"
        found = _read(in_run if setup.cfg.resume else None, setup.run.is_main)
        if not found.keys() >= set(digests):
            found, source = _read(folder / FILE, setup.run.is_main), "the cache"
        if not found.keys() >= set(digests):
            found, source = self._compute(passes, chunks), "computed"
        self._values = found
        if setup.run.is_main:
            _write(in_run, found)
            if source == "computed":
                make_once(folder, lambda made: _write(made / FILE, found), lambda each: (each / FILE).is_file())
        name = "the model as training begins" if self.is_start else self._algo.reference
        how = f"{time.monotonic() - started:.1f} s" if source == "computed" else f"from {source}"
        setup.run.say(f"reference: {name}, log-probabilities of {len(found):,} samples ({how})")
        setup.run.write_plan(reference=self._algo.reference if not self.is_start else BASE, reference_values=source)
        if self.is_start:
            self._start = self._held()

    def check(self, passes: Passes) -> None:
        """Compute a part of the values again after training, with the start put back: nothing else may have moved.

        Raises:
            ModelError: a value is another one.
        """
        if self._start is None:
            return
        setup, wanted = self._setup, max(8, int(CHECKED * len(self._values)))
        again: list[tuple[Sample, float]] = []
        with self._at_start():
            for units, training in _first_seen(passes):
                if not training:
                    break
                samples = samples_of(units)
                values = _split(samples, passes.log_probabilities(units, training))
                again += [
                    (sample, float(value.double().sum()) - self.of(sample))
                    for sample, value in zip(samples, values, strict=True)
                ]
                if len(again) >= wanted:
                    break
        found = moved(again)
        setup.run.write_plan(references_checked=len(again), references_moved=found.most)
        if off := found.too_far(self.dtype):
            where = found.sample.where if found.sample else ""
            raise ModelError(
                f"{where}: computed again after training, its reference is {off}. Something beside what trains has changed, so "
                "the margins were wrong. Please report it"
            )
        setup.run.say(
            f"reference: {len(again)} log-probabilities computed again after training, largest difference {found.most:.1e} a "
            "token"
        )

    def _compute(self, passes: Passes, chunks: Sequence[tuple[list[Unit], bool]]) -> Values:
        found: Values = {}
        with self._passes_of(passes) as values_of:
            for units, training in chunks:
                samples = samples_of(units)
                parts = _split(samples, values_of(units, training))
                found |= zip(map(_digest, samples), (part.numpy() for part in parts), strict=True)
        return found

    @contextmanager
    def _passes_of(self, passes: Passes) -> Iterator[Callable[[Sequence[Unit], bool], torch.Tensor]]:
        if self._other is None:
            yield passes.log_probabilities
            return
        with self._other.loaded(passes.layout) as model_passes:
            yield model_passes

    def _held(self) -> dict[str, torch.Tensor | None] | None:
        """What trains, as it is, on the CPU; None for zeros. None: there is no room, or DeepSpeed has it."""
        trained = {name: local_tensor(each.detach()) for name, each in self._trained()}
        size = sum(each.nbytes for each in trained.values() if each.any())
        if max_over_ranks(float(size > free_host_memory_for_each() / 4 or self._is_deepspeed)):
            self._setup.run.say("reference: not to be checked after training, a copy of the weights that train is too large")
            return None
        return {name: each.to("cpu", copy=True) if each.any() else None for name, each in trained.items()}

    @property
    def _is_deepspeed(self) -> bool:
        return self._setup.session.strategy.name.startswith("zero")

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, each) for name, each in self._recipe.model.named_parameters() if each.requires_grad]

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        """Within this context what trains has its values of before the first step."""
        assert self._start is not None
        now = {name: local_tensor(each.detach()).to("cpu", copy=True) for name, each in self._trained()}
        try:
            self._put(self._start)
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor | None] | dict[str, torch.Tensor]) -> None:
        for name, parameter in self._trained():
            local, value = local_tensor(parameter.detach()), values[name]
            local.zero_() if value is None else local.copy_(value)
        self._setup.session.strategy.reparametrization.loaded()

    def _key(self, passes: Passes, digests: Sequence[bytes]) -> str:
        """A hash of all that the values depend on: weights, rows, options of the model, and the code."""
        setup, algo = self._setup, self._algo
        beside = {each.name for cls in (AlgoConfig, PreferenceOptions) for each in fields(cls)}
        options = {each.name: str(getattr(algo, each.name)) for each in fields(algo) if each.name not in beside}
        weights = fingerprint(setup.base_path if self._other is None else self._other.path)
        values = {
            "weights": weights or str(setup.run.path),  # of what can't be read nothing is known, so only this run has them
            "adapter": _content(setup.cfg.model.adapter) if self.is_start else {},
            "model": {each.name: str(getattr(setup.cfg.model, each.name)) for each in fields(setup.cfg.model)},
            "options": options if self.is_start else {},
            "passes": dict(passes.describes),
            "code": [VERSION, torch.__version__, transformers.__version__],
            "values": "tokens",
            "rows": hashlib.sha256(b"".join(sorted(digests))).hexdigest(),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


class _OtherModel:
    """Another model as the reference. It is loaded for its passes only."""

    def __init__(self, setup: Setup, asked: str) -> None:
        """Find it and compare its tokens.

        Args:
            setup: config, processes, tokenizer.
            asked: its folder, or its id.

        Raises:
            HubError: there is none, or it has other tokens.
        """
        self._setup, self._asked = setup, asked
        self._model = replace(setup.cfg.model, path=asked, revision=None, gguf_package=None)
        self.path: Path = find_weights(self._model, setup.run, setup.session)
        theirs, ours = load_tokenizer(self._model, self.path).get_vocab(), setup.tokenizer.get_vocab()
        if theirs != ours:
            different = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
            raise ConfigError(
                f"algo.reference={asked} has another vocabulary: {len(theirs):,} tokens, the model has {len(ours):,}, and "
                f"{different[0]!r} is not the same. A reference must know the same tokens. Type algo.reference=base"
            )

    def _load(self) -> PreTrainedModel:
        session = self._setup.session
        try:
            model = load_causal_lm(self._model, self.path, session.device, session.compute_dtype)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            what = f"algo.reference={self._asked} does not fit beside the model that trains"
            raise too_little(what, shortage_of(error), "Type algo.reference=base, which takes no second model") from None
        model.eval()
        return model

    @contextmanager
    def loaded(self, layout: Layout) -> Iterator[Callable[[Sequence[Unit], bool], torch.Tensor]]:
        """Load it, and give its log-probabilities of units. Its rows are padded: no kernel of the hub is on."""
        session = self._setup.session
        models = [self._load()]
        padded, criterion = replace(layout, packed=False), Criterion()

        def values_of(units: Sequence[Unit], training: bool) -> torch.Tensor:
            nonlocal padded
            values, padded = log_probabilities(session, models[0], units, padded, criterion)
            return values

        try:
            yield values_of
        finally:
            models.clear()
            if session.device.type == "cuda":
                torch.cuda.empty_cache()


def _first_seen(passes: Passes) -> Iterator[tuple[list[Unit], bool]]:
    """The chunks of a run that have a sample which none before has."""
    seen: set[bytes] = set()
    for units, training in passes.chunks():
        digests = {_digest(sample) for sample in samples_of(units)}
        if not digests <= seen:
            seen |= digests
            yield list(units), training


def _split(samples: Sequence[Sample], values: torch.Tensor) -> Sequence[torch.Tensor]:
    """The values of each sample, as float32, which they were computed in."""
    parts: Sequence[torch.Tensor] = values.float().split([int(sample.loss_mask[1:].sum()) for sample in samples])
    return parts


def _digest(sample: Sample) -> bytes:
    """A hash of a sample's tokens and loss mask."""
    digest = hashlib.blake2b(sample.input_ids.tobytes(), digest_size=16)
    digest.update(sample.loss_mask.tobytes())
    return digest.digest()


def _content(adapter: str | None) -> dict[str, str]:
    """The hashes of the files of an adapter that is trained further."""
    found = {}
    for file in sorted(Path(adapter).glob("adapter*")) if adapter else ():
        with file.open("rb") as stream:
            found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _write(file: Path, values: Values) -> None:
    aside = file.with_name(f".{file.name}")
    with aside.open("wb") as stream:
        np.savez(
            stream,
            digests=np.frombuffer(b"".join(values), np.uint8).reshape(-1, 16),
            lengths=np.fromiter(map(len, values.values()), np.int64, len(values)),
            tokens=np.concatenate([*values.values(), np.zeros(0, np.float32)]),
        )
    aside.replace(file)


def _read(file: Path | None, is_main: bool) -> Values:
    """The values in a file of rank 0, on all ranks. Empty: there is none, or it can't be read."""
    data = broadcast_bytes(file.read_bytes() if is_main and file is not None and file.is_file() else b"")
    if not data:
        return {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            parts = np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])
            return {digest.tobytes(): part for digest, part in zip(arrays["digests"], parts, strict=True)}
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, RuntimeError):  # whatever a damaged archive raises
        return {}
