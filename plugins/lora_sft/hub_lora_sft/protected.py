"""What adapters leave alone (`algo.protect`): measured before training, stored for resume, left for the next run.

How adapters are kept from it while they train is in `free_inputs`. The directions are those of the layers' inputs before
training. They are computed for some layers at a time, so that memory holds few covariances at once, and stay in the run folder
until the run is completed: a resumed run continues with the same ones.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hub import ConfigError, DataError, ModelError, Run
from hub.data.samples.sample import Sample
from hub.parallel.group import barrier, broadcast_text, same_on_all_ranks
from hub.protection.covariances import InputSums, add_up, largest_directions
from hub.protection.files import PROTECTION
from hub.protection.passes import same_inputs
from hub.protection.pull import RANK, Pull, low_rank_plus_diagonal
from hub.protection.samples import Groups
from hub.protection.sensitivity import geometric_mean, measure_sensitivity, pull_per_energy
from hub.protection.sources import Wanted, earlier_file, embedding_rows, leave, report, samples_to_protect
from hub.train.attempts import twice
from hub.train.setup.setup import Setup
from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.free_inputs import FreeInputs, Input, Layers
from hub_lora_sft.inits import ADAPTER
from hub_lora_sft.parameters import Targets
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

Measured = dict[str, torch.Tensor]
"""What is measured, by the names in `FILE`. Of each input, by the first layer NAME that reads it: `cut NAME`, P of
`free_inputs`; `top NAME`, `energy NAME` and `rest NAME`, V, e and d of `hub.protection.pull`. Of each layer: `factor NAME`
(1,), the pull per energy at strength 1."""


class Protected:
    """What a run with `algo.protect` protects, and how."""

    def __init__(self, setup: Setup, base: PreTrainedModel, targets: Targets) -> None:
        """Measure the protected data on the model before training, or read what the run to resume has measured.

        Args:
            setup: of the run.
            base: before it gets adapters, which may change the dtype of what else trains.
            targets: what will get one.

        Raises:
            ConfigError: an adapter can't be protected.
            DataError: a row can't be used.
            ModelError: what an earlier run left can't be used.
        """
        algo = setup.cfg.algo
        assert isinstance(algo, LoraSftConfig)
        self.setup, self.base, self.algo = setup, base, algo
        if targets.parameters:
            raise _of_experts(targets.parameters)
        same = same_inputs(base, targets.layers)
        self.owners = {name: same.get(name, name) for name in targets.layers}
        """Each layer, and the first one that reads the same input."""

        sizes = {name: _num_inputs(base, name) for name in dict.fromkeys(self.owners.values())}
        earlier = earlier_file(setup, algo.protect_from)
        if earlier is not None and earlier.name == PROTECTION:
            raise ModelError(f"{earlier} has sums of an earlier run, and adapters need its samples. {INSTEAD}")
        wanted = Wanted(algo.protect_files, NUM_SAMPLES, earlier, INSTEAD)
        self.vocabulary = embedding_rows(base)
        self.groups: Groups = samples_to_protect(setup, base, wanted, max(sizes.values()))
        report(setup, self.groups, self.vocabulary, earlier)
        begun = time.monotonic()
        self.found = (_stored(setup) if setup.cfg.resume else {}) or self._find(sizes)
        self.seconds = time.monotonic() - begun

    def hold(self, model: PeftModel) -> FreeInputs:
        """Let new adapters begin in the free directions, and return what keeps them there. Called once.

        Args:
            model: the model that was measured, with its adapters.
        """
        layers, strength = _layers(model), self.algo.protect_strength
        free_inputs = FreeInputs(_inputs(layers, self.owners, self.found, strength))
        self.found = {}
        free_inputs.begin()  # a run that is resumed reads its adapters afterwards
        _say(self.setup.run, layers, free_inputs, strength, self.seconds)
        return free_inputs

    def leave(self, is_over: bool) -> None:
        """Leave what was protected and learned for the next run. On rank 0 alone. A completed run's directions are removed.

        Args:
            is_over: whether the run is completed.
        """
        leave(self.setup, self.groups, NUM_SAMPLES, self.vocabulary)
        if is_over:
            (self.setup.run.path / FILE).unlink(missing_ok=True)

    def _find(self, sizes: Mapping[str, int]) -> Measured:
        """Measure the protected data on the model, and store it in the run folder. The result is equal on all ranks.

        Args:
            sizes: the first layer that reads an input -> p, its number of channels.
        """
        samples = [sample for group in self.groups.values() for sample in group]
        measured: Measured = {}
        diagonals: dict[str, torch.Tensor] = {}
        for names in _in_groups(sizes):
            sums = InputSums(names, {name: name for name in names})
            add_up(self.setup, self.base, samples, [sums])
            while sums.totals:
                name, covariance = sums.totals.popitem()
                diagonals[name] = covariance.diagonal().clone()
                measured |= self._directions(name, covariance)
        if not diagonals:
            raise ConfigError("algo.protect protects nothing: no layer with an adapter is used by the protected data")
        if self.algo.protect_strength:
            of_layers = {name: diagonals[owner] for name, owner in self.owners.items() if owner in diagonals}
            measured |= self._factors(of_layers, samples)
        same_on_all_ranks(measured[name] for name in sorted(measured))
        if self.setup.run.is_main:
            _write(measured, self.setup.run.path / FILE)
        barrier()
        return measured

    def _directions(self, name: str, covariance: torch.Tensor) -> Measured:
        """The directions of one input.

        Args:
            name: the first layer that reads it.
            covariance: (p, p), of the protected inputs.
        """
        measured: Measured = {}
        if number := num_protected(len(covariance), self.algo.ratio):
            measured[f"cut {name}"] = twice(self.base, partial(most_used, covariance, number))
        if self.algo.protect_strength:
            rank = min(RANK, len(covariance))
            top, energy, rest = twice(self.base, partial(low_rank_plus_diagonal, covariance, rank))
            measured |= {f"top {name}": top.contiguous(), f"energy {name}": energy.contiguous(), f"rest {name}": rest}
        return measured

    def _factors(self, diagonals: Mapping[str, torch.Tensor], samples: Sequence[Sample]) -> Measured:
        """The pull of each layer per energy at strength 1.

        Args:
            diagonals: layer -> energy of the protected data in each channel of its input (p,).
            samples: the protected data.
        """
        names = list(diagonals)
        sensitivity = measure_sensitivity(self.setup, self.base, names, samples)
        size = geometric_mean(_size(self.base.get_submodule(name)) for name in names)
        factors = pull_per_energy(sensitivity, diagonals, size)
        if not any(factors.values()):
            raise DataError(
                f"algo.protect_strength={self.algo.protect_strength:g} protects nothing: no layer matters to what the "
                "protected data says. Type algo.protect=FILE with samples that have loss tokens"
            )
        device = self.setup.session.device
        return {f"factor {name}": torch.tensor([factor], device=device) for name, factor in factors.items()}


def _width(layer: LoraLayer) -> int:
    """Number of the inputs of a layer with an adapter."""
    size: int = layer.lora_A[ADAPTER].get_parameter("weight").shape[1]
    return size


def _num_inputs(model: PreTrainedModel, name: str) -> int:
    """Number of the inputs of a layer without an adapter, whatever its weight is stored as."""
    layer = model.get_submodule(name)
    size: int = layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.in_features  # type: ignore[assignment]
    return size


def _size(layer: nn.Module) -> float:
    """Root mean square of a frozen weight."""
    weight: Any = layer.weight
    if weight.dtype == torch.int8:  # bitsandbytes' rows in 8 bits: dequantizing them would move the layer's state
        scales = weight.SCB if getattr(weight, "SCB", None) is not None else cast(Any, layer).state.SCB
        weight = weight.detach().float() * (scales.to(weight.device) / 127)[:, None]
    elif not weight.is_floating_point():
        weight = dequantize_module_weight(layer)
    return float(weight.detach().float().square().mean().sqrt())


def num_protected(size: int, ratio: float | None) -> int:
    """Count the protected directions of an input.

    Args:
        size: p, the number of its channels.
        ratio: fraction that is free, to the nearest direction, at least one. None: a half, and at most `MOST_PROTECTED` are
            protected.
    """
    free = min(size, max(1, int((DEFAULT_RATIO if ratio is None else ratio) * size + 0.5)))
    return size - free if ratio is not None else min(size - free, MOST_PROTECTED)


def most_used(covariance: torch.Tensor, number: int) -> torch.Tensor:
    """Compute the directions of most energy.

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
    """Build what `Protected.hold` returns for a model without data, for `hub plan`: directions have shapes and no numbers.

    Args:
        setup: of the plan.
        model: with its adapters.
    """
    algo = setup.cfg.algo
    assert isinstance(algo, LoraSftConfig)
    layers = _layers(model)
    with _in_full(layers):
        owners = _owners(model)
    sizes = {name: _width(layers[name]) for name in dict.fromkeys(owners.values())}
    measured: Measured = {}
    for name, size in sizes.items():
        rank = min(RANK, size)
        shapes: dict[str, tuple[int, ...]] = {"cut": (size, num_protected(size, algo.ratio))}
        if algo.protect_strength:
            shapes |= {"top": (size, rank), "energy": (rank,), "rest": (size,)}
        measured |= {f"{part} {name}": torch.empty(shape, device="meta") for part, shape in shapes.items() if shape[-1]}
    measured |= {f"factor {name}": torch.empty(1, device="meta") for name in layers if algo.protect_strength}
    return FreeInputs(_inputs(layers, owners, measured, algo.protect_strength))


