"""Weights, gradients and moments in bfloat16: small steps add up, and a run is the same in any layout and after a resume."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hub import compose
from hub.config.schema import AlgoConfig
from hub.launch.launcher import launch
from hub.parallel import group as distributed
from hub.parallel.strategy import total_norm
from hub.system.memory import three_of_each
from hub.train import adamw_bf16 as rounding
from hub.train.adamw_bf16 import StochasticAdamW, mixed, rounded
from hub.train.optim import make_optimizer

MANY = 2**16


def chances(number: int = MANY) -> torch.Tensor:
    return mixed(mixed(torch.arange(number, dtype=torch.int32)) ^ 12345) & 0xFFFF


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """A matrix, a vector, one number, and a matrix that does not lie in a row."""
    torch.manual_seed(0)
    shapes = [(7, 50), (11,), (1,), (30, 8)]
    made = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
    return [torch.nn.Parameter(tensor) for tensor in [*made, torch.randn(9, 4, dtype=torch.float64).to(dtype).T]]


def train(weights: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = 20) -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    for step in range(steps):
        for number, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=dice, dtype=torch.float64).to(weight.dtype)
            weight.grad = None if step % 3 == number else gradient
        optimizer.step()
    return [t for w in weights for t in (w.detach(), optimizer.state[w]["exp_avg"], optimizer.state[w]["exp_avg_sq"])]


@pytest.mark.parametrize("value", [1.001, -0.7317, 3.3e-5, -1e30, 1e-30, 255.5])
def test_the_mean_of_rounding_is_the_number_itself(value):
    number = torch.full((MANY,), value)
    found = rounded(number, chances()).double()
    below, above = found.min(), found.max()
    exact = number[0].double()
    assert below < exact < above
    assert set(found.tolist()) == {float(below), float(above)}
    assert torch.nextafter(below.bfloat16(), torch.tensor(torch.inf).bfloat16()) == above
    # Five times the deviation of the mean of so many throws of a coin.
    assert abs(found.mean() - exact) < 0.01 * (above - below)


def test_what_bfloat16_has_stays():
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for chance in (0, 1, 0x7FFF, 0xFFFF):
        found = rounded(every.float(), torch.full((2**16,), chance, dtype=torch.int32))
        assert torch.equal(found.isnan(), every.isnan())
        same = ~every.isnan()
        assert torch.equal(found[same].view(torch.int16), every[same].view(torch.int16))
    with_payload = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert rounded(with_payload, torch.full((3,), 0xFFFF, dtype=torch.int32)).isnan().all()


def test_chance_is_even_and_new_in_each_step_and_for_each_weight():
    weights = [torch.nn.Parameter(torch.full((MANY,), 1.0, dtype=torch.bfloat16)) for _ in range(2)]
    # A quarter of the distance to the number below.
    optimizer = StochasticAdamW(weights, lr=2**-10, betas=(0.0, 0.0))
    moved = []
    for _ in range(2):
        for weight in weights:
            weight.data.fill_(1.0)
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        moved += [weight.detach() < 1 for weight in weights]
    assert all(abs(one.double().mean() - 0.25) < 0.01 for one in moved)
    for i, one in enumerate(moved):
        # Of neighbors, and of two draws, as many as independent ones have.
        assert abs((one[1:] & one[:-1]).double().mean() - 1 / 16) < 0.01
        assert all(abs((one & other).double().mean() - 1 / 16) < 0.01 for other in moved[:i])


def test_steps_of_a_hundredth_of_what_bfloat16_resolves_add_up():
    def moved_by(make) -> float:
        weight = torch.nn.Parameter(torch.full((MANY,), 1.5, dtype=torch.bfloat16))
        optimizer = make([weight], lr=2**-7 / 100, betas=(0.9, 0.95), weight_decay=0.0)
        for _ in range(150):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return float((1.5 - weight.detach().double()).mean())

    assert moved_by(torch.optim.AdamW) == 0
    assert moved_by(StochasticAdamW) == pytest.approx(150 * 2**-7 / 100, rel=0.01)


def test_a_second_moment_that_loses_a_thousandth_a_step_decays():
    def moment(make) -> float:
        weight = torch.nn.Parameter(torch.zeros(MANY, dtype=torch.bfloat16))
        optimizer = make([weight], betas=(0.9, 0.999))
        weight.grad = torch.full_like(weight, 32.0)
        optimizer.step()
        first = optimizer.state[weight]["exp_avg_sq"].double().mean()
        weight.grad = torch.zeros_like(weight)
        for _ in range(400):
            optimizer.step()
        return float(optimizer.state[weight]["exp_avg_sq"].double().mean() / first)

    assert moment(torch.optim.AdamW) == 1
    assert moment(StochasticAdamW) == pytest.approx(0.999**400, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_types_are_trained_as_torch_does_it(dtype):
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours, theirs = parameters(dtype), parameters(dtype)
    found = train(ours, StochasticAdamW(ours, **options))
    expected = train(theirs, torch.optim.AdamW(theirs, **options))
    rtol, atol = (1e-5, 1e-7) if dtype == torch.float32 else (1e-12, 1e-15)
    assert all(torch.allclose(mine, its, rtol, atol) for mine, its in zip(found, expected, strict=True))


def test_chunks_change_nothing_and_another_seed_rounds_otherwise(monkeypatch):
    def result(seed: int, chunk: int) -> list[torch.Tensor]:
        monkeypatch.setitem(rounding.CHUNK, "cpu", chunk)
        weights = parameters(torch.bfloat16)
        return train(weights, StochasticAdamW(weights, lr=1e-2, seed=seed))

    whole = result(5, 2**18)
    assert all(torch.equal(a, b) for a, b in zip(whole, result(5, 32), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, result(6, 2**18), strict=True))


def test_the_weights_type_chooses_the_optimizer_and_what_memory_is_reckoned():
    def of(*dtypes: torch.dtype) -> torch.optim.Optimizer:
        group = {"params": [torch.nn.Parameter(torch.ones(10, dtype=dtype)) for dtype in dtypes], "weight_decay": 0.0}
        return make_optimizer(AlgoConfig(), [group], torch.device("cpu"))

    assert type(of(torch.float32)) is torch.optim.AdamW
    assert type(of(torch.bfloat16, torch.float32)) is StochasticAdamW
    assert three_of_each([torch.ones(10), torch.ones(10, dtype=torch.bfloat16)]) == 120 + 60


def test_gradients_in_bfloat16_are_summed_over_ranks_and_measured_in_float32(monkeypatch):
    gradients = [torch.full((3, 5), 1.0, dtype=torch.bfloat16), torch.full((1000,), 2.0**-9, dtype=torch.bfloat16)]
    weights = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()

    def of_four_ranks(flat: torch.Tensor) -> None:
        for _ in range(3):
            flat += torch.cat([torch.full((15,), 2.0**-9), torch.full((1000,), 2.0**-9)])

    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_reduce", of_four_ranks)
    distributed.sum_gradients(weights)
    assert weights[0].grad.dtype == torch.bfloat16
    # One by one each of the three would have been rounded away.
    assert weights[0].grad.eq(1 + 2**-7).all()
    assert weights[1].grad.eq(2**-7).all()
    odd = [torch.full((1000,), 0.3003, dtype=torch.bfloat16), torch.full((7,), 1.0, dtype=torch.bfloat16)]
    assert total_norm(odd) == pytest.approx(float(torch.cat(odd).double().norm()), rel=1e-6)


OPTIONS = ("algo=sft", "model=tiny", "data=tiny", "launch=inline", "model.dtype=bfloat16", "algo.master_weights=false",
           "algo.effective_batch_size=8", "algo.learning_rate=1e-3", "algo.max_steps=8", "algo.save_every_steps=3",
           "algo.keep_checkpoints=3")  # fmt: skip


def test_a_run_in_bfloat16_learns_and_is_resumed_bit_for_bit(tmp_path, capsys):
    whole = launch(compose(*OPTIONS, f"output_dir={tmp_path}"))
    assert whole.eval_loss < whole.eval_loss_before - 0.5
    assert "rounded stochastically: 8 bytes a parameter" in capsys.readouterr().out
    assert json.loads((whole.run_path / "plan.json").read_text())["weights_kept_in"] == "bfloat16"
    checkpoint = whole.run_path / "checkpoints" / "step-00000003"
    for name in ("trainable", "optimizer"):
        stored = load_file(checkpoint / f"{name}.safetensors")
        assert {tensor.dtype for key, tensor in stored.items() if not key.endswith("/step")} == {torch.bfloat16}
    weights, metrics = load_file(whole.model_path / "model.safetensors"), whole.metrics
    (whole.run_path / "result.json").unlink()
    torch.manual_seed(99)
    resumed = launch(compose(*OPTIONS, f"output_dir={tmp_path}", f"resume={checkpoint}"))
    again = load_file(resumed.model_path / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in metrics]
    assert resumed.eval_loss == whole.eval_loss
