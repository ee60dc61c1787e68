"""Adapters that leave alone what is protected (`algo.protect`): they read their inputs only along free directions.

An adapter adds s B A x to a layer's output. Let the columns of P be those directions of the input x that the protected data
uses most. With A P = 0 the adapter's answer to a protected input is that to the little of it which lies outside of P, whatever
B is (gradient projection memory, arXiv 2103.09762; for adapters InfLoRA, 2404.00228, which fixes A, and LoRA-Null, 2503.02659,
which begins so). Here A trains: its gradients are projected before they are clipped, and A itself after each step of the
optimizer, which scales each number by itself and would lead it back. A has r rows, so both cost little.

The directions are those of the layers' inputs before training. They are found for some layers at a time, so that memory holds
few covariances at once, and stay in the run folder until the run is over: a resumed run continues in the same ones.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hub import ConfigError, ModelError, Run
from hub.data.samples.sample import Sample
from hub.parallel.group import barrier, broadcast_text, same_on_all_ranks
from hub.parallel.reparametrization import Reparametrization
from hub.parallel.sharded_tensors import local_tensor
from hub.protection.covariances import InputSums, add_up, largest_directions
from hub.protection.files import PROTECTION
from hub.protection.passes import same_inputs
from hub.protection.samples import Groups
from hub.protection.sources import Wanted, earlier_file, embedding_rows, leave, report, samples_to_protect
from hub.train.attempts import twice
from hub.train.setup.setup import Setup
from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.inits import ADAPTER
from hub_lora_sft.targets import adapted

FILE = "protected_directions.safetensors"
"""In the run folder: the protected directions of each input."""

INSTEAD = "Type algo.protect=[FILE] with rows to keep, or algo.protect=self"
"""What to type if what an earlier run left can't be used."""

NUM_SAMPLES = 128
"""Most rows of each file that are protected, and of what a run learns."""

MOST_PROTECTED = 1024
"""Most directions of an input that are protected unless a ratio is set: for 8 billion parameters they take 3.5 GB."""

DEFAULT_RATIO = 0.5

GROUP_BYTES = 2**32
"""Covariances that are held at once. Those of a model with 8 billion parameters are 33 GB."""

LARGEST_DECOMPOSED = 4096
"""Widest input whose covariance is decomposed as a whole, in float64."""

Layers = Mapping[str, LoraLayer]
"""Layers with an adapter by their names in the plain model, in its order."""


@dataclass
class _Shared:
    """The adapters of layers that read the same input."""

    layers: list[LoraLayer]
    protected: torch.Tensor
    """P (p, k), float32, orthonormal columns."""

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """A of each. Looked up each time, since sharding replaces parameters."""
        return [layer.lora_A[ADAPTER].get_parameter("weight") for layer in self.layers]


class FreeInputs(Reparametrization):
    """Keeps A P = 0, for each adapter and the protected directions P of its input."""

    def __init__(self, layers: Layers, owners: Mapping[str, str], protected: Mapping[str, torch.Tensor]) -> None:
        """Begin with the adapters as they are.

        Args:
            layers: those with an adapter, by name.
            owners: layer -> the layer under whose name the directions of its input are.
            protected: P of each input. An input without any is not protected.
        """
        self.shared = [
            _Shared([layer for other, layer in layers.items() if owners[other] == name], directions)
            for name, directions in protected.items()
        ]

    @torch.no_grad()
    def begin(self) -> None:
        """Project the initial A. Its rows keep their lengths."""
        for shared in self.shared:
            for weight in shared.weights:
                lengths = weight.norm(dim=1, keepdim=True)
                _project([weight], shared.protected)
                weight.mul_(lengths / weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny))

    def placed(self) -> None:
        for shared in self.shared:
            shared.protected = shared.protected.to(local_tensor(shared.weights[0]).device)

    def memory(self) -> list[tuple[str, int, str]]:
        num_bytes = sum(shared.protected.nbytes for shared in self.shared)
        return [("protected directions", num_bytes, "algo.protect: adapters do not read their inputs along them")]

    @torch.no_grad()
    def project_gradients(self) -> None:
        for shared in self.shared:
            _project([weight.grad for weight in shared.weights if weight.grad is not None], shared.protected)

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        for shared in self.shared:
            _project(shared.weights, shared.protected)


