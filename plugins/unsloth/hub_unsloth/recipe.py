"""LoRA by Unsloth on one page: Unsloth loads the model, adds the adapters and computes the loss. The hub's loop trains."""

import hub_unsloth.first  # noqa: F401 - before transformers, trl and peft, which it changes

# isort: split
from pathlib import Path

import torch
from peft import PeftModel

from hub import ConfigError
from hub.models.structure import base_of
from hub.recipe import ExternalKernels, Recipe, Setup
from hub_unsloth.loss import check_sum, inputs_of, summed_loss
from hub_unsloth.model import add_adapters, load


def build(setup: Setup) -> Recipe:
    """Build the recipe: adapters train on frozen weights. The result is an ordinary adapter folder of peft.

    Raises:
        ConfigError: the GPU has no bfloat16.
        ModelError: Unsloth can't train this model.
    """
    if setup.session.compute_dtype != torch.bfloat16:
        raise ConfigError("algo.backend=unsloth needs a GPU that has bfloat16. Type algo.backend=native")
    checkpointing: str | bool = "unsloth" if setup.cfg.algo.gradient_checkpointing != "none" else False
    model = add_adapters(setup, load(setup, checkpointing), checkpointing)
    difference = check_sum(model, model.config.get_text_config().vocab_size, setup.session)
    setup.run.write_plan(
        strategy="ddp",
        strategy_because="with Unsloth each process holds the whole model",
        unsloth_loss=f"same as the plain sum (relative difference {difference:.0e})",
    )

    def save(trained: PeftModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        PeftModel.save_pretrained(trained, str(folder), state_dict=weights)
        setup.tokenizer.save_pretrained(folder)

    attention = attention_of(model)
    kernels = ExternalKernels(
        library="Unsloth",
        attention=attention,
        variable_length=attention == VARIABLE_LENGTH,
        inputs=inputs_of,
        checkpoints=bool(checkpointing),
    )
    return Recipe(model=model, save=save, loss=summed_loss, kernels=kernels)


VARIABLE_LENGTH = "variable-length"
"""Unsloth's own attention over packed rows, as plan.json names it."""


def attention_of(model: PeftModel) -> str:
    """Return the name of the attention: Unsloth's own for the families that it has rewritten, else the one of transformers."""
    base = base_of(model)
    soft_cap = getattr(base.config, "attn_logit_softcapping", None)
    if getattr(base, "_unsloth_fast_path", False) and soft_cap is None:
        return VARIABLE_LENGTH
    return str(base.config._attn_implementation)
