"""Adapters that begin with a part of the frozen weights: what they begin with, what is saved, and resume."""

import json
import signal

import pytest
import torch
from hub_lora_sft import inits
from hub_lora_sft.inits import factors_of, scale_loftq
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from hub import Interrupted, ModelError, Result, compose
from hub.launch.launcher import launch

OPTIONS = ["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", "algo.max_steps=4", "algo.learning_rate=1e-2",
           "algo.init=pissa_niter_2", "algo.save_every_steps=2"]  # fmt: skip


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora"])
def test_an_adapter_begins_with_the_part_of_the_weight_that_peft_takes(init):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20, bias=False))
    left, _, right = torch.linalg.svd(torch.randn(20, 12), full_matrices=False)
    weight = left * 0.5 ** torch.arange(12.0) @ right  # directions that a random start finds, too
    model[0].weight.data = weight.clone()
    adapted = get_peft_model(model, LoraConfig(target_modules=["0"], r=4, lora_alpha=12, init_lora_weights=init))
    taken = weight - adapted.base_model.model[0].base_layer.weight.detach()
    a, b = factors_of(weight, init, 4, 3.0)
    assert (a.shape, b.shape) == ((4, 12), (20, 4))
    assert torch.allclose(3.0 * b @ a, taken, atol=1e-4 if "niter" in init else 1e-6)
    if init == "pissa":  # as much from A as from B
        assert torch.allclose(a.norm(dim=1), b.norm(dim=0), atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora"])
def test_a_rank_beyond_the_weight_leaves_directions_that_begin_as_plain_lora(init):
    weight = torch.randn(5, 12)
    a, b = factors_of(weight, init, 8, 1.0)
    assert (a.shape, b.shape) == ((8, 12), (5, 8))
    assert torch.allclose(b @ a, weight, atol=1e-5)
    assert a[5:].abs().min() > 0


def run_and_stop(folder, monkeypatch) -> Result:
    """Stop in the third step."""
    from hub.train import loop

    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == 3 else None)
        with pytest.raises(Interrupted):
            launch(compose(*OPTIONS, f"output_dir={folder}"))
    return Result.read(folder / "latest" / "result.json")


def test_a_stopped_run_resumes_bit_for_bit_with_the_factors_that_it_began_with(tmp_path, monkeypatch):
    whole = launch(compose(*OPTIONS, f"output_dir={tmp_path / 'whole'}"))
    stopped = run_and_stop(tmp_path / "stopped", monkeypatch)
    factors, resume = stopped.run_path / inits.FILE, compose(*OPTIONS, f"output_dir={tmp_path / 'stopped'}", "resume=latest")
    aside = factors.rename(tmp_path / "aside")
    with pytest.raises(ModelError, match=r"initial_adapter\.safetensors can't be read, and the run can't be resumed"):
        launch(resume)
    aside.rename(factors)
    monkeypatch.setattr(inits, "factors_of", None)  # a new decomposition would draw other numbers
    resumed = launch(resume)
    first, second = (load_file(result.model_path / "adapter_model.safetensors") for result in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == second.keys()
    assert whole.eval_loss == resumed.eval_loss
    # A checkpoint's model is such an adapter, too, and begins with the same factors.
    of_checkpoint = load_file(stopped.model_path / "adapter_model.safetensors")
    assert json.loads((stopped.model_path / "adapter_config.json").read_text())["r"] == 32
    for name, factor in of_checkpoint.items():
        begun, ended = (tensors[name][16:] if "lora_A" in name else tensors[name][:, 16:] for tensors in (of_checkpoint, first))
        assert torch.equal(begun, ended), name
        assert not torch.equal(factor, first[name]), name
    assert not factors.exists()


def test_loftq_makes_up_for_quantization_whatever_alpha_is(monkeypatch):
    def quantize(weight, num_bits, reduced_rank, num_iter):
        coarse = (weight.detach() * 8).round() / 8
        a, b = factors_of(weight.detach() - coarse, "pissa", reduced_rank, 1.0)
        return coarse, a, b

    monkeypatch.setattr("peft.tuners.lora.layer.loftq_init", quantize)
    model = nn.Sequential(nn.Linear(12, 12, bias=False))
    weight = model[0].weight.detach().clone()
    config = LoraConfig(target_modules=["0"], r=12, lora_alpha=48)
    config.init_lora_weights, config.loftq_config = "loftq", {"loftq_bits": 4, "loftq_iter": 1}
    adapted = get_peft_model(model, config)
    scale_loftq(adapted)
    assert torch.allclose(adapted(torch.eye(12)), weight.mT, atol=1e-5)
