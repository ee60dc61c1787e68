"""An adapter that is trained further: with its own rank, scale and layers, from its own numbers."""

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hub import ModelError, Run
from hub.models.finished import ADAPTER_WEIGHTS
from hub.models.load import trainable_in_float32
from hub.models.loading_report import difference
from hub.models.structure import expert_tensors, outside_text
from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.embeddings import check_tied, is_tied
from hub_lora_sft.parameters import compute_beside
from hub_lora_sft.targets import report


def train_further(algo: LoraSftConfig, model: PreTrainedModel, run: Run, folder: Path) -> PeftModel:
    """Return the model with the adapter of a folder in float32, ready to train.

    Args:
        algo: the options. Rank, scale and so on are those of the adapter.
        model: its base.
        run: for the log and plan.json.
        folder: the adapter's.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    config.inference_mode, config.lora_dropout = False, algo.lora_dropout
    config.init_lora_weights = True  # any other start would change the base
    config.base_model_name_or_path = None  # PEFT sets it, and would warn of another place of the same base
    tied, experts = is_tied(model), expert_tensors(model)
    adapted = get_peft_model(model, config)
    for parameter in outside_text(adapted):
        parameter.requires_grad_(False)
    check_tied(adapted, tied)
    trainable_in_float32(adapted)
    stored = load_file(folder / ADAPTER_WEIGHTS)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    shapes = [{name: tuple(tensor.shape) for name, tensor in some.items()} for some in (stored, expected)]
    if misfit := difference(*shapes):
        raise ModelError(f"model.path={folder}: this adapter does not fit its base: {misfit.words()}")
    set_peft_model_state_dict(adapted, stored)
    report(run, adapted, experts, {})
    compute_beside(adapted, run)
    run.write_plan(adapter=str(folder), adapter_because="model.path names it: it is trained further, with its rank and layers")
    run.say(f"the adapter {folder} is trained further: rank {config.r}, alpha {config.lora_alpha:g}")
    return adapted
