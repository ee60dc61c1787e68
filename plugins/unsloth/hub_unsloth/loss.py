"""Inputs of packed rows for Unsloth's models, and their fused loss as a sum."""

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel

from hub import ModelError
from hub.data.prepare import Sample
from hub.parallel.session import Session
from hub.train.batch.collate import MicroBatch, pad

NOT_COUNTED = -100
TOLERANCE = 2e-2
"""Maximum relative difference of the fused loss that rounding of logits in half precision explains."""

Inputs = dict[str, torch.Tensor | bool | None]


def inputs_of(model: torch.nn.Module, batch: MicroBatch) -> Inputs:
    """Keyword arguments of the model's forward pass.

    With `packed_seq_lengths` ((n,) int32, tokens of each sample) Unsloth's attention is block-diagonal, by the variable-length
    kernel of flash-attn, xformers or torch. A row may then be longer than the model's maximum sequence length.
    """
    inputs: Inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
    if batch.starts is not None:
        inputs["packed_seq_lengths"] = batch.starts.diff()
    else:
        inputs["attention_mask"] = batch.attention_mask
    return inputs


def summed_loss(model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
    """Sum of the cross entropies of a micro-batch, in nats, by Unsloth's fused output layer.

    Unsloth divides the sum by a count, here 1. Each label is at its own token, one after its logits, since some of Unsloth's
    models (Mistral) support no other position. The first token of a sample has no label, so that no sample's last token
    predicts the first token of the next sample.

    Raises:
        ModelError: the objective has weights, which Unsloth's loss does not take.
    """
    if batch.weights is not None:
        raise ModelError("Unsloth's loss takes no weights of tokens, which this objective has. Type algo.backend=native")
    inputs = inputs_of(model, batch)
    if not len(batch.targets):
        zero: torch.Tensor = model(**inputs, logits_to_keep=1).logits.float().sum() * 0.0
        return zero
    labels = torch.full_like(batch.input_ids, NOT_COUNTED)
    labels.view(-1)[batch.loss_positions + 1] = batch.targets
    one = batch.targets.new_ones(())
    loss: torch.Tensor = model(**inputs, labels=labels, num_items_in_batch=one).loss
    return loss


@torch.no_grad()
def check_sum(model: PeftModel, vocab_size: int, session: Session) -> float:
    """The relative difference between Unsloth's loss and the plain sum, on two padded rows.

    Raises:
        ModelError: the difference is larger than rounding explains.
    """
    dice = np.random.default_rng(0)
    samples = [
        Sample(dice.integers(0, vocab_size, length).astype(np.int32), dice.random(length) < 0.7, "") for length in (19, 40)
    ]
    batch = pad(samples, 0).to(session.device)
    was_training = model.training
    model.eval()
    try:
        with session.autocast():
            logits = model(**inputs_of(model, batch)).logits.flatten(0, 1)[batch.loss_positions]
            fused = float(summed_loss(model, batch))
    finally:
        model.train(was_training)
    plain = float(F.cross_entropy(logits.float(), batch.targets, reduction="sum"))
    difference = abs(fused - plain) / abs(plain)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"Unsloth's loss of this model is not the sum over its tokens ({fused:.4g}, expected {plain:.4g}). "
            "Type algo.backend=native"
        )
    return difference
