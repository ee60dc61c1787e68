"""DeepSpeed's ZeRO as a strategy (Rajbhandari et al., arXiv 1910.02054): what each process holds whole, and what a share of.

Stage 1 shares out the optimizer's state, stage 2 the gradients as well, stage 3 the weights as well. DeepSpeed's engine sits
around the model from `start` on. Its config is made here from the hub's options, or from the user's own file; whatever decides
about batches, clipping and the schedule stays the hub's, so that a run is the same under any strategy.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from hub.errors import ConfigError
from hub.parallel.group import Group, same_on_all_ranks
from hub.parallel.optimizer_state import group_numbers, restore_groups
from hub.parallel.sharded_tensors import StoredTensors
from hub.parallel.strategy import Replicated

OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
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


class Zero(Replicated):
    """ZeRO stages 1 to 3 for training every weight."""

    recovers_memory = False
    has_engine = True

    def __init__(
        self, stage: int, group: Group, compute_dtype: torch.dtype, cpu_offload: bool, config_file: str | None
    ) -> None:
        self.name = f"zero{stage}"
        self.shares_weights = stage == 3
        self._stage, self._group = stage, group
        self._config = engine_config(stage, compute_dtype, cpu_offload, config_file)
        self._engine: Any = None

    def shares_of_state(self, world: int) -> int:
        return world

    def place(self, model: Any) -> None:
        """The same weights everywhere. Those of stage 3 lie on the host until `start` shares them out."""
        same_on_all_ranks(p.data for p in model.parameters())

    def start(self, model: Any, optimizer: torch.optim.Optimizer) -> Any:
        """The engine, which takes the optimizer's parameters over."""
        quiet()
        import deepspeed

        if self._stage == 3:
            deepspeed.zero.Init(module=model, config_dict_or_path=self._config)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._config, dist_init_required=False)
        return self._engine

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the engine trains in float32, put together from the ranks' shares."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = safe_get_full_fp32_param(tensor)
        return tensor.detach() if found is None else found

    def shape(self, parameter: torch.Tensor) -> tuple[int, ...]:
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def optimizer_state(self, model: Any, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Put together by weight, so that any strategy reads it; on rank 0, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        flats, inner = self._flat_state()
        self._link_state()
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            for key, value in inner.state.get(flats[0], {}).items():
                if value.shape != flats[0].shape:
                    tensors[f"{name}/{key}"] = value.detach().cpu()
                    continue
                whole = safe_get_full_optimizer_state(parameter, key)
                if self._group.is_main:
                    tensors[f"{name}/{key}"] = whole.view(self.shape(parameter)).cpu()
        return tensors if self._group.is_main else {}, {"values": {}, "groups": group_numbers(optimizer)}

    def load(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        weights: StoredTensors,
        moments: StoredTensors,
        numbers: dict[str, Any],
    ) -> None:
        """Into the weights that passes use, the float32 ones that the optimizer changes, and its moments."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        flats, inner = self._flat_state()
        places = {place.rpartition("/")[2]: place for place in moments.shapes}
        single = {key for key, place in places.items() if moments.shapes[place] == ()}
        for flat in flats:
            inner.state[flat] = {
                key: moments.read(place).clone() if key in single else torch.zeros_like(flat) for key, place in places.items()
            }
        self._link_state()
        for name, parameter in model.named_parameters():
            value = weights.read(name).to(self._group.device)
            with torch.no_grad(), deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=self._stage == 3):
                parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value)
            for key in places.keys() - single:
                safe_set_full_optimizer_state(parameter, moments.read(f"{name}/{key}").to(self._group.device), key)
        restore_groups(optimizer, numbers["groups"])

    def _flat_state(self) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        """The engine's flat shares of all weights, and the optimizer that changes them."""
        zero = self._engine.optimizer
        return zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups, zero.optimizer

    def _link_state(self) -> None:
        """Let each weight know where its moments lie. The engine does so in its first step, when half of them do not exist."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        flats, inner = self._flat_state()
        if self._stage < 3:
            for parameters, flat in zip(self._engine.optimizer.bit16_groups, flats, strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, inner.state)

    def backward(self, loss: torch.Tensor) -> None:
        """DeepSpeed takes the mean over the ranks where the hub's loss asks for the sum."""
        # A loss that is not finite makes every gradient NaN, so that the engine leaves the step out as the loop does.
        keep = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        self._engine.backward(loss * keep * self._group.world)

    def update(self, optimizer: torch.optim.Optimizer, bound: float | None, loss: torch.Tensor) -> tuple[float, float]:
        """The engine's step: it reduces, clips, and leaves the weights alone when a gradient is not finite."""
        self._engine.optimizer.clip_grad = bound or 0.0
        self._engine.step()
        return float(loss), float(self._engine.get_global_grad_norm())


def engine_config(stage: int, compute_dtype: torch.dtype, cpu_offload: bool, config_file: str | None) -> dict[str, Any]:
    """DeepSpeed's config for a stage, with the user's file laid over the hub's defaults.

    Weights are kept and gradients summed in float32; products are taken in `compute_dtype` under autocast, as in the other
    strategies. A file that sets `bf16` or `torch_autocast` decides about that itself.

    Raises:
        ConfigError: the file can't be read, asks for another stage, or sets what the hub's options set.
    """
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": stage == 2, "contiguous_gradients": True}
    if cpu_offload:
        zero |= {"offload_optimizer": place} | ({"offload_param": place} if stage == 3 else {})
    config: dict[str, Any] = {"zero_optimization": zero}
    if compute_dtype != torch.float32:
        name = str(compute_dtype).removeprefix("torch.")
        # No module on the list: what the ranks exchange stays in float32.
        config["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
    if config_file:
        theirs = _read(Path(config_file), stage)
        if {"bf16", "fp16"} & theirs.keys():
            config.pop("torch_autocast", None)
        zero |= theirs.pop("zero_optimization", {})
        config |= theirs
    return config | {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _read(file: Path, stage: int) -> dict[str, Any]:
    """The user's DeepSpeed config without what is `auto` in it, as other trainers write for "the trainer fills this in"."""
    asked = f"launch.deepspeed_config={file}"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{asked}: it can't be read ({error.strerror}). Type the name of a DeepSpeed JSON file") from None
    except ValueError as error:
        raise ConfigError(f"{asked}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{asked}: a JSON object is needed, e.g. {{}}")
    config: dict[str, Any] = _without_auto(found)
    for key in OURS:
        if key in config:
            raise ConfigError(f'{asked} sets {key}, which the hub sets from {INSTEAD[key]}. Take it out, or write "auto"')
    if isinstance(config.get("fp16"), dict) and config["fp16"].get("enabled"):
        raise ConfigError(f"{asked} turns fp16 on, whose loss scale skips steps. Take it out: model.dtype decides")
    theirs = config.get("zero_optimization", {}).get("stage", stage)
    if theirs != stage:
        raise ConfigError(f"{asked} asks for stage {theirs}. Type launch.strategy=zero{theirs}, or take the stage out")
    return config


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _without_auto(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in inner.items() if value != "auto"}


def quiet() -> None:
    """DeepSpeed's log goes to the screen line by line; only what went wrong is shown."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
