"""The random generators go on where they were, through a file."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hub.train.checkpoints.rng import random_state, restore_random_state

CPU = torch.device("cpu")


def drawn() -> list[float]:
    """Some numbers of each generator. Odd numbers of normal ones, of which Python and NumPy make two at a time."""
    normal = [random.gauss(0, 1) for _ in range(3)] + [np.random.standard_normal() for _ in range(3)]
    return [*normal, random.random(), float(np.random.randint(2**31)), *torch.rand(3).tolist(), *np.random.rand(3).tolist()]


@pytest.mark.parametrize("num_before", [0, 1])
def test_every_generator_goes_on_where_it_was(tmp_path, num_before):
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    for _ in range(num_before):  # half of a pair of normal numbers waits in both generators
        random.gauss(0, 1)
        np.random.standard_normal()
    np.random.rand(100)  # somewhere within a block of the Mersenne twister
    save_file(random_state(CPU), tmp_path / "random.safetensors")
    expected = [drawn(), drawn()]
    assert len({*expected[0], *expected[1]}) == 2 * len(expected[0])
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    restore_random_state(load_file(tmp_path / "random.safetensors"), CPU)
    assert [drawn(), drawn()] == expected
