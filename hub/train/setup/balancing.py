"""The load-balancing loss of a mixture of experts: whether its family trains with one, and what a run does."""

from typing import NamedTuple

import torch

from hub.models.structure import base_of, expert_tensors, text_config


class Balancing(NamedTuple):
    """What a run does about the load-balancing loss."""

    decision: str
    """none, or left out."""

    because: str


def load_balancing(model: torch.nn.Module) -> Balancing | None:
    """Return what a run does about the loss that keeps a router from sending all tokens to few experts. None: no experts.

    transformers adds it where config.json has `output_router_logits`, times `router_aux_loss_coef` (`load_balancing_loss_func`;
    Fedus et al., arXiv 2101.03961, equations 4 to 6). It is a product of two means over all tokens that share a pass, so it
    would depend on how a step is split into micro-batches.

    Args:
        model: of any family.
    """
    base = base_of(model)
    coefficient = getattr(base, "router_aux_loss_coef", None)
    if coefficient is None:
        if not expert_tensors(base):
            return None
        return Balancing("none", "transformers has no such loss for this family")
    if not getattr(text_config(model), "output_router_logits", False):
        because = "output_router_logits is false in config.json, with which transformers trains this family without it"
        return Balancing("none", because)
    return Balancing(
        "left out",
        f"config.json asks for it (output_router_logits, times {coefficient:g}), but it depends on which samples share a "
        "micro-batch, and no step here does",
    )
