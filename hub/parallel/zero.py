"""DeepSpeed's ZeRO as a strategy (Rajbhandari et al., arXiv 1910.02054).

Stage 1 shards the optimizer state, stage 2 also the gradients, stage 3 also the weights. `start` wraps the model in DeepSpeed's
engine. Its config is built here from the hub's options, or from the user's own file. Batches, clipping and schedule are always
set by the hub, so that a run is the same under any strategy.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from hub.errors import ConfigError
from hub.models.structure import outside_text
from hub.parallel.group import Group, same_on_all_ranks
from hub.parallel.optimizer_state import Numbers, group_numbers, restore_groups
from hub.parallel.sharded_tensors import StoredTensors
from hub.parallel.strategy import Replicated

SET_BY_HUB = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
        "optimizer", "scheduler", "managed_gradient_accumulation")  # fmt: skip
"""Keys of a DeepSpeed config that the hub sets from its own options."""

INSTEAD = {
    "train_batch_size": "algo.effective_batch_size",
    "train_micro_batch_size_per_gpu": "algo.max_tokens_per_gpu",
    "gradient_accumulation_steps": "algo.effective_batch_size",
    "gradient_clipping": "algo.max_grad_norm",
    "optimizer": "algo.optimizer and algo.learning_rate",
    "scheduler": "algo.lr_scheduler",
    "managed_gradient_accumulation": "algo.effective_batch_size",
}
"""The hub's option for each of these keys."""


class Zero(Replicated):
    """ZeRO stages 1 to 3 for training every weight."""

    recovers_memory = False
    has_engine = True

    def __init__(
        self, stage: int, group: Group, compute_dtype: torch.dtype, cpu_offload: bool, config_file: str | None
    ) -> None:
        self.name = f"zero{stage}"
        self.shards_weights = stage == 3
        self._stage, self._group = stage, group
        self._config = engine_config(stage, compute_dtype, cpu_offload, config_file)
        self._engine: Any = None  # DeepSpeed has no types

    def num_state_shards(self, world: int) -> int:
        return world

    def place(self, model: torch.nn.Module) -> None:
        """Broadcast rank 0's weights. With stage 3 they stay on the CPU until `start` shards them.

        Raises:
            ConfigError: the model has a part that stays frozen.
        """
        if outside_text(model):
            raise ConfigError(
                f"launch.strategy={self.name} trains whole models only, and the vision part of this one stays frozen. "
                "Type launch.strategy=fsdp or ddp"
            )
        same_on_all_ranks(p.data for p in model.parameters())

    def start(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        """Wrap the model in DeepSpeed's engine, which replaces the optimizer's parameters."""
        quiet()
        import deepspeed

        if self._stage == 3:
            deepspeed.zero.Init(module=model, config_dict_or_path=self._config)
        engine: torch.nn.Module
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._config, dist_init_required=False)
        self._engine = engine
        return engine

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """The float32 weight that the engine trains, all-gathered; other tensors as they are."""
        from deepspeed.utils import safe_get_full_fp32_param

        gathered: torch.Tensor | None = safe_get_full_fp32_param(tensor)
        return tensor.detach() if gathered is None else gathered

    def shape(self, parameter: torch.Tensor) -> tuple[int, ...]:
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def optimizer_state(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, torch.Tensor], Numbers]:
        """The state all-gathered by weight, so that any strategy can load it. On rank 0, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        flats, inner = self._flat_state()
        self._link_state()
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            for key, value in inner.state.get(flats[0], {}).items():
                if value.shape != flats[0].shape:
                    tensors[f"{name}/{key}"] = value.detach().cpu()
                    continue
                full: torch.Tensor = safe_get_full_optimizer_state(parameter, key)
                if self._group.is_main:
                    tensors[f"{name}/{key}"] = full.view(self.shape(parameter)).cpu()
        return tensors if self._group.is_main else {}, {"values": {}, "groups": group_numbers(optimizer)}

    def load(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: StoredTensors,
        moments: StoredTensors,
        numbers: Numbers,
    ) -> None:
        """Load the weights of the passes, the float32 weights of the optimizer, and its moments."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        flats, inner = self._flat_state()
        paths = {path.rpartition("/")[2]: path for path in moments.shapes}
        scalars = {key for key, path in paths.items() if moments.shapes[path] == ()}
        for flat in flats:
            inner.state[flat] = {
                key: moments.read(path).clone() if key in scalars else torch.zeros_like(flat) for key, path in paths.items()
            }
        self._link_state()
        for name, parameter in model.named_parameters():
            value = weights.read(name).to(self._group.device)
            with torch.no_grad(), deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=self._stage == 3):
                parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value)
            for key in paths.keys() - scalars:
                safe_set_full_optimizer_state(parameter, moments.read(f"{name}/{key}").to(self._group.device), key)
        restore_groups(optimizer, numbers["groups"])

    def _flat_state(self) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        """The engine's flat float32 shards of all weights, and the optimizer that steps them."""
        zero = self._engine.optimizer
        flats: list[torch.Tensor]
        flats = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        inner: torch.optim.Optimizer = zero.optimizer
        return flats, inner

    def _link_state(self) -> None:
        """Link each weight to its moments. The engine would do it in its first step, before they all exist."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        flats, inner = self._flat_state()
        if self._stage < 3:
            for parameters, flat in zip(self._engine.optimizer.bit16_groups, flats, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, inner.state)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of one micro-batch. DeepSpeed averages over ranks, where the hub needs the sum."""
        # A loss that is not finite makes every gradient NaN, so that the engine skips the step as the training loop does.
        one_or_nan = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        self._engine.backward(loss * one_or_nan * self._group.world)

    def update(self, optimizer: torch.optim.Optimizer, bound: float | None, loss: torch.Tensor) -> tuple[float, float]:
        """Run the engine's step: it reduces and clips, and skips the update if a gradient is not finite."""
        self._engine.optimizer.clip_grad = bound or 0.0
        self._engine.step()
        return float(loss), float(self._engine.get_global_grad_norm())