def _inputs(layers: Layers, owners: Mapping[str, str], measured: Measured, strength: float) -> list[Input]:
    """What keeps adapters from each input that is protected."""
    inputs: list[Input] = []
    for owner in dict.fromkeys(owners.values()):
        readers = {name: layer for name, layer in layers.items() if owners[name] == owner}
        pulls: dict[str, Pull] = {}
        if f"top {owner}" in measured:
            top, energy, rest = (measured[f"{part} {owner}"] for part in ("top", "energy", "rest"))
            scales = {name: strength * measured[f"factor {name}"] for name in readers}
            pulls = {name: Pull(top, energy * scale, rest * scale) for name, scale in scales.items()}
        if pulls or f"cut {owner}" in measured:
            inputs.append(Input(readers, measured.get(f"cut {owner}"), pulls))
    return inputs


def _layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The layers of a model that have an adapter.

    Raises:
        ConfigError: some adapters are on single parameters, whose inputs are not those of a layer.
    """
    names, parameters = adapted(model)
    if parameters:
        raise _of_experts(parameters)
    base = model.get_base_model()
    layers = {name: base.get_submodule(name) for name in names}
    return {name: layer for name, layer in layers.items() if isinstance(layer, LoraLayer)}


def _of_experts(parameters: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"algo.protect: adapters on experts can't be protected ({parameters[0]} and {len(parameters) - 1} more). "
        "Type algo.target_modules=attention, or leave algo.protect out"
    )


def _owners(model: PeftModel) -> dict[str, str]:
    """Each layer with an adapter, and the first one that reads the same input."""
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    names = adapted(model)[0]
    same = same_inputs(base, names)
    return {name: same.get(name, name) for name in names}


@contextmanager
def _in_full(layers: Layers) -> Iterator[None]:
    """Quantized layers without data can't compute: in this context unquantized ones stand in for them."""
    quantized = {name: layer.base_layer for name, layer in layers.items() if type(layer.base_layer) not in (nn.Linear, Conv1D)}
    for name in quantized:
        size, rows = _width(layers[name]), layers[name].lora_B[ADAPTER].get_parameter("weight").shape[0]
        layers[name].base_layer = nn.Linear(size, rows, False, "meta")
    try:
        yield
    finally:
        for name, base_layer in quantized.items():
            layers[name].base_layer = base_layer


