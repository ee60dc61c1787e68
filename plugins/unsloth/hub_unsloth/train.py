"""LoRA by Unsloth on one page: it loads the model, adds the adapters and computes the loss; the hub's loop trains."""

import hub_unsloth.first  # noqa: F401 - before transformers, trl and peft, which it changes

# isort: split
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from hub import ConfigError, Outcome, Run, RunConfig
from hub.train.kernels.external import ExternalKernels
from hub.train.loop import fit
from hub.train.setup.setup import set_up
from hub_unsloth.loss import check_sum, inputs_of, summed_loss
from hub_unsloth.model import add_adapters, load


def train(cfg: RunConfig, run: Run) -> Outcome:
    """Train adapters on frozen weights. The result is an ordinary adapter folder of peft.

    Raises:
        ConfigError: the GPU has no bfloat16.
        ModelError: Unsloth can't train this model.
    """
    setup = set_up(cfg, run)
    if setup.session.compute_dtype != torch.bfloat16:
        raise ConfigError("algo.backend=unsloth needs a GPU that has bfloat16. Type algo.backend=native")
    checkpointing: str | bool = "unsloth" if cfg.algo.gradient_checkpointing != "none" else False
    model = add_adapters(setup, load(setup, checkpointing), checkpointing)
    difference = check_sum(model, model.config.get_text_config().vocab_size, setup.session)
    run.write_plan(
        strategy="ddp",
        strategy_because="with Unsloth each process holds the whole model",
        unsloth_loss=f"same as the plain sum (relative difference {difference:.0e})",
    )

    def save(trained: Any, folder: Path, weights: dict[str, Any]) -> None:
        PeftModel.save_pretrained(trained, folder, state_dict=weights)
        setup.tokenizer.save_pretrained(folder)

    external = ExternalKernels(
        library="Unsloth", attention=attention_of(model), inputs=inputs_of, checkpoints=bool(checkpointing)
    )
    return fit(setup, model, save, summed_loss, external_kernels=external)


def attention_of(model: Any) -> str:
    """The name of the attention: Unsloth's own for the families that it has rewritten, else the one of transformers."""
    base = model.get_base_model()
    soft_cap = getattr(base.config, "attn_logit_softcapping", None)
    if getattr(base, "_unsloth_fast_path", False) and soft_cap is None:
        return "variable-length"
    return str(base.config._attn_implementation)
