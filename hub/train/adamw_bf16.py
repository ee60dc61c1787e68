"""AdamW for bfloat16 weights, with stochastic rounding of weights and moments.

bfloat16 resolves 0.4 to 0.8 % of a number. With rounding to nearest, a step below half of that changes nothing, and a second
moment that loses 0.1 % a step (beta2 = 0.999) never changes (Zamirai et al., "Revisiting BFloat16 Training", arXiv 2010.06192).
Stochastic rounding goes up or down at random, in proportion to the remainder: each number is correct on average, and small
steps add up (Connolly, Higham and Mary, "Stochastic Rounding and Its Probabilistic Backward Error Analysis", SIAM J. Sci.
Comput. 2021).

The random bits are a hash of the seed, the step, the weight and the index in it, not the state of a generator. So ranks that
hold the same weight round it alike, a shard is rounded as the full tensor would be, and a resumed run continues bit for bit.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import count
from typing import Any, overload

import torch

from hub.parallel.sharded_tensors import local_region, local_tensor
from hub.train.kernels.compiled import RECOMPILE_LIMIT

CHUNK = {"cpu": 2**18, "cuda": 2**24}
"""Elements that are updated at a time without torch.compile: each operation creates a tensor of this size."""

COMPILED_CHUNK = 2**30
"""Elements that the compiled kernel updates at a time. It creates no such tensors, but indices must fit into 32 bits."""

Sent = dict[tuple[torch.device, torch.dtype, int, tuple[float, ...]], tuple[torch.Tensor, torch.Tensor]]
"""Device, dtype, step and constants -> constants and key of the step, as tensors on that device."""


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) that computes in float32 and rounds stochastically to bfloat16.

    Weights of another dtype are updated as by `torch.optim.AdamW`. The state has the same names: `step`, and in the dtype of
    the weight `exp_avg` and `exp_avg_sq`.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        """Create the optimizer.

        Args:
            params: parameters, or groups of them.
            lr: learning rate.
            betas: decay of the two moments.
            eps: term against division by zero.
            weight_decay: decoupled decay, times the learning rate.
            seed: seed of the stochastic rounding.
            compiled: whether to run one compiled kernel for each weight, for GPUs. The random bits are the same.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed, self._compiled = seed, compiled
        self._keys: dict[torch.Tensor, list[torch.Tensor]] = {}
        if compiled:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sent: Sent = {}
        numbers = count()
        for group in self.param_groups:
            for parameter in group["params"]:
                number = next(numbers)
                if parameter.grad is not None:
                    self._update_weight(group, parameter, parameter.grad, number, sent)
        return loss

    def _update_weight(
        self, group: dict[str, Any], parameter: torch.Tensor, gradient: torch.Tensor, number: int, sent: Sent
    ) -> None:
        """Update one weight, or this process's shard of it.

        Args:
            group: learning rate, decay and so on.
            parameter: the weight.
            gradient: its gradient.
            number: its index among all weights.
            sent: constants already on the devices; most weights need the same ones.
        """
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        state["step"] += 1
        weight = local_tensor(parameter)
        if not weight.numel():
            return
        contiguous = weight.contiguous()
        tensors = [contiguous, *(local_tensor(tensor) for tensor in (gradient, state["exp_avg"], state["exp_avg_sq"]))]
        chunk = COMPILED_CHUNK if self._compiled else CHUNK.get(weight.device.type, CHUNK["cuda"])
        if parameter not in self._keys:
            self._keys[parameter] = _keys(parameter, number, chunk)
        step, rate, (beta1, beta2) = int(state["step"]), group["lr"], group["betas"]
        settings = (
            1 - rate * group["weight_decay"], rate / (1 - beta1**step), 1 - beta1, beta2, 1 - beta2,
            math.sqrt(1 - beta2**step), group["eps"],
        )  # fmt: skip
        dtype = torch.promote_types(weight.dtype, torch.float32)
        key = (weight.device, dtype, step, settings)
        if key not in sent:
            of_step = _hashed(self._seed, step)[:2]
            sent[key] = _static(settings, dtype, weight.device), _static(of_step, torch.int32, weight.device)
        numbers, step_key = sent[key]
        update = _compiled() if self._compiled else _update
        # `data`: the compiler would guard on the base of a view, and recompile for each shape of it.
        parts = zip(*(tensor.reshape(-1).split(chunk) for tensor in tensors), strict=True)
        for part, chunk_key in zip(parts, self._keys[parameter], strict=True):
            values, change, exp_avg, exp_avg_sq = (tensor.data for tensor in part)
            update(values, change, exp_avg, exp_avg_sq, numbers, step_key, chunk_key)
        if contiguous is not weight:
            weight.copy_(contiguous)


