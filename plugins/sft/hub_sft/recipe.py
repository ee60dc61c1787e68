"""Full fine-tuning on one page: load the model, train every weight."""

import torch

from hub.recipe import Recipe, Setup
from hub.train.kernels.float8 import report_layers
from hub_sft.config import SftConfig
from hub_sft.float8 import learn_in_fp8


def build(setup: Setup) -> Recipe:
    """Build the recipe: every weight trains.

    The weights are kept in float32 and used in `model.dtype`, so small steps are not rounded away. With
    `algo.master_weights=false` they are kept in `model.dtype`, too, and the optimizer rounds stochastically, so small steps
    add up. The model is saved in `model.dtype`.
    """
    algo, run = setup.cfg.algo, setup.run
    assert isinstance(algo, SftConfig)
    dtype = torch.float32 if algo.master_weights else setup.session.compute_dtype
    if dtype == torch.bfloat16:
        run.say("weights, gradients and moments are kept in bfloat16, rounded stochastically: 8 bytes a parameter")
    elif not algo.master_weights:
        run.say("algo.master_weights=false has no effect: the compute dtype is float32 here, as are the weights")
    model = setup.load_model(dtype)
    if algo.precision == "fp8":
        report_layers(run, *learn_in_fp8(model))
    return Recipe(model=model, save=setup.save_whole_model)