def engine_config(stage: int, compute_dtype: torch.dtype, cpu_offload: bool, config_file: str | None) -> dict[str, Any]:
    """DeepSpeed's config for a stage: the hub's defaults, overridden by the user's file.

    Weights are stored and gradients summed in float32; matrix products run in `compute_dtype` under autocast, as in the other
    strategies. A file that sets `bf16` or `torch_autocast` overrides this.

    Raises:
        ConfigError: the file can't be read, has another stage, or sets a key that the hub's options set.
    """
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": stage == 2, "contiguous_gradients": True}
    if cpu_offload:
        zero |= {"offload_optimizer": offload} | ({"offload_param": offload} if stage == 3 else {})
    config: dict[str, Any] = {"zero_optimization": zero}
    if compute_dtype != torch.float32:
        name = str(compute_dtype).removeprefix("torch.")
        # An empty list: communication between ranks stays in float32.
        config["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
    if config_file:
        from_user = _read(Path(config_file), stage)
        if {"bf16", "fp16"} & from_user.keys():
            config.pop("torch_autocast", None)
        zero |= from_user.pop("zero_optimization", {})
        config |= from_user
    return config | {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _read(file: Path, stage: int) -> dict[str, Any]:
    """The user's DeepSpeed config without values `auto`, which other trainers use for "set by the trainer"."""
    asked = f"launch.deepspeed_config={file}"
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{asked}: it can't be read ({error.strerror}). Type the name of a DeepSpeed JSON file") from None
    except ValueError as error:
        raise ConfigError(f"{asked}: no JSON ({error})") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{asked}: a JSON object is needed, e.g. {{}}")
    config: dict[str, Any] = _without_auto(loaded)
    for key in SET_BY_HUB:
        if key in config:
            raise ConfigError(f'{asked} sets {key}, which the hub sets from {INSTEAD[key]}. Take it out, or write "auto"')
    if isinstance(config.get("fp16"), dict) and config["fp16"].get("enabled"):
        raise ConfigError(f"{asked} turns fp16 on, whose loss scale skips steps. Take it out: model.dtype decides")
    in_file = config.get("zero_optimization", {}).get("stage", stage)
    if in_file != stage:
        raise ConfigError(f"{asked} sets stage {in_file}. Type launch.strategy=zero{in_file}, or remove the stage from it")
    return config


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _without_auto(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in inner.items() if value != "auto"}


def quiet() -> None:
    """Show only errors of DeepSpeed's log."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
