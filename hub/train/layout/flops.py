"""Model FLOPs utilization (MFU): the fraction of the GPUs' peak that a run reaches.

Chowdhery et al., "PaLM" (arXiv 2204.02311), appendix B, without its term for attention.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from hub.config.schema import ModelConfig
from hub.errors import HubError
from hub.models.load import load_config
from hub.models.multimodal import auto_class
from hub.models.structure import outside_text
from hub.system.known_gpus import Gpu, by_driver_name, known_gpus, shipped_gpus


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


def flops_per_token(cfg: ModelConfig, path: Path, num_trained: int) -> float | None:
    """Count the FLOPs of a token: 4 for each weight that it is multiplied with, and 2 more for each that is trained.

    Attention itself and activation checkpointing are not counted.

    Args:
        cfg: of the model.
        path: the model's folder. The model is built without weights, so quantized and sharded weights are counted in full.
        num_trained: parameters that are trained.

    Returns:
        None for a mixture of experts, since a token uses only some of its experts.
    """
    config = load_config(cfg, path)
    if any(getattr(config.get_text_config(), name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=cfg.trust_remote_code)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = [embedding] if head is not embedding else []
    looked_up += [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.weight is not embedding]
    unused = sum(p.numel() for p in outside_text(model) if p.ndim > 1)
    num = int(sum(p.numel() for p in model.parameters() if p.ndim > 1) - sum(weight.numel() for weight in looked_up)) - unused
    return 4.0 * num + 2.0 * min(num_trained, num)
