"""What a plan counts for FSDP2 is what FSDP2 itself takes: a model that it has sharded is run, and its storages are counted."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hub.compose.compose import compose
from hub.models.weights import local_tokenizer
from hub.parallel.group import Group
from hub.parallel.strategy import FullyShard
from hub.plan.build import tensors_without_data
from hub.plan.live import Live
from hub.plan.memory import Planner
from hub.plan.passes import row
from hub.plan.scratch import scratch_of_call
from hub.plan.sharding import Fsdp, Shares, gathered_by, group_bytes
from hub.plugins.registry import resolve

WORLD = 2
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def two_processes() -> Iterator[None]:
    """A process group whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    yield
    dist.destroy_process_group()


class Held(TorchDispatchMode):
    """Counts the bytes of all storages after each operation: FSDP2 gives and takes the memory of storages that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._storages: dict[int, Any] = {}

    def now(self) -> int:
        living = [storage for reference in self._storages.values() if (storage := reference()) is not None]
        return sum(-(-storage.nbytes() // 512) * 512 for storage in living)

    def add(self, tensors: Any) -> None:
        for tensor in tensors:
            storage = (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
            if storage._cdata not in self._storages:
                self._storages[storage._cdata] = weakref.ref(storage)
                weakref.finalize(storage, self._storages.pop, storage._cdata, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.most = max(self.most, self.now() + scratch_of_call(func.name(), args))
        result = func(*args, **(kwargs or {}))
        self.add(value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor))
        self.most = max(self.most, self.now())
        return result


class Layer(torch.nn.Module):
    """A product, which notes what is held while it runs and while its gradient is computed."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self.linear, self._note = torch.nn.Linear(512, 512, bias=False), note

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        self._note()
        out.register_hook(lambda gradient: self._note())
        return out * 1


@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("with_gradients", [True, False])
def test_fsdp2_holds_so_much_while_each_layer_runs(is_mixed: bool, with_gradients: bool) -> None:
    held, live = Held(), Live(rounds=True)
    noted: list[int] = []

    def note() -> None:
        noted.append(held.now())

    layers = [Layer(note) for _ in range(4)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(512, 1024, bias=False))
    dtype = HALF if is_mixed else None
    shares = Shares(
        tuple(group_bytes([layer.linear.weight], WORLD, dtype) for layer in layers),
        group_bytes([model[-1].weight], WORLD, dtype),
    )
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if is_mixed else None)
    for module in (*layers, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)), mp_policy=policy, reshard_after_forward=True)
    x = torch.zeros(1, 512, requires_grad=True)

    model(x).sum().backward()
    if not with_gradients:
        model.zero_grad()
    held.add([x, *model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)])
    before, noted[:] = held.now(), []
    with held:
        loss = model(x).sum()
        after = held.now()
        loss.backward()
    measured = [*noted, after, held.now(), held.most]

    noted.clear()
    with FakeTensorMode(), live:
        fsdp = Fsdp(shares, with_gradients)
        fsdp.begin_forward()
        for number in range(4):
            fsdp.before_forward(number)
            noted.append(live.num_bytes)
            fsdp.after_forward(number)
        fsdp.end_forward()
        after = live.num_bytes
        fsdp.begin_backward()
        gradients = [torch.empty(shares.root.gathered, dtype=torch.uint8)]
        for number in reversed(range(4)):
            fsdp.before_backward(number)
            noted.append(live.num_bytes)
            fsdp.after_backward(number, [torch.empty(shares.layers[0].gathered, dtype=torch.uint8)])
        fsdp.end_backward(gradients)
        predicted = [*noted, after, live.num_bytes, live.most_bytes]
    assert predicted == pytest.approx([num_bytes - before for num_bytes in measured], rel=0.02, abs=30_000)


@pytest.mark.parametrize(
    ("words", "tokens", "with_gradients"),
    [
        (("algo=sft",), 16, True),
        pytest.param(("algo=sft",), 256, False, marks=pytest.mark.slow),
        pytest.param(("algo=sft", "algo.master_weights=false"), 16, True, marks=pytest.mark.slow),
        pytest.param(("algo=lora_sft",), 256, True, marks=pytest.mark.slow),
    ],
)
def test_a_pass_of_a_sharded_model_takes_what_fsdp2_takes(words: tuple[str, ...], tokens: int, with_gradients: bool) -> None:
    resolved = resolve(compose(*words, "model=tiny", "algo.torch_compile=none"), check_needs=False)
    planner = Planner(resolved, Path(local_tokenizer(resolved.config.model, print)), HALF)
    model, gathered = planner.model, gathered_by(planner.model, planner.layers, "fsdp", WORLD, HALF)
    passes = planner.passes(False, gathered.dtype)
    predicted = passes.run(tokens, 0, with_gradients, shares=gathered.shares).peak

    held, strategy = Held(), FullyShard(Group(0, WORLD, 0, torch.device("cpu")), HALF, cpu_offload=False)

    def run() -> None:
        with passes.autocast():
            loss = planner.loss(model, row(tokens, True, tokens))
        loss.backward()

    with tensors_without_data(planner.planned.mode):
        strategy.place(model)
        run()
        if not with_gradients:
            for parameter in model.parameters():
                parameter.grad = None
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        held.add([*model.parameters(), *model.buffers(), *gradients])
        before = held.now()
        with held:
            run()
    # At 16 tokens nearly all of it is FSDP2's. More tokens compare what layers keep as well, which stand-ins give to 5 %.
    assert predicted == pytest.approx(held.most - before, rel=0.01 if tokens == 16 else 0.03)
