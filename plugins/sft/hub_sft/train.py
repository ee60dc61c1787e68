"""Full fine-tuning on one page: set up, load, fit."""

from pathlib import Path
from typing import Any

import torch

from hub import Outcome, Run, RunConfig
from hub.models.load import save_whole_model
from hub.train.kernels.float8 import check_gpu, tell
from hub.train.loop import fit
from hub.train.setup.setup import set_up
from hub_sft.config import SftConfig
from hub_sft.float8 import learn_in_fp8


def train(cfg: RunConfig, run: Run) -> Outcome:
    """Train every weight.

    The weights are kept in float32 and used in `model.dtype`, so that small steps are not rounded away; or kept in that type
    too, by an optimizer that rounds stochastically, where small steps add up. The model is saved in `model.dtype`.
    """
    assert isinstance(cfg.algo, SftConfig)
    in_fp8 = cfg.algo.precision == "fp8"
    if in_fp8:
        check_gpu()
    setup = set_up(cfg, run)
    dtype = torch.float32 if cfg.algo.master_weights else setup.session.compute_dtype
    if dtype == torch.bfloat16:
        run.say("weights, gradients and moments are kept in bfloat16, rounded stochastically: 8 bytes a parameter")
    elif not cfg.algo.master_weights:
        run.say("algo.master_weights=false changes nothing: the arithmetic is in float32 here, and so are the weights")
    model = setup.load_model(dtype)
    if in_fp8:
        tell(run, *learn_in_fp8(model))

    def save(trained: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        save_whole_model(trained, setup.tokenizer, folder, setup.session.compute_dtype, weights)

    return fit(setup, model, save)
