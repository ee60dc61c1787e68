"""The load-balancing loss of a mixture of experts: whether its family trains with one, and what a run does."""

from typing import NamedTuple

import torch

from hub.models.structure import base_of, expert_tensors, text_config


class Balancing(NamedTuple):
    """What a run does about the load-balancing loss."""

    coefficient: float
    """0: it trains without."""

    because: str
    problem: str = ""
    """Why the coefficient that was asked for can't be used. Empty: it can, or none was asked for."""


NO_SUCH_LOSS = "transformers has no such loss for this family"


def load_balancing(model: torch.nn.Module, asked: float | None = None) -> Balancing | None:
    """Return what a run does about the loss that keeps a router from sending all tokens to few experts. None: no experts.

    transformers adds it where config.json has `output_router_logits`, times `router_aux_loss_coef` (`load_balancing_loss_func`;
    Fedus et al., arXiv 2101.03961, equations 4 to 6).

    Args:
        model: of any family.
        asked: `algo.router_aux_loss_coef`. None: as transformers.
    """
    base = base_of(model)
    coefficient = getattr(base, "router_aux_loss_coef", None)
    if coefficient is None:
        if not expert_tensors(base):
            return None if not asked else Balancing(0.0, NO_SUCH_LOSS, "the model has no experts")
        return Balancing(0.0, NO_SUCH_LOSS, NO_SUCH_LOSS if asked else "")
    if asked is not None:
        return Balancing(asked, f"algo.router_aux_loss_coef={asked:g}")
    if not getattr(text_config(model), "output_router_logits", False):
        because = "output_router_logits is false in config.json, with which transformers trains this family without it"
        return Balancing(0.0, because)
    return Balancing(coefficient, f"config.json asks for it (output_router_logits), times router_aux_loss_coef {coefficient:g}")
