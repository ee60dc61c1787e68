"""How much a change of a weight matters to what data to protect says: the outputs' side of its curvature.

Near the weights that a model has, the loss on data rises with a change Delta of a matrix as Delta F Delta / 2, F being the
Fisher information. Its Kronecker-factored form (Martens and Grosse, arXiv 1503.05671; for continual learning Ritter et al.,
arXiv 1805.07810) is the covariance of the matrix's inputs times that of the gradients at its outputs. Of the latter only the
mean square is taken here, one number for each weight, which differs by orders of magnitude between them: in SmolLM2 a change of
the median v_proj matters twenty times as much as one of the median down_proj.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hub import ModelError
from hub.data.prepare import Sample
from hub.train.batch.collate import pad
from hub.train.setup.setup import Setup
from hub_osft.passes import batches, on_device
from hub_osft.targets import Target

ENOUGH_TOKENS = 16384
"""Tokens that are asked: one number for each weight needs few."""

PASS_TOKENS = 1024
"""Tokens of a pass, which keeps all activations; of longer samples a piece is taken that has tokens with loss."""


def measure_sensitivity(setup: Setup, model: Any, targets: Sequence[Target], samples: Sequence[Sample]) -> dict[str, float]:
    """The squared gradient of the loss by an output of each target, mean over its outputs, summed over all tokens of the data.

    The loss is that of tokens drawn from what the model itself says at the places that count, as the Fisher information has it.
    All ranks call it with the same samples. No gradient of a weight is left behind.

    Args:
        setup: of the run.
        model: as it is to be protected; may be shared out.
        targets: linear layers of it.
        samples: as many of them are asked as have `ENOUGH_TOKENS`, and the sum is scaled up to all tokens.

    Returns:
        Target's name -> sum. Nothing without samples.
    """
    if not samples:
        return {}
    session, seed = setup.session, setup.cfg.algo.seed
    chosen = _some(samples, seed)
    tokens = sum(map(len, chosen))
    setup.run.say(f"measuring on {tokens:,} tokens how much each of {len(targets)} weights matters to what is to be kept")
    sums = torch.zeros(len(targets), dtype=torch.float64, device=session.device)
    embedded: list[torch.Tensor] = []

    def watch(number: int) -> Callable[..., None]:
        def take(gradient: torch.Tensor) -> None:
            sums[number] += gradient.float().square().sum() / gradient.shape[-1]

        def hook(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(take)

        return hook

    def begin(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        embedded.append(output if output.requires_grad else output.requires_grad_())

    handles = [model.get_submodule(target.module).register_forward_hook(watch(n)) for n, target in enumerate(targets)]
    handles.append(model.get_input_embeddings().register_forward_hook(begin))
    was_training = model.training
    model.eval()
    try:
        with on_device(setup, model):
            for number, group in enumerate(batches(chosen, PASS_TOKENS, session.group.rank, session.group.world)):
                batch = pad(group or chosen[:1], 0).to(session.device)
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
                with session.autocast():
                    logits = model(**inputs, position_ids=batch.position_ids, use_cache=False).logits.flatten(0, 1)
                said = logits[batch.loss_positions].float()
                dice = torch.Generator(session.device).manual_seed(seed + number * session.group.world + session.group.rank)
                drawn = torch.multinomial(said.detach().softmax(-1), 1, generator=dice)[:, 0] if len(said) else batch.targets
                loss = F.cross_entropy(said, drawn, reduction="sum") * bool(group)
                if not embedded:
                    raise ModelError(
                        f"model.path={setup.cfg.model.path}: it does not ask its input embeddings, so that "
                        "algo.protect_strength and algo.save_protection can't say what matters to it. Leave them out"
                    )
                torch.autograd.grad(loss, embedded, allow_unused=True)
                embedded.clear()
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if session.group.world > 1:
        dist.all_reduce(sums)
    scale = sum(map(len, samples)) / tokens
    return {target.name: scale * total for target, total in zip(targets, sums.tolist(), strict=True)}


def _some(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Some samples, drawn by seed, that have enough tokens together; of long ones the piece around the first with loss."""
    chosen: list[Sample] = []
    left = ENOUGH_TOKENS
    for sample in Random(seed).sample(samples, len(samples)):
        if left > 0:
            end = max(PASS_TOKENS, int(sample.loss_mask.argmax()) + PASS_TOKENS // 2)
            piece = slice(max(0, min(end, len(sample)) - PASS_TOKENS), end)
            chosen.append(Sample(sample.input_ids[piece], sample.loss_mask[piece], sample.where))
            left -= len(chosen[-1])
    return chosen


def relative(sensitivity: Mapping[str, float], energies: Mapping[str, float]) -> dict[str, float]:
    """How much a change of each weight matters, relative to the geometric mean over those given: what a strength is times.

    Args:
        sensitivity: weight -> sum of squared gradients by one output.
        energies: weight -> mean energy of the data's inputs along one direction.

    Returns:
        Weight -> the product of both, over the geometric mean of those that are not zero.
    """
    products = {name: value * sensitivity[name] for name, value in energies.items()}
    logs = [math.log(value) for value in products.values() if value > 0]
    mean = math.exp(sum(logs) / len(logs)) if logs else 1.0
    return {name: value / mean for name, value in products.items()}