def _keys(parameter: torch.Tensor, number: int, chunk: int) -> list[torch.Tensor]:
    """Three hash keys for each chunk of a weight, or of this process's shard of it. (3,) int32."""
    first, second, third, _ = _hashed(number)
    first += sum(start * math.prod(parameter.shape[i + 1 :]) for i, start in enumerate(local_region(parameter).offsets))
    shard = local_tensor(parameter)
    starts = range(0, shard.numel(), chunk)
    return [_static((_wrapped(first + start), second, third), torch.int32, shard.device) for start in starts]


def _hashed(*numbers: int) -> tuple[int, ...]:
    """Four signed 32-bit integers: a hash of the arguments."""
    return struct.unpack("<4i", hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=16).digest())


def _static(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A few numbers on a device, in a tensor whose shape the compiler treats as static."""
    tensor = torch.tensor(values, dtype=dtype, device=device)
    torch._dynamo.mark_static(tensor)
    return tensor


def _wrapped(x: int) -> int:
    """Wrap around to a signed 32-bit integer."""
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
    """Run one step of AdamW in place.

    Args:
        weight: (N,).
        gradient: (N,).
        exp_avg: (N,).
        exp_avg_sq: (N,).
        numbers: (7,): 1 - rate * decay, rate / (1 - beta1^step), 1 - beta1, beta2, 1 - beta2, sqrt(1 - beta2^step), epsilon.
        step_key: (2,) int32, hash of the seed and the step.
        key: (3,) int32, hash of the weight, with the index of the first element added.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    new_weight, change, first, second = (tensor.to(wide) for tensor in (weight, gradient, exp_avg, exp_avg_sq))
    first = first + (change - first) * numbers[2]
    second = second * numbers[3] + change * change * numbers[4]
    new_weight = new_weight * numbers[0] - numbers[1] * (first / (second.sqrt() / numbers[5] + numbers[6]))
    if weight.dtype == torch.bfloat16:
        indices = torch.arange(len(weight), dtype=torch.int32, device=weight.device)
        bits = mixed(mixed(indices + key[0]) ^ key[1] ^ step_key[0])
        more_bits = mixed(bits ^ key[2] ^ step_key[1])
        new_weight = rounded(new_weight, bits & 0xFFFF)
        first = rounded(first, (bits >> 16) & 0xFFFF)
        second = rounded(second, more_bits & 0xFFFF)
    weight.copy_(new_weight)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)


@cache
def _compiled() -> Callable[..., None]:
    """`_update` as one compiled kernel. Created on demand: the compiler's modules take most of a second to import."""
    return torch.compile(_update, dynamic=True)


def rounded(value: torch.Tensor, random_bits: torch.Tensor) -> torch.Tensor:
    """Round to one of the two neighboring bfloat16 numbers. The nearer is more likely, so the mean is the number itself.

    Numbers that bfloat16 represents exactly do not change, nor do infinity and NaN.

    Args:
        value: float32.
        random_bits: int32, uniform from 0 to 65535.
    """
    # bfloat16 is the upper half of float32: the lower half plus the random bits carries into it with the right probability.
    bits = (value.view(torch.int32) + random_bits) & -0x10000
    return torch.where(value.isnan(), value, bits.view(torch.float32)).to(torch.bfloat16)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """A pseudorandom permutation of int32, fast on any device.

    The finalizer `lowbias32` of Wellons, "Prospecting for Hash Functions" (2018, nullprogram.com/blog/2018/07/31). Products
    wrap around.
    """
    x = (x ^ _shifted(x, 16)) * 0x7FEB352D
    x = (x ^ _shifted(x, 15)) * (0x846CA68B - 2**32)
    return x ^ _shifted(x, 16)


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right and fill with zeros; a plain shift of int32 would fill with the sign."""
    return (x >> by) & ((1 << (32 - by)) - 1)
