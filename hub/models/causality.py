"""Whether a model predicts each token from the tokens before it only. Measured on the model itself, before training.

An encoder such as BERT sees the whole text. Trained on next tokens it learns to copy them, reaches a loss near zero, and can't
write. transformers loads many of them as causal language models and does not warn.
"""

import math

import torch

from hub.errors import HubError, ModelError, first_line
from hub.models.encoders import INSTEAD
from hub.models.structure import base_of, expert_tensors, waits_for_others
from hub.system.answers import doubt, measured
from hub.system.memory import free_unused, is_out_of_memory

TOLERANCE, FLOAT32_TOLERANCE = 1e-2, 1e-4
"""Largest effect of later tokens on earlier logits that passes as rounding, as a fraction of their effect on later logits.
Measured: 0 for all causal models of the tests, 0.15 to 0.8 for encoders of unit-scale weights, 0.98 for Gemma 3 made
bidirectional."""

MIXTURE_TOLERANCE = 0.1
"""Tolerance for mixtures of experts in half precision. Products in groups of other sizes round differently, and where two
experts are nearly even for a token, that is enough for the other to be chosen. Measured: 0.011 for a Mixtral of random weights
in bfloat16 on a GPU."""

NUM_TOKENS, NUM_KEPT = 24, 8


@torch.no_grad()
def look_ahead(model: torch.nn.Module, vocab_size: int, device: torch.device, dtype: torch.dtype) -> float | None:
    """Measure how much later tokens change the logits of earlier ones.

    Args:
        model: any model with logits.
        vocab_size: upper bound of the random tokens.
        device: of the model.
        dtype: of the arithmetic.

    Returns:
        The root mean square of the change before the first changed token, over that from there on. 0 for a causal
        model. None: the GPU has no memory left for it, which training finds out anew.

    Raises:
        ModelError: the model fails on so plain an input.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (2, NUM_TOKENS), generator=generator)
    ids[1, :NUM_KEPT] = ids[0, :NUM_KEPT]
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            one, other = (model(input_ids=row[None].to(device)).logits[0].double() for row in ids)
        change = (one - other).square().mean(-1).sqrt()
        return float(change[:NUM_KEPT].mean() / change[NUM_KEPT:].mean().clamp(min=1e-30))
    except HubError:
        raise
    except Exception as error:  # whatever its files say can make it fail
        if is_out_of_memory(error):
            if waits_for_others(model):
                raise
            return None
        kind = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"model.path: {type(base_of(model)).__name__} can't compute in {kind}: it fails in a pass over "
            f"{NUM_TOKENS} tokens ({type(error).__name__}: {first_line(error)}). A value of its config.json is wrong, "
            "or it needs another model.dtype"
        ) from error
    finally:
        model.train(was_training)


def check_causal(model: torch.nn.Module, vocab_size: int, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model whose logits depend on later tokens.

    Args: see `look_ahead`.

    Raises:
        ModelError: they do, or the model fails on a short text.
    """

    def look() -> float | None:
        found = look_ahead(model, vocab_size, device, dtype)
        if found is not None:
            return found
        doubt()
        free_unused()
        return look_ahead(model, vocab_size, device, dtype)

    effect = measured("causality", look, lambda found: found)
    in_half = MIXTURE_TOLERANCE if expert_tensors(model) else TOLERANCE
    allowed = FLOAT32_TOLERANCE if dtype == torch.float32 else in_half
    if effect is not None and not math.isfinite(effect):
        raise ModelError(
            f"{type(base_of(model)).__name__} gives no finite numbers for a text of {NUM_TOKENS} tokens: its weights or a "
            "value of config.json are broken. Copy or download the model again"
        )
    if effect is not None and effect > allowed:
        raise ModelError(
            f"{type(base_of(model)).__name__} is no causal language model: later tokens change the logits of earlier ones "
            f"(measured {effect:.1e} of their effect on later ones, allowed {allowed:.0e}). {INSTEAD}"
        )