def _in_groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Inputs in groups whose covariances fit into `GROUP_BYTES` together. One that is larger makes a group."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or 4 * size**2 > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(name)
        room -= 4 * size**2
    return groups


def _say(run: Run, layers: Layers, free_inputs: FreeInputs, strength: float, seconds: float) -> None:
    cut = {name: one.protected.shape[1] for one in free_inputs.inputs if one.protected is not None for name in one.layers}
    free = {name: 1 - cut.get(name, 0) / _width(layer) for name, layer in layers.items()}
    mean = 1 - sum(cut.values()) / sum(map(_width, layers.values()))
    words = f"the adapters read {mean:.1%} of the directions of their inputs, those that the protected data uses least"
    if strength:
        pulled = f"they are pulled toward the base weights by how much the protected data depends on it ({strength:g})"
        words = f"{words}, and {pulled}" if cut else f"the adapters read all directions of their inputs, and {pulled}"
    run.say(f"{words} ({len(free_inputs.inputs)} inputs of {len(layers)} layers, {seconds:.1f} s)")
    run.write_plan(
        directions_free=round(mean, 4),
        directions_free_of={name: round(fraction, 4) for name, fraction in free.items()},
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
    """What is found, as the run to resume began with it: read on rank 0, since other machines may not have the folder.

    Empty if it is not there, as after a completed run that is to go on for more steps: its samples still are, and so the same
    can be measured again.
    """
    file, session = setup.run.path / FILE, setup.session
    found: dict[str, torch.Tensor] = {}
    if session.group.is_main:
        try:
            with safe_open(file, "pt", device=str(session.device)) as stored:
                found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError):
            setup.run.say(f"{file} can't be read, so what is protected is measured again")
            found = {}
    shapes = json.loads(broadcast_text(json.dumps({name: list(tensor.shape) for name, tensor in found.items()})))
    found = found or {name: torch.empty(shape, device=session.device) for name, shape in shapes.items()}
    same_on_all_ranks(found.values())
    return found
