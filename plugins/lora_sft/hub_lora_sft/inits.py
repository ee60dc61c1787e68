"""Adapters that begin with a part of the frozen weights (`algo.init`), and how adapters are saved.

With PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) A and B begin as factors A0, B0 of a part of the weight W, and this
part no longer counts as frozen:

    y = W x - s B0 A0 x + s B A x                                                       s = alpha / r

PEFT subtracts s B0 A0 from W itself. Here W is not touched, and the product is subtracted in the forward pass. So what training
changed, s (B A - B0 A0), is in every dtype a plain LoRA of rank 2 r on W, with A' = [A; A0] and B' = [B, -B0]. It is saved as
that, as PEFT converts such adapters (`LoraModel.subtract_mutated_init`): everybody can load it on the original weights.

A0 and B0 are in the run folder, since a resumed run needs exactly these: they may be random, and differ between machines.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear, LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hub import ConfigError, ModelError, Run
from hub.parallel.group import barrier, same_on_all_ranks
from hub.train.setup.setup import Setup
from hub_lora_sft.config import LoraSftConfig

ADAPTER = "default"
"""The adapter's name in PEFT."""

FILE = "initial_adapter.safetensors"
"""In the run folder: A0 and B0 of each layer."""

LOFTQ_BITS = 4


