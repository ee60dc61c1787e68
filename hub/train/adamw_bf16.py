"""AdamW for weights that are kept in bfloat16, with stochastic rounding of all that it writes.

bfloat16 resolves 0.4 to 0.8 % of a number. Rounded to the nearest, a step below half of that changes nothing, and a second
moment that loses 0.1 % a step (beta2 = 0.999) stays where it is for ever (Zamirai et al., "Revisiting BFloat16 Training",
arXiv 2010.06192). Rounded up or down by chance, in proportion to what is cut off, each number is right on average and small
steps add up (Connolly, Higham and Mary, "Stochastic Rounding and Its Probabilistic Backward Error Analysis", SIAM J. Sci.
Comput. 2021).

The chance is a function of the seed, the step, the weight and the place in it, and not a generator's state: ranks that hold the
same weight round it alike, a share is rounded as the whole would be, and a resumed run goes on with the same bits.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch

from hub.parallel.sharded_tensors import local, place_of
from hub.train.kernels.compiled import RECOMPILE_LIMIT

CHUNK = {"cpu": 2**18, "cuda": 2**24}
"""Numbers that are updated at a time where nothing is compiled: each operation makes a tensor of so many."""

COMPILED_CHUNK = 2**30
"""Compiled it is one kernel without any such tensor; only places must be numbers of 32 bits."""


class StochasticAdamW(torch.optim.Optimizer):  # type: ignore[misc]  # torch's types are not read
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) that computes in float32 and rounds by chance to bfloat16.

    Weights of another type are updated as `torch.optim.AdamW` does it. The state has its names: `step`, and in the type of the
    weight `exp_avg` and `exp_avg_sq`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        """What to train, and how.

        Args:
            params: parameters, or groups of them.
            lr: learning rate.
            betas: decay of the two moments.
            eps: term against division by zero.
            weight_decay: decoupled decay, times the learning rate.
            seed: another seed rounds otherwise.
            compiled: one kernel for each weight, for GPUs. The bits of chance are the same.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed, self._compiled = seed, compiled
        self._keys: dict[Any, list[torch.Tensor]] = {}
        if compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sent: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        everything = ((group, parameter) for group in self.param_groups for parameter in group["params"])
        for number, (group, parameter) in enumerate(everything):
            if parameter.grad is not None:
                self._change(group, parameter, number, sent)
        return loss

    def _change(self, group: dict[str, Any], parameter: Any, number: int, sent: dict[Any, Any]) -> None:
        """Change one weight, or this process's share of it.

        Args:
            group: rate, decay and so on.
            parameter: the weight.
            number: its place among all weights.
            sent: what is on the devices already; most weights need the same.
        """
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["step"] += 1
        weight = local(parameter)
        if not weight.numel():
            return
        in_a_row = weight.contiguous()
        tensors = [in_a_row, *(local(tensor) for tensor in (parameter.grad, state["exp_avg"], state["exp_avg_sq"]))]
        chunk = COMPILED_CHUNK if self._compiled else CHUNK.get(weight.device.type, CHUNK["cuda"])
        if parameter not in self._keys:
            self._keys[parameter] = _keys(parameter, number, chunk)
        step, rate, (beta1, beta2) = int(state["step"]), group["lr"], group["betas"]
        settings = (
            1 - rate * group["weight_decay"], rate / (1 - beta1**step), 1 - beta1, beta2, 1 - beta2,
            math.sqrt(1 - beta2**step), group["eps"],
        )  # fmt: skip
        dtype = torch.promote_types(weight.dtype, torch.float32)
        place = (weight.device, dtype, step, settings)
        if place not in sent:
            of_step = _hashed(self._seed, step)[:2]
            sent[place] = _static(settings, dtype, weight.device), _static(of_step, torch.int32, weight.device)
        numbers, step_key = sent[place]
        update = _compiled() if self._compiled else _update
        # `data`: a compiler would look at what a view is a view of, and compile anew for each shape of that.
        parts = zip(*(tensor.reshape(-1).split(chunk) for tensor in tensors), strict=True)
        for part, key in zip(parts, self._keys[parameter], strict=True):
            values, gradient, exp_avg, exp_avg_sq = (tensor.data for tensor in part)
            update(values, gradient, exp_avg, exp_avg_sq, numbers, step_key, key)
        if in_a_row is not weight:
            weight.copy_(in_a_row)


