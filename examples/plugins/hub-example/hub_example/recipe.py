"""BitFit on one page: load the model, choose what is trained."""

import torch

from hub import ConfigError
from hub.recipe import Recipe, Setup, train_only
from hub_example.config import BitFitConfig


def build(setup: Setup) -> Recipe:
    """Build the recipe: biases or norm weights are trained. The result is a whole model that transformers loads."""
    algo = setup.cfg.algo
    assert isinstance(algo, BitFitConfig)
    model = setup.load_model()
    names = choose(algo.parts, model, setup.cfg.model.path)
    train_only(model, names)
    setup.run.write_plan(trained=sorted(names))
    return Recipe(model=model, save=setup.save_whole_model)


def choose(parts: str, model: torch.nn.Module, model_name: str) -> set[str]:
    """Return the names of the parameters to train.

    Args:
        parts: auto, biases, norms or both.
        model: a language model of transformers.
        model_name: for the message.

    Raises:
        ConfigError: the model has no such parameters, so nothing would be trained.
    """
    candidates = {"biases": biases(model), "norms": norm_weights(model)}
    if parts == "auto":
        chosen = candidates["biases"] or candidates["norms"]
    elif parts == "both":
        chosen = candidates["biases"] | candidates["norms"]
    else:
        chosen = candidates[parts]
    if not chosen:
        there = [part for part, names in candidates.items() if names]
        todo = f"Type algo.parts={there[0]}" if there else "Type another algorithm, such as algo=lora_sft"
        raise ConfigError(f"algo.parts={parts}: {model_name} has no such weights, so nothing would be trained. {todo}")
    return chosen


def biases(model: torch.nn.Module) -> set[str]:
    """Return the names of all bias parameters. Expert layers name theirs `..._bias`."""
    return {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1].endswith("bias")}


def norm_weights(model: torch.nn.Module) -> set[str]:
    """Return the names of the scale weights of layer norms and RMS norms, one number per channel."""
    return {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if "norm" in type(layer).__name__.lower() and getattr(layer, "weight", None) is not None
    }
