"""How many tokens a micro-batch may have, and whether activations are recomputed, when the user leaves it to the hub.

A rough model of memory: enough to start safely. Attention here materialises a mask of T x T for a packed row of T tokens.
"""

from typing import Any

import torch

from hub.config import AlgoConfig
from hub.errors import ConfigError
from hub.options import AUTO

CPU_TOKENS = 1024
"""A CPU gains nothing from longer rows: its cores are busy already, and attention over a packed row grows with its square."""

GPU_MOST_TOKENS = 16384
"""Beyond this the GPU is busy as well, and the mask of a packed row takes 256 MB."""

SHARE_OF_FREE_MEMORY = 0.6
"""The rest is for fragments, temporary buffers and what this rough model leaves out."""


def wants_checkpointing(choice: str, model: torch.nn.Module, device: torch.device) -> tuple[bool, str]:
    """Whether to recompute activations, and why. Asked before the optimizer exists."""
    if choice != AUTO:
        return choice == "all", "asked for"
    if device.type != "cuda":
        return False, "the CPU's memory is not the limit"
    total = torch.cuda.get_device_properties(device).total_memory
    needed = _state_bytes(model)
    if needed > 0.25 * total:
        return True, f"weights and optimizer take about {needed / total:.0%} of the GPU"
    return False, f"weights and optimizer take only {needed / total:.0%} of the GPU"


def micro_batch_tokens(
    cfg: AlgoConfig, model: torch.nn.Module, config: Any, device: torch.device, longest: int, checkpointed: bool
) -> tuple[int, str]:
    """The bound of tokens in one micro-batch on one process, and why.

    Raises:
        ConfigError: the bound that was set is below the longest sample.
    """
    if cfg.max_tokens_per_gpu != AUTO:
        bound = int(cfg.max_tokens_per_gpu)
        if bound < longest:
            raise ConfigError(
                f"algo.max_tokens_per_gpu={bound} is below the longest sample ({longest} tokens). "
                f"Type algo.max_tokens_per_gpu={longest}, or data.max_seq_len={bound} to leave longer samples out"
            )
        return bound, "asked for"
    if device.type != "cuda":
        return max(longest, CPU_TOKENS), "enough to keep the CPU busy"
    free, _ = torch.cuda.mem_get_info(device)
    gradients_and_moments = sum(12 * p.numel() for p in model.parameters() if p.requires_grad)
    room = (free - gradients_and_moments) * SHARE_OF_FREE_MEMORY
    per_token = token_bytes(config, checkpointed)
    bound = max(longest, min(GPU_MOST_TOKENS, int(room / per_token) // 256 * 256))
    return bound, f"{free / 2**30:.0f} GB are free, a token takes about {per_token / 2**20:.2f} MB"


def token_bytes(config: Any, checkpointed: bool) -> float:
    """Bytes of activations that one token keeps until its backward pass, all layers and the output layer together."""
    config = config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    one_layer = 2 * (16 * hidden + 6 * intermediate)
    kept = layers * 4 * hidden + one_layer if checkpointed else layers * one_layer
    return float(kept + 10 * config.vocab_size)


def _state_bytes(model: torch.nn.Module) -> int:
    """Weights, and gradients and Adam moments (float32) of those that train."""
    return sum(p.numel() * p.element_size() + (12 * p.numel() if p.requires_grad else 0) for p in model.parameters())
