"""Rows in fp8, and the GPUs that multiply them."""

import pytest
import torch

from hub import ConfigError, Run
from hub.train.fast.float8 import check_gpu, tell, to_fp8


def test_an_element_comes_back_within_a_sixteenth_of_itself():
    torch.manual_seed(1)
    rows = torch.randn(64, 256) * torch.logspace(-30, 30, 64)[:, None]
    codes, scales = to_fp8(rows)
    found = codes.double() * scales
    assert ((found - rows.double()).abs() <= (rows.double().abs() / 16).maximum(scales * 2**-10) * (1 + 1e-6)).all()
    assert torch.equal(codes.double().abs().amax(1), torch.full((64,), 448.0, dtype=torch.float64))


def test_zeros_stay_zero_and_what_is_not_finite_is_seen():
    codes, scales = to_fp8(torch.tensor([[0.0, 0.0], [1e-36, -1e-37], [float("nan"), 1.0], [float("inf"), 1.0]]))
    found = codes.float() * scales
    assert torch.equal(found[0], torch.zeros(2))
    assert found[1] == pytest.approx([1e-36, -1e-37], rel=1 / 16)
    assert not found[2:].isfinite().all(1).any()


def test_gpus_before_hopper_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: [(9, 0), (8, 0)][number])
    with pytest.raises(ConfigError, match=r"this one is older: NVIDIA A100\. Type algo\.precision=auto"):
        check_gpu()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    check_gpu()


def test_a_line_says_which_layers_take_part_and_which_do_not(tmp_path, capsys):
    run = Run(tmp_path)
    tell(run, ["a.0.up", "a.1.up", "a.0.q.base_layer"], ["a.0.gate"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("3 linear layers are in fp8: up, q. The output layer and embeddings are not")
    assert said[1].endswith("1 can't be (sizes that are no multiples of 16, or other layers): gate")
