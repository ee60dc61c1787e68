"""Full fine-tuning on one page: set up, load, fit."""

from pathlib import Path
from typing import Any

import torch

from hub import Outcome, Run, RunConfig
from hub.train.loop import fit
from hub.train.model import save_whole_model
from hub.train.setup import set_up
from hub_sft.config import SftConfig


def train(cfg: RunConfig, run: Run) -> Outcome:
    """Train every weight.

    The weights are kept in float32 and used in `model.dtype`, so that small steps are not rounded away; or kept in that type
    too, by an optimizer that rounds stochastically, where small steps add up. The model is saved in `model.dtype`.
    """
    setup = set_up(cfg, run)
    assert isinstance(cfg.algo, SftConfig)
    dtype = torch.float32 if cfg.algo.master_weights else setup.session.compute_dtype
    if dtype == torch.bfloat16:
        run.say("weights, gradients and moments are kept in bfloat16, rounded stochastically: 8 bytes a parameter")
    elif not cfg.algo.master_weights:
        run.say("algo.master_weights=false changes nothing: the arithmetic is in float32 here, and so are the weights")
    model = setup.load_model(dtype)

    def save(trained: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        save_whole_model(trained, setup.tokenizer, folder, setup.session.compute_dtype, weights)

    return fit(setup, model, save)
