"""Full fine-tuning on one page: set up, load, fit."""

from pathlib import Path
from typing import Any

import torch

from hub import Outcome, Run, RunConfig
from hub.train.loop import fit
from hub.train.model import save_whole_model
from hub.train.setup import set_up


def train(cfg: RunConfig, run: Run) -> Outcome:
    """Train every weight.

    The weights are kept in float32 and used in `model.dtype`, so that small steps are not rounded away; the model is saved
    in `model.dtype`.
    """
    setup = set_up(cfg, run)
    model = setup.load_model(torch.float32)

    def save(trained: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        save_whole_model(trained, setup.tokenizer, folder, setup.session.compute_dtype, weights)

    return fit(setup, model, save)
