"""Keeps adapters from what is protected while they train: by a cut, a pull, or both.

An adapter adds s B A x to a layer's output. Let the columns of P be those directions of the input x that the protected data
uses most.

**The cut.** With A P = 0 the adapter answers a protected input only by the little of it that lies outside of P, whatever B
is (gradient projection memory, arXiv 2103.09762; for adapters InfLoRA, 2404.00228, which fixes A, and LoRA-Null,
2503.02659, which begins so). Here A trains: its gradients are projected before they are clipped, and A itself after each step
of the optimizer, which scales each number by itself and would lead it back. A has r rows, so both cost little.

**The pull.** The penalty on the change Delta = s B A is that of OSFT, tr(Delta S Delta^T) / 2 (`hub.protection.pull`,
`hub.protection.sensitivity`). Its proximal step Delta (I + q S)^-1 is one on A alone: A (I + q S)^-1. OSFT takes the learning
rate for q, since that is how far a step of Adam moves each number of Delta. Here a step moves each number of A and B by it,
and so those of Delta by about

    q = s (|A| / sqrt(p) + |B| / sqrt(M)) times the learning rate          A (r x p), B (M x r), Frobenius norms

as r changes of independent signs add up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch.distributed.tensor import DTensor

from hub.parallel.reparametrization import Reparametrization
from hub.parallel.sharded_tensors import local_tensor
from hub.protection.pull import Pull
from hub_lora_sft.inits import ADAPTER

Layers = Mapping[str, LoraLayer]
"""Layers with an adapter by their names in the plain model, in its order."""


@dataclass
class Input:
    """One input: the layers that read it, and what keeps their adapters from its protected directions."""

    layers: dict[str, LoraLayer]
    protected: torch.Tensor | None = None
    """P (p, k), float32, orthonormal columns. None: no cut."""

    pulls: dict[str, Pull] = field(default_factory=dict)
    """The pull of each layer. Those of one input share its directions. Empty: no pull."""


class FreeInputs(Reparametrization):
    """Keeps A P = 0, and pulls s B A toward 0 in the directions that the protected data uses."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        """Hold the protection of some inputs. The adapters stay as they are until `begin`.

        Args:
            inputs: those that are protected.
        """
        self.inputs = list(inputs)

    @torch.no_grad()
    def begin(self) -> None:
        """Project the initial A. Its rows keep their lengths."""
        for one in self.inputs:
            for layer in one.layers.values() if one.protected is not None else ():
                weight = _factor(layer, "A")
                lengths = weight.norm(dim=1, keepdim=True)
                _project([weight], one.protected)
                weight.mul_(lengths / weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny))

    def placed(self) -> None:
        for one in self.inputs:
            device = local_tensor(_factor(next(iter(one.layers.values())), "A")).device
            one.protected = None if one.protected is None else one.protected.to(device)
            top = next((pull.top.to(device) for pull in one.pulls.values()), None)
            for name, pull in one.pulls.items():
                assert top is not None
                one.pulls[name] = Pull(top, pull.energy.to(device), pull.rest.to(device))

    def memory(self) -> list[tuple[str, int, str]]:
        cut = sum(one.protected.nbytes for one in self.inputs if one.protected is not None)
        pulls = [pull for one in self.inputs for pull in one.pulls.values()]
        tops = {id(pull.top): pull.top.nbytes for pull in pulls}
        pulled = sum(tops.values()) + sum(pull.energy.nbytes + pull.rest.nbytes for pull in pulls)
        parts = [
            ("protected directions", cut, "algo.protect: adapters do not read their inputs along them"),
            ("directions of the pull", pulled, "algo.protect_strength: adapters are pulled back along them"),
        ]
        return [part for part in parts if part[1]]

    @torch.no_grad()
    def project_gradients(self) -> None:
        for one in self.inputs:
            if one.protected is not None:
                gradients = (_factor(layer, "A").grad for layer in one.layers.values())
                _project([gradient for gradient in gradients if gradient is not None], one.protected)

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        self._pull(optimizer)
        for one in self.inputs:
            if one.protected is not None:
                _project([_factor(layer, "A") for layer in one.layers.values()], one.protected)

    def _pull(self, optimizer: torch.optim.Optimizer) -> None:
        pulled = [(one.layers[name], pull) for one in self.inputs for name, pull in one.pulls.items()]
        if not pulled:
            return
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        sizes = zip(_mean_squares(_factor(layer, "A") for layer, _ in pulled),
                    _mean_squares(_factor(layer, "B").mT for layer, _ in pulled), strict=True)  # fmt: skip
        for (layer, pull), (of_a, of_b) in zip(pulled, sizes, strict=True):
            a = _factor(layer, "A")
            pull.pull_(local_tensor(a), rates[id(a)] * layer.scaling[ADAPTER] * (of_a.sqrt() + of_b.sqrt()))


def _factor(layer: LoraLayer, name: str) -> torch.nn.Parameter:
    """A or B of a layer. Looked up each time, since sharding replaces parameters."""
    return (layer.lora_A if name == "A" else layer.lora_B)[ADAPTER].get_parameter("weight")


def _mean_squares(factors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of squares of each factor (r, n), sharded or not, divided by n: (number of factors,). All ranks must call it."""
    given = list(factors)
    sums = torch.stack([local_tensor(factor).square().sum() / factor.shape[1] for factor in given])
    if any(isinstance(factor, DTensor) for factor in given):
        dist.all_reduce(sums)
    return sums


def _project(tensors: Iterable[torch.Tensor], protected: torch.Tensor | None) -> None:
    """Remove the protected directions from rows, in place. Sharded tensors have whole rows."""
    rows = [local_tensor(tensor) for tensor in tensors]
    if rows and protected is not None:
        stacked = torch.cat(rows) if len(rows) > 1 else rows[0]
        along = (stacked @ protected) @ protected.mT
        for part, leak in zip(rows, along.split([len(part) for part in rows]), strict=True):
            part.sub_(leak)
