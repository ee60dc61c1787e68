"""What every algorithm does before it builds its model: join the group, find the weights, read and tokenise the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hub.config import WORK_ON_SHARES, RunConfig
from hub.data.prepare import Prepared, prepare
from hub.errors import ConfigError
from hub.run import Run
from hub.train.model import find_weights, load_causal_lm, load_config, load_tokenizer, num_parameters
from hub.train.session import Session, start_session
from hub.train.strategy import choose_strategy


@dataclass(frozen=True)
class Setup:
    """All that a training run has before its model."""

    cfg: RunConfig
    run: Run
    session: Session
    base_path: Path
    """Local folder of the base weights."""

    tokenizer: Any
    data: Prepared

    def load_model(self, dtype: torch.dtype, quantization: Any = None, frozen: bool = False) -> Any:
        """The base model in training mode, where the strategy wants it before `fit` places it.

        Args:
            dtype: type of the weights.
            quantization: a transformers quantisation config, or None.
            frozen: whether the weights stay as they are while something small (an adapter) learns.
        """
        launch, session = self.cfg.launch, self.session
        if launch.strategy == "split":
            self.run.write_plan(strategy="split", strategy_because="asked for")
            return load_causal_lm(self.cfg.model, self.base_path, "balanced", dtype, quantization)
        several = session.group.world > 1
        shape = num_parameters(self.cfg.model, self.base_path) * dtype.itemsize if several else 0
        strategy, why = choose_strategy(
            launch.strategy, session.group, shape, 0.0 if frozen else 1.0, session.compute_dtype, launch.cpu_offload
        )
        if quantization is not None and strategy.name == "fsdp":
            raise ConfigError(
                "launch.strategy=fsdp can't share out 4-bit and 8-bit weights. Type launch.strategy=ddp, or algo=lora_sft"
            )
        if strategy.name == "fsdp" and self.cfg.algo.optimizer not in WORK_ON_SHARES:
            raise ConfigError(
                f"algo.optimizer={self.cfg.algo.optimizer} can't work on shares of weights (launch.strategy=fsdp). "
                "Type algo.optimizer=adamw"
            )
        session.strategy = strategy
        self.run.write_plan(strategy=strategy.name, strategy_because=why)
        if session.group.world > 1:
            self.run.say(f"strategy {strategy.name} ({why})")
        device = torch.device("cpu") if strategy.name == "fsdp" else session.device
        return load_causal_lm(self.cfg.model, self.base_path, device, dtype, quantization)


def set_up(cfg: RunConfig, run: Run) -> Setup:
    """Do all that; say and write into plan.json what was found.

    Raises:
        HubError: no such model, no chat template, bad data.
    """
    session = start_session(cfg, run)
    path = find_weights(cfg.model, run, session)
    tokenizer = load_tokenizer(cfg, path)
    positions = getattr(load_config(cfg.model, path).get_text_config(), "max_position_embeddings", None)
    data = prepare(cfg, tokenizer, positions)
    run.write_plan(base_model_path=str(path), data=data.report)
    for line in data.lines:
        run.say(line)
    return Setup(cfg, run, session, path, tokenizer, data)
