"""How much a change of each weight affects the protected data: the output side of the loss curvature.

Near the current weights, the loss on data rises with a change Delta of a matrix as Delta F Delta / 2, where F is the Fisher
information. Its Kronecker-factored form (Martens and Grosse, arXiv 1503.05671; for continual learning Ritter et al.,
arXiv 1805.07810) is the covariance of the matrix's inputs times that of the gradients at its outputs. Only the mean
square of the latter is computed here, one number for each weight. It differs by orders of magnitude between weights: in SmolLM2
a change of the median v_proj matters twenty times as much as one of the median down_proj.

The strength has no unit. With it, a change of size z along a direction of curvature c is pulled back with the force s c z / w,
in units of the learning rate, like the steps of Adam:

    c_i = lambda_i g / C          lambda_i: energy of the data along the direction; g: mean squared gradient at the outputs
    C = geometric mean over the weights of e g,  e = (mean over input channels of the root of their energy)^2
    w = geometric mean over the weights of the root mean square of their entries

A step of Adam moves a number by about the learning rate. So along a direction with c = 1 a change ends where both are equal, at
w / s: a strength of 56 lets it change by 1/56 of the weights' size, however many steps there are and whatever their rate
is. It is the same for a model whose weights and rate are multiplied by a number, for any scale of loss and inputs, and for any
amount of data. e is the mean energy if all channels have the same. Few channels of huge values, which many models have, would
raise a mean and so leave all other directions without protection; they hardly change e.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedModel

from hub.data.prepare import Sample
from hub.errors import ModelError
from hub.protection.passes import batches, in_smaller_passes, on_device
from hub.train.batch.collate import pad
from hub.train.setup.setup import Setup

MAX_TOKENS = 16384
"""Tokens to measure on: one number for each weight needs few."""

PASS_TOKENS = 1024
"""Tokens of a pass, which stores all activations. Longer samples are cut to a piece with loss tokens."""


def measure_sensitivity(
    setup: Setup, model: PreTrainedModel, names: Sequence[str], samples: Sequence[Sample]
) -> dict[str, float]:
    """Measure the squared gradient of the loss with respect to each layer's outputs.

    It is averaged over the outputs and summed over all tokens of the data. As in the Fisher information, the labels are sampled
    from the model's own predictions at the loss tokens. All ranks must call it with the same samples. It leaves no gradients on
    weights.

    Args:
        setup: of the run.
        model: the model to protect. May be sharded.
        names: linear layers of it.
        samples: data to protect. A random subset of `MAX_TOKENS` is measured, and the sum is scaled to all tokens.

    Returns:
        Layer -> sum. Empty without samples.

    Raises:
        ModelError: the model does not call its input embeddings, or memory does not suffice for the longest sample.
    """
    if not samples:
        return {}
    session, seed = setup.session, setup.cfg.algo.seed
    chosen = _some(samples, seed)
    tokens = sum(map(len, chosen))
    setup.run.say(f"measuring on {tokens:,} tokens how much each of {len(names)} weights matters to the protected data")
    sums = torch.zeros(len(names), dtype=torch.float64, device=session.device)  # the hooks add to it
    embedded: list[torch.Tensor] = []

    def watch(number: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def take(gradient: torch.Tensor) -> None:
            sums[number] += gradient.float().square().sum() / gradient.shape[-1]

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(take)

        return hook

    def begin(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        embedded.append(output if output.requires_grad else output.requires_grad_())

    handles = [model.get_submodule(name).register_forward_hook(watch(n)) for n, name in enumerate(names)]
    handles.append(model.get_input_embeddings().register_forward_hook(begin))
    was_training = model.training
    model.eval()

    def run(max_tokens: int) -> bool:
        sums.zero_()
        embedded.clear()
        with on_device(setup, model):
            for number, group in enumerate(batches(chosen, max_tokens, session.group.rank, session.group.world)):
                batch = pad(group or chosen[:1], 0).to(session.device)
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
                with session.autocast():
                    logits = model(**inputs, position_ids=batch.position_ids, use_cache=False).logits.flatten(0, 1)
                predicted = logits[batch.loss_positions].float()
                random = torch.Generator(session.device).manual_seed(seed + number * session.group.world + session.group.rank)
                labels = batch.targets
                if len(predicted):
                    labels = torch.multinomial(predicted.detach().softmax(-1), 1, generator=random)[:, 0]
                loss = F.cross_entropy(predicted, labels, reduction="sum") * bool(group)
                if not embedded:
                    raise ModelError(
                        f"model.path={setup.cfg.model.path}: it does not call its input embeddings, so "
                        "the hub can't measure what matters to it. Type algo.protect_strength=0"
                    )
                torch.autograd.grad(loss, embedded, allow_unused=True)
                embedded.clear()
        return True

    try:
        in_smaller_passes(setup, model, run, PASS_TOKENS, max(map(len, chosen)))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if session.group.world > 1:
        dist.all_reduce(sums)
    scale = sum(map(len, samples)) / tokens
    return {name: scale * total for name, total in zip(names, sums.tolist(), strict=True)}


def _some(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Random samples with `MAX_TOKENS` in total. Long samples are cut to a piece around the first loss token."""
    chosen: list[Sample] = []
    left = MAX_TOKENS
    for sample in Random(seed).sample(samples, len(samples)):
        if left > 0:
            end = max(PASS_TOKENS, int(sample.loss_mask.argmax()) + PASS_TOKENS // 2)
            piece = slice(max(0, min(end, len(sample)) - PASS_TOKENS), end)
            chosen.append(Sample(sample.input_ids[piece], sample.loss_mask[piece], sample.where))
            left -= len(chosen[-1])
    return chosen


def pull_per_energy(sensitivity: Mapping[str, float], diagonals: Mapping[str, torch.Tensor], size: float) -> dict[str, float]:
    """Compute what a direction's energy is multiplied by for its penalty at strength 1: g / (C w), as this module explains.

    Args:
        sensitivity: weight -> squared gradient of one output, summed over the data.
        diagonals: weight -> energy of the data in each input channel (p,).
        size: w, the geometric mean of the root mean squares of the weights.

    Returns:
        Weight -> factor. 0 for a weight that does not matter.
    """
    energies = {name: float(diagonal.double().clamp(min=0).sqrt().mean().square()) for name, diagonal in diagonals.items()}
    mean = geometric_mean(energies[name] * sensitivity[name] for name in energies)
    return {name: sensitivity[name] / (mean * size) for name in energies}


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of the values above 0. Without any: 1."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0
