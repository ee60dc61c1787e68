"""What every algorithm does before it builds its model: join the group, find the weights, read and tokenise the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hub.config import RunConfig
from hub.data.prepare import Prepared, prepare
from hub.run import Run
from hub.train.model import find_weights, load_causal_lm, load_config, load_tokenizer
from hub.train.session import Session, start_session


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

    def load_model(self, dtype: torch.dtype, quantization: Any = None) -> Any:
        """The base model on this process's device, weights in `dtype` or quantised, in training mode."""
        return load_causal_lm(self.cfg.model, self.base_path, self.session.device, dtype, quantization)


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