def _keys(parameter: Any, number: int, chunk: int) -> list[torch.Tensor]:
    """For each chunk of a weight, or of this process's share: three keys of its own. (3,) int32."""
    first, second, third, _ = _hashed(number)
    first += sum(start * math.prod(parameter.shape[i + 1 :]) for i, start in enumerate(place_of(parameter).offsets))
    share = local(parameter)
    starts = range(0, share.numel(), chunk)
    return [_static((_wrapped(first + start), second, third), torch.int32, share.device) for start in starts]


def _hashed(*numbers: int) -> tuple[int, ...]:
    """Four numbers of 32 bits with a sign that follow from these."""
    return struct.unpack("<4i", hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=16).digest())


def _static(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A few numbers on a device, whose count a compiler need not leave open."""
    tensor = torch.tensor(values, dtype=dtype, device=device)
    torch._dynamo.mark_static(tensor)
    return tensor


def _wrapped(x: int) -> int:
    """As a number of 32 bits with a sign."""
    return (x + 2**31) % 2**32 - 2**31


def _update(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    numbers: torch.Tensor,
    step_key: torch.Tensor,
    key: torch.Tensor,
) -> None:
    """One step of AdamW in place.

    Args:
        weight: (N,).
        gradient: (N,).
        exp_avg: (N,).
        exp_avg_sq: (N,).
        numbers: (7,): 1 - rate * decay, rate / (1 - beta1^step), 1 - beta1, beta2, 1 - beta2, sqrt(1 - beta2^step), epsilon.
        step_key: (2,) int32, of the seed and the step.
        key: (3,) int32, of the weight; the first number's place is in it.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    new_weight, change, first, second = (tensor.to(wide) for tensor in (weight, gradient, exp_avg, exp_avg_sq))
    first = first + (change - first) * numbers[2]
    second = second * numbers[3] + change * change * numbers[4]
    new_weight = new_weight * numbers[0] - numbers[1] * (first / (second.sqrt() / numbers[5] + numbers[6]))
    if weight.dtype == torch.bfloat16:
        places = torch.arange(len(weight), dtype=torch.int32, device=weight.device)
        chance = mixed(mixed(places + key[0]) ^ key[1] ^ step_key[0])
        more = mixed(chance ^ key[2] ^ step_key[1])
        new_weight = rounded(new_weight, chance & 0xFFFF)
        first = rounded(first, (chance >> 16) & 0xFFFF)
        second = rounded(second, more & 0xFFFF)
    weight.copy_(new_weight)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)


@cache
def _compiled() -> Callable[..., None]:
    """`_update` as one kernel. Made when it is asked for: the compiler's modules take most of a second to import."""
    found: Callable[..., None] = torch.compile(_update, dynamic=True)
    return found


def rounded(value: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Numbers as bfloat16: of the two neighbours either, the nearer the more likely, so that the mean is the number itself.

    What bfloat16 has exactly stays as it is, infinity and NaN too.

    Args:
        value: float32.
        chance: int32, evenly from 0 to 65535.
    """
    # bfloat16 is the upper half of float32: what is cut off, plus chance, carries into it as often as it should.
    bits = (value.view(torch.int32) + chance) & -0x10000
    return torch.where(value.isnan(), value, bits.view(torch.float32)).to(torch.bfloat16)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """A permutation of int32 that looks like chance, fast on any device.

    The finaliser `lowbias32` of Wellons, "Prospecting for Hash Functions" (2018, nullprogram.com/blog/2018/07/31); products
    wrap around.
    """
    x = (x ^ _shifted(x, 16)) * 0x7FEB352D
    x = (x ^ _shifted(x, 15)) * (0x846CA68B - 2**32)
    return x ^ _shifted(x, 16)


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted to the right with zeros from the left; int32 would bring its sign."""
    return (x >> by) & (2 ** (32 - by) - 1)