class Reduced(nn.Module):
    """A frozen layer without the part that its adapter began with: W x - s B0 A0 x.

    The factors are no parameters: they never train, are not sharded, and are not in the model's state.
    """

    a: torch.Tensor
    """A0, (r, in), in the dtype of the weight."""

    b: torch.Tensor
    """B0, (out, r)."""

    def __init__(self, layer: nn.Module, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        super().__init__()
        self.base_layer, self.scaling = layer, scaling  # PEFT looks for the frozen layer under this name
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        y: torch.Tensor = self.base_layer(x)
        return y - F.linear(F.linear(x, self.a), self.b) * self.scaling


def reduce_base(model: PeftModel, setup: Setup) -> None:
    """Begin with the factors of `algo.init`, or with those of the run to resume. To be called once the adapters are there.

    Args:
        model: with adapters of any values.
        setup: config, run folder, processes.

    Raises:
        ConfigError: a layer is none that can be factored.
        ModelError: the run to resume has no factors any more.
    """
    algo, run, session = setup.cfg.algo, setup.run, setup.session
    assert isinstance(algo, LoraSftConfig)
    layers = dict(_adapted(model, algo.init))
    stored = _stored(run) if setup.cfg.resume else None
    started = time.monotonic()
    factors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        weight = _weight(layer, algo.init, name)
        rank, scaling = layer.r[ADAPTER], layer.scaling[ADAPTER]
        if stored is None:
            a, b = factors_of(weight.to(session.device, torch.float32), algo.init, rank, scaling)
        else:
            a, b = stored.get(f"{name}.a", torch.empty(0)), stored.get(f"{name}.b", torch.empty(0))
        if a.shape != (rank, weight.shape[1]) or b.shape != (weight.shape[0], rank):
            raise ModelError(f"{run.path / FILE} is of other adapters. Undo the change of algo.lora_r or algo.target_modules")
        # What is subtracted and what training begins with must be the same numbers, so both are rounded.
        a, b = (factor.to(weight.device, weight.dtype).contiguous() for factor in (a, b))
        same_on_all_ranks([a, b])
        layer.lora_A[ADAPTER].weight.data = a.to(torch.float32, copy=True)
        layer.lora_B[ADAPTER].weight.data = b.to(torch.float32, copy=True)
        layer.base_layer = Reduced(layer.base_layer, a, b, scaling)
        factors |= {f"{name}.a": a.cpu(), f"{name}.b": b.cpu()}
    if stored is None:
        if run.is_main:
            _write(factors, run)
        run.say(f"algo.init={algo.init}: {len(layers)} adapters initialized in {time.monotonic() - started:.1f} s")
    barrier()


def factors_of(weight: torch.Tensor, init: str, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 (rank, in) and B0 (out, rank) for a weight (out, in) in float32, as PEFT computes them.

    Args:
        weight: W.
        init: pissa: scaling * B0 A0 is the best approximation of W. pissa_niter_N: nearly so, by N iterations of a randomized
            singular value decomposition. olora: B0 A0 is the first part of W = Q R.
        rank: rank of the adapter. If W has fewer directions, the others begin as in plain LoRA.
        scaling: s.
    """
    known = min(rank, *weight.shape)
    if init == "olora":
        b, a = torch.linalg.qr(weight)
        a, b = a[:known], b[:, :known]
    else:
        if init == "pissa":
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
        else:
            left, values, columns = torch.svd_lowrank(weight, q=known, niter=int(init.rpartition("_")[2]))
            right = columns.mT
        roots = (values[:known] / scaling).sqrt()
        a, b = roots[:, None] * right[:known], left[:, :known] * roots
    if rank > known:
        more = torch.empty(rank - known, weight.shape[1], device=weight.device)
        a = torch.cat([a, nn.init.kaiming_uniform_(more, a=5**0.5)])
        b = F.pad(b, (0, rank - known))
    return a, b


def scale_loftq(model: PeftModel) -> None:
    """Let adapters of LoftQ make up for what quantization takes: W = Q + s B A.

    PEFT computes W = Q + B A, whatever s is.
    """
    for _, layer in _adapted(model, "loftq"):
        root = layer.scaling[ADAPTER] ** 0.5
        for factor in (layer.lora_A, layer.lora_B):
            factor[ADAPTER].weight.data /= root


def save_adapter(model: PeftModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write an adapter that PEFT loads on the original weights. It may be called in a thread while the model trains.

    Args:
        model: for its config.
        folder: receives the files.
        weights: what trains, by name in the model.
    """
    config = copy.deepcopy(model.peft_config[ADAPTER])
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = True  # loading must neither factor the weights again nor change them
    if getattr(config, "ensure_weight_tying", False) and config.modules_to_save:
        # PEFT took the output layer out, and knows some embeddings by its name only.
        config.modules_to_save = [*config.modules_to_save, *sorted(getattr(config, "modules_to_tie", None) or ())]
    reduced = {name: module for name, module in model.named_modules() if isinstance(module, Reduced)}
    if reduced:
        _double_rank(config)
        weights = {name.replace(".base_layer.base_layer.", ".base_layer."): tensor for name, tensor in weights.items()}
    for name, part in reduced.items():
        layer = name.removesuffix(".base_layer")
        a, b = f"{layer}.lora_A.{ADAPTER}.weight", f"{layer}.lora_B.{ADAPTER}.weight"
        weights[a] = torch.cat([weights[a], part.a.to("cpu", weights[a].dtype)])
        weights[b] = torch.cat([weights[b], -part.b.to("cpu", weights[b].dtype)], dim=1)
    # Shallow copies with a config of their own: saving changes it, and the model may be training at the same time.
    inner, outer = object.__new__(type(model.base_model)), object.__new__(type(model))
    inner.__dict__.update(model.base_model.__dict__, peft_config={ADAPTER: config})
    outer.__dict__.update(model.__dict__, _modules={**model._modules, "base_model": inner})
    # `weights` has all that trains. Otherwise PEFT would look for the base model's config, maybe on the model hub.
    PeftModel.save_pretrained(outer, str(folder), state_dict=weights, save_embedding_layers=False)


def _double_rank(config: LoraConfig) -> None:
    """Double the ranks, and leave s as it is: alpha / r, with rsLoRA alpha / sqrt(r)."""
    more: Any = 2**0.5 if config.use_rslora else 2  # PEFT declares alpha as an int, but takes a quotient
    config.r, config.lora_alpha = 2 * config.r, more * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: more * alpha for name, alpha in (config.alpha_pattern or {}).items()}


def forget_factors(run: Run) -> None:
    """Remove the factors from the folder of a completed run, which can't be resumed."""
    (run.path / FILE).unlink(missing_ok=True)


def check_init(init: str, parameters: Sequence[str]) -> None:
    """Check that adapters on these single parameters can begin so.

    Raises:
        ConfigError: there are some, and this initialization is one of linear layers.
    """
    if parameters and init not in ("default", "gaussian"):
        raise _of_linear_layers(init, parameters[0])


def _of_linear_layers(init: str, name: str) -> ConfigError:
    return ConfigError(
        f"algo.init={init} works on linear layers, and {name} is none. Type algo.init=default, or algo.target_modules=attention"
    )


def _adapted(model: PeftModel, init: str) -> Iterator[tuple[str, Linear]]:
    """The layers that have an adapter."""
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            yield name, layer
        elif isinstance(layer, LoraLayer):
            raise _of_linear_layers(init, name.removeprefix("base_model.model."))


def _weight(layer: Linear, init: str, name: str) -> torch.Tensor:
    """The frozen weight as (out, in): GPT-2's Conv1D has the transpose."""
    weight = layer.get_base_layer().weight
    assert isinstance(weight, torch.Tensor)
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConfigError(
            f"algo.init={init} needs unquantized weights, and {name.removeprefix('base_model.model.')} is in "
            f"{str(weight.dtype).removeprefix('torch.')}. Type algo.init=default"
        )
    return weight.detach().mT if layer.fan_in_fan_out else weight.detach()


def _stored(run: Run) -> dict[str, torch.Tensor]:
    try:
        return load_file(run.path / FILE)
    except (OSError, SafetensorError):
        raise ModelError(
            f"{run.path / FILE} can't be read, and the run can't be resumed without it: its adapters began with it. "
            "Start a new run without resume"
        ) from None


def _write(factors: dict[str, torch.Tensor], run: Run) -> None:
    aside = run.path / f".{FILE}"
    save_file(factors, aside)
    aside.replace(run.path / FILE)
