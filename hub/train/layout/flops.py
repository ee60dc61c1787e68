"""Model FLOPs utilization (MFU): the fraction of the GPUs' peak that a run reaches.

Chowdhery et al., "PaLM" (arXiv 2204.02311), appendix B, without its term for attention.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hub.config.schema import ModelConfig
from hub.errors import HubError
from hub.models.load import load_config
from hub.models.multimodal import auto_class
from hub.models.structure import base_of, expert_tensors, outside_text
from hub.system.known_gpus import Gpu, by_driver_name, known_gpus, shipped_gpus

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_NUM_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")

_SINGLE = re.compile(r"\.experts?\.\d+\.")
"""Of the name of a weight of a single expert."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a GPU's peak in FLOPs per second; None if it is not known. known_gpus.yaml and the user's own table have it."""
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if device.type != "cuda" or kind is None:
        return None
    return peak_of(torch.cuda.get_device_name(device), kind)


def peak_of(name: str, kind: str = "bf16") -> float | None:
    """Return the peak of a GPU by its driver's name.

    Args:
        name: as the driver writes it.
        kind: type of the factors, one of `hub.system.known_gpus.TYPES`.
    """
    try:
        gpus: Mapping[str, Gpu] = known_gpus()
    except HubError as error:  # a mistake in the user's own table is no reason to end a run that has begun
        warnings.warn(f"{error}. The hub's own table of GPUs is used", stacklevel=2)
        gpus = shipped_gpus()
    gpu = by_driver_name(name, gpus)
    return gpu.peak.get(kind) if gpu else None


def flops_per_token(cfg: ModelConfig, path: Path, num_trained: float) -> float | None:
    """Count the FLOPs of a token: 4 for each weight that it is multiplied with, and 2 more for each that is trained.

    Attention itself and activation checkpointing are not counted.

    Args:
        cfg: of the model.
        path: the model's folder. The model is built without weights, so quantized and sharded weights are counted in full.
        num_trained: parameters that are trained, of experts those that a token uses (`num_trained_of_token`).

    Returns:
        None for a mixture of experts whose config does not say how many experts a token uses.
    """
    config = load_config(cfg, path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=cfg.trust_remote_code)
    num = num_multiplied(model)
    return None if num is None else 4.0 * num + 2.0 * min(num_trained, num)


def num_multiplied(model: PreTrainedModel) -> float | None:
    """Count the weights that a token is multiplied with: matrices, without those that are looked up or of other inputs.

    Of the experts of a mixture those that a token uses.

    Args:
        model: may be on the meta device.

    Returns:
        None for a mixture of experts whose config does not say how many a token uses.
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)} - {id(head)}
    unused = {id(weight) for weight in outside_text(model)} | (looked_up | {id(embedding)} - {id(head)})
    num = sum(weight.numel() for weight in _matrices(model).values() if id(weight) not in unused)
    if (in_experts := num_in_experts(model)) == 0:
        return float(num)
    share = _share_used(model)
    return None if share is None else num - in_experts * (1 - share)


def num_trained_of_token(model: torch.nn.Module) -> float:
    """Count the trained weights that a token meets: of the experts' own, and of their adapters, those of the experts it uses.

    Args:
        model: with `requires_grad` set on what trains. PEFT's wrappers may be around its parts.
    """
    base = base_of(model)
    stacks = tuple(f"{module.replace('.base_layer', '')}." for module, _ in expert_tensors(base))
    in_experts, others = 0, 0
    for name, weight in base.named_parameters():
        plain = name.replace(".base_layer", "")
        is_of_experts = plain.startswith(stacks) or (_SINGLE.search(plain) and "shared" not in plain)
        if weight.requires_grad and is_of_experts:
            in_experts += weight.numel()
        elif weight.requires_grad:
            others += weight.numel()
    share = _share_used(base)
    return others + in_experts * (1.0 if share is None else share)


def _share_used(model: PreTrainedModel) -> float | None:
    """The share of a mixture's experts that a token uses. None: the config does not say."""
    config = model.config.get_text_config()
    of_all = next((value for name in _NUM_EXPERTS if (value := getattr(config, name, None))), None)
    used = next((value for name in _NUM_USED if (value := getattr(config, name, None))), None)
    return used / of_all if isinstance(of_all, int) and isinstance(used, int) else None


def num_in_experts(model: PreTrainedModel) -> int:
    """Count the weights of the experts of a mixture that a router chooses from, not of those that all tokens share."""
    fused = {f"{module}.{name}" for module, name in expert_tensors(model)}
    matrices = {name: weight for name, weight in _matrices(model).items() if "shared" not in name}
    return sum(w.numel() for name, w in matrices.items() if name in fused or _SINGLE.search(name))


def _matrices(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The weights by name, without biases and norms. The biases of fused experts have two dimensions."""
    return {name: weight for name, weight in model.named_parameters() if weight.ndim > 1 and not name.endswith("bias")}
