"""BitFit on one page: set up, load, choose what learns, fit."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hub import ConfigError, Outcome, Run, RunConfig
from hub.models.load import save_whole_model, trainable_in_float32
from hub.train.loop import fit
from hub.train.setup.setup import set_up
from hub_example.config import BitFitConfig


def train(cfg: RunConfig, run: Run) -> Outcome:
    """Train biases or norm weights. The result is a whole model that transformers loads."""
    assert isinstance(cfg.algo, BitFitConfig)
    setup = set_up(cfg, run)
    model = setup.load_model(setup.session.compute_dtype)
    trained = choose(cfg.algo.parts, model, cfg.model.path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    trainable_in_float32(model)
    run.write_plan(trained=sorted(trained))

    def save(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        save_whole_model(model, setup.tokenizer, folder, setup.session.compute_dtype, weights)

    return fit(setup, model, save)


def choose(parts: str, model: PreTrainedModel, model_name: str) -> set[str]:
    """Names of the parameters that learn.

    Args:
        parts: auto, biases, norms or both.
        model: a language model of transformers.
        model_name: for the message.

    Raises:
        ConfigError: the model has nothing of the kind that was asked for, so nothing would learn.
    """
    found = {"biases": biases(model), "norms": norm_weights(model)}
    if parts == "auto":
        chosen = found["biases"] or found["norms"]
    elif parts == "both":
        chosen = found["biases"] | found["norms"]
    else:
        chosen = found[parts]
    if not chosen:
        there = [part for part, names in found.items() if names]
        todo = f"Type algo.parts={there[0]}" if there else "Type another algorithm, such as algo=lora_sft"
        raise ConfigError(f"algo.parts={parts}: {model_name} has no such weights, so nothing would learn. {todo}")
    return chosen


def biases(model: PreTrainedModel) -> set[str]:
    """Names of all bias parameters. Expert layers name theirs `..._bias`."""
    return {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1].endswith("bias")}


def norm_weights(model: PreTrainedModel) -> set[str]:
    """Names of the scale weights of layer norms and RMS norms, one number per channel."""
    return {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if "norm" in type(layer).__name__.lower() and getattr(layer, "weight", None) is not None
    }
