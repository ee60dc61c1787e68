"""Rounding by chance: the mean is exact, numbers of the type stay, and equal names give equal results."""

import pytest
import torch

from hub.models.rounding import rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.012345, -0.012345, 3.14159, 1e-6, -2e-7])
def test_the_mean_is_the_number_and_each_result_is_beside_it(dtype, value):
    many = torch.full((200_000,), value)
    found = rounded(many, dtype, "weight").double()
    near = float(torch.tensor(value).to(dtype))
    step = (found.max() - found.min()).item()
    assert len(found.unique()) == 2, "the two numbers beside it"
    assert near in found.unique().tolist()
    assert abs(found.mean().item() - float(many[0])) < 4 * step / 2 / 200_000**0.5 + 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_the_type_stay(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    found = rounded(every.float(), dtype, "weight")
    assert torch.equal(found.nan_to_num(1.5), every.nan_to_num(1.5))
    assert torch.equal(found.isnan(), every.isnan())


def test_equal_names_give_equal_results_and_the_largest_number_does_not_overflow():
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    assert torch.equal(rounded(weight, torch.bfloat16, "a"), rounded(weight, torch.bfloat16, "a"))
    assert not torch.equal(rounded(weight, torch.bfloat16, "a"), rounded(weight, torch.bfloat16, "b"))
    largest = torch.full((1000,), 65519.0)
    assert torch.isfinite(rounded(largest, torch.float16, "a")).all()
    assert torch.equal(rounded(weight, torch.float32, "a"), weight)