def _project(tensors: Iterable[torch.Tensor], protected: torch.Tensor) -> None:
    """Remove the protected directions from rows, in place. Sharded tensors have whole rows."""
    rows = [local_tensor(tensor) for tensor in tensors]
    if rows:
        stacked = torch.cat(rows) if len(rows) > 1 else rows[0]
        along = (stacked @ protected) @ protected.mT
        for part, leak in zip(rows, along.split([len(part) for part in rows]), strict=True):
            part.sub_(leak)


class Protected:
    """What a run with `algo.protect` protects, and how."""

    def __init__(self, setup: Setup, model: PeftModel) -> None:
        """Measure the protected data on the model before training, or read what the run to resume has measured.

        Args:
            setup: of the run.
            model: with new adapters, which do not change its answers yet.

        Raises:
            ConfigError: an adapter can't be protected.
            DataError: a row can't be used.
            ModelError: what an earlier run left can't be used.
        """
        algo, base = setup.cfg.algo, model.get_base_model()
        assert isinstance(algo, LoraSftConfig)
        assert isinstance(base, PreTrainedModel)
        self.setup, self.base, self.algo = setup, base, algo
        layers, owners = _layers(model), _owners(model)
        earlier = earlier_file(setup, algo.protect_from)
        if earlier is not None and earlier.name == PROTECTION:
            raise ModelError(f"{earlier} has sums of an earlier run, and adapters need its samples. {INSTEAD}")
        wanted = Wanted(algo.protect_files, NUM_SAMPLES, earlier, INSTEAD)
        self.vocabulary = embedding_rows(base)
        self.groups: Groups = samples_to_protect(setup, base, wanted, max(map(width, layers.values())))
        report(setup, self.groups, self.vocabulary, earlier)
        begun = time.monotonic()
        stored = _stored(setup) if setup.cfg.resume else None
        protected = self._find(layers, owners) if stored is None else stored
        self.free_inputs = FreeInputs(layers, owners, protected)
        if stored is None:
            self.free_inputs.begin()
        _say(setup.run, layers, owners, protected, time.monotonic() - begun)

    def leave(self, is_over: bool) -> None:
        """Leave what was protected and learned to the next run, on rank 0. Directions of a completed run are not needed.

        Args:
            is_over: whether the run is completed.
        """
        leave(self.setup, self.groups, NUM_SAMPLES, self.vocabulary)
        if is_over:
            (self.setup.run.path / FILE).unlink(missing_ok=True)

    def _find(self, layers: Layers, owners: Mapping[str, str]) -> dict[str, torch.Tensor]:
        samples = [sample for group in self.groups.values() for sample in group]
        found: dict[str, torch.Tensor] = {}
        for names in _in_groups({name: width(layers[name]) for name in dict.fromkeys(owners.values())}):
            found |= self._of(names, layers, samples)
        if not found:
            raise ConfigError("algo.protect protects nothing: no layer with an adapter is used by the protected data")
        if self.setup.run.is_main:
            _write(found, self.setup.run.path / FILE)
        barrier()
        return found

    def _of(self, names: Sequence[str], layers: Layers, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """P of some inputs, the same on all ranks."""
        sums = InputSums(names, {name: name for name in names})
        add_up(self.setup, self.base, samples, [sums])
        found: dict[str, torch.Tensor] = {}
        while sums.totals:
            name, covariance = sums.totals.popitem()
            number = num_protected(width(layers[name]), self.algo.unfreeze_rank_ratio)
            if number:
                found[name] = twice(self.base, partial(most_used, covariance, number))
        same_on_all_ranks(found[name] for name in names if name in found)
        return {name: found[name] for name in names if name in found}


def width(layer: LoraLayer) -> int:
    """Number of a layer's inputs, whatever its weight is stored as."""
    size: int = layer.lora_A[ADAPTER].get_parameter("weight").shape[1]
    return size


def num_protected(size: int, ratio: float | None) -> int:
    """Number of protected directions of an input.

    Args:
        size: p, the number of its channels.
        ratio: fraction that is free, to the nearest direction, at least one. None: the default.
    """
    free = min(size, max(1, int((DEFAULT_RATIO if ratio is None else ratio) * size + 0.5)))
    return size - free if ratio is not None else min(size - free, MOST_PROTECTED)


def most_used(covariance: torch.Tensor, number: int) -> torch.Tensor:
    """The directions of the most energy.

    Args:
        covariance: (p, p), of the protected inputs.
        number: k, below p.

    Returns:
        P (p, k), float32, orthonormal columns.
    """
    if len(covariance) <= LARGEST_DECOMPOSED:
        vectors: torch.Tensor = torch.linalg.eigh(covariance.double())[1][:, -number:]
    else:
        vectors = largest_directions(covariance, number)[0]
    return vectors.float().contiguous()


def planned(setup: Setup, model: PeftModel) -> FreeInputs:
    """The same with directions of the right shapes and no numbers, for `hub plan`."""
    algo = setup.cfg.algo
    assert isinstance(algo, LoraSftConfig)
    layers = _layers(model)
    with _in_full(layers):
        owners = _owners(model)
    sizes = {name: width(layers[name]) for name in dict.fromkeys(owners.values())}
    numbers = {name: num_protected(size, algo.unfreeze_rank_ratio) for name, size in sizes.items()}
    meta = {name: torch.empty(sizes[name], number, device="meta") for name, number in numbers.items() if number}
    return FreeInputs(layers, owners, meta)


def _layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The layers of a model that have an adapter.

    Raises:
        ConfigError: some adapters are on single parameters, whose inputs are not those of a layer.
    """
    names, parameters = adapted(model)
    if parameters:
        raise ConfigError(
            f"algo.protect: adapters on experts can't be protected ({parameters[0]} and {len(parameters) - 1} more). "
            "Type algo.target_modules=attention, or leave algo.protect out"
        )
    base = model.get_base_model()
    layers = {name: base.get_submodule(name) for name in names}
    return {name: layer for name, layer in layers.items() if isinstance(layer, LoraLayer)}


def _owners(model: PeftModel) -> dict[str, str]:
    """Each layer with an adapter, and the first one that reads the same input."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    names = adapted(model)[0]
    same = same_inputs(base, names)
    return {name: same.get(name, name) for name in names}


@contextmanager
def _in_full(layers: Layers) -> Iterator[None]:
    """Layers that are quantized, and have no data, compute within this context: by unquantized ones without data."""
    quantized = {name: layer.base_layer for name, layer in layers.items() if type(layer.base_layer) not in (nn.Linear, Conv1D)}
    for name in quantized:
        size, rows = width(layers[name]), layers[name].lora_B[ADAPTER].get_parameter("weight").shape[0]
        layers[name].base_layer = nn.Linear(size, rows, False, "meta")
    try:
        yield
    finally:
        for name, base_layer in quantized.items():
            layers[name].base_layer = base_layer


def _in_groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Inputs in groups whose covariances fit into `GROUP_BYTES`; one alone in any case."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or 4 * size**2 > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(name)
        room -= 4 * size**2
    return groups


def _say(run: Run, layers: Layers, owners: Mapping[str, str], protected: Mapping[str, torch.Tensor], seconds: float) -> None:
    numbers = {name: protected[owner].shape[1] if (owner := owners[name]) in protected else 0 for name in layers}
    free = 1 - sum(numbers.values()) / sum(map(width, layers.values()))
    run.say(
        f"the adapters read {free:.1%} of the directions of their inputs, those that the protected data uses least "
        f"({len(protected)} inputs of {len(layers)} layers, {seconds:.1f} s)"
    )
    run.write_plan(
        directions_free=round(free, 4),
        directions_free_of={name: round(1 - numbers[name] / width(layer), 4) for name, layer in layers.items()},
        directions_seconds=round(seconds, 2),
    )


def _write(protected: Mapping[str, torch.Tensor], file: Path) -> None:
    aside = file.with_name(f".{file.name}")
    try:
        save_file({name: directions.cpu() for name, directions in protected.items()}, aside)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    aside.replace(file)


def _stored(setup: Setup) -> dict[str, torch.Tensor]:
    """P of each input as the run to resume began with them: read on rank 0, since other machines may not have the folder."""
    file, session = setup.run.path / FILE, setup.session
    found: dict[str, torch.Tensor] = {}
    problem = ""
    if session.group.is_main:
        try:
            with safe_open(file, "pt", device=str(session.device)) as stored:
                found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError):
            problem = f"{file} can't be read, and the run can't be resumed without it. Start a new run without resume"
    if problem := broadcast_text(problem):
        raise ModelError(problem)
    shapes = json.loads(broadcast_text(json.dumps({name: list(tensor.shape) for name, tensor in found.items()})))
    found = found or {name: torch.empty(shape, device=session.device) for name, shape in shapes.items()}
    same_on_all_ranks(found.values())
    return found
