"""What an author of an algorithm imports: the public path to `Recipe`, `Setup`, `Objective` and the helpers around a model.

    from hub.recipe import Recipe, Setup

    def build(setup: Setup) -> Recipe:
        model = setup.load_model(torch.float32)
        return Recipe(model=model, save=setup.save_whole_model)

Importing it imports torch, so an entry module must not.
"""

from hub.models.check_loaded import check_loaded
from hub.models.load import train_only, trainable_in_float32
from hub.parallel.reparametrization import Reparametrization
from hub.train.kernels.external import ExternalKernels
from hub.train.losses.objective import NextToken, Objective, Passes
from hub.train.recipe import Recipe, Save
from hub.train.setup.setup import Setup

__all__ = [
    "ExternalKernels",
    "NextToken",
    "Objective",
    "Passes",
    "Recipe",
    "Reparametrization",
    "Save",
    "Setup",
    "check_loaded",
    "train_only",
    "trainable_in_float32",
]
