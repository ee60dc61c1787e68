"""Rows in fp8, the GPUs that support them, and tests for every algorithm that has `algo.precision=fp8`."""

import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hub import ConfigError, Interrupted, Result, Run, compose
from hub.launch import launcher, preflight, sweep
from hub.system import gpus
from hub.train import loop
from hub.train.kernels.float8 import check_gpu, report_layers, to_fp8

RATES = {"sft": "1e-3", "lora_sft": "1e-2"}


def test_an_element_comes_back_within_a_sixteenth_of_itself():
    torch.manual_seed(1)
    rows = torch.randn(64, 256) * torch.logspace(-30, 30, 64)[:, None]
    codes, scales = to_fp8(rows)
    found = codes.double() * scales
    assert ((found - rows.double()).abs() <= (rows.double().abs() / 16).maximum(scales * 2**-10) * (1 + 1e-6)).all()
    assert torch.equal(codes.double().abs().amax(1), torch.full((64,), 448.0, dtype=torch.float64))


def test_training_a_bfloat16_weight_by_a_little_moves_what_is_computed_with_as_little():
    torch.manual_seed(0)
    weights = torch.randn(256, 512).bfloat16().float()
    for change in (1e-6, 1e-5, 1e-4):
        more, less = (codes.double() * scales for codes, scales in (to_fp8(weights + change), to_fp8(weights - change)))
        assert float((more - less).abs().mean()) < 1.2 * 2 * change  # with 448 in place of the prime it is 150, 16 and 2 times


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
    report_layers(run, ["a.0.up", "a.1.up", "a.0.q.base_layer"], ["a.0.gate"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("3 linear layers are in fp8: up, q. The output layer and embeddings are not")
    assert said[1].endswith("1 can't be (sizes that are no multiples of 16, or other layers): gate")


def run(algo: str, folder: Path, *overrides: str) -> Result:
    options = [f"algo={algo}", "algo.precision=fp8", "model=tiny", "data=tiny", "launch=inline", "model.dtype=bfloat16"]
    options += [f"algo.learning_rate={RATES[algo]}", "algo.max_steps=6", "algo.effective_batch_size=8", f"output_dir={folder}"]
    return launcher.launch(compose(*options, *overrides))


@pytest.mark.slow
@pytest.mark.parametrize("algo", RATES)
def test_a_stopped_run_resumes_bit_for_bit_and_no_fp8_is_stored(tmp_path, monkeypatch, algo):
    monkeypatch.setattr("hub.launch.preflight.has_no_gpu", lambda: False)
    monkeypatch.setattr("hub.train.setup.setup.check_gpu", lambda: None)
    whole = run(algo, tmp_path, "algo.save_every_steps=2")
    checkpoint = max((whole.run_path / "checkpoints").glob("step-*"))
    stored = [name for file in checkpoint.rglob("*.safetensors") for name in load_file(file)]
    assert stored
    assert not [name for name in stored if "codes" in name or "scales" in name or "weight_t" in name]
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == 3 else None)
        with pytest.raises(Interrupted):
            run(algo, tmp_path, "algo.save_every_steps=2", "run_name=stopped")
    resumed = launcher.launch(compose(f"resume={tmp_path / 'stopped'}"))
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in whole.metrics]


@pytest.mark.parametrize("algo", RATES)
def test_a_machine_without_a_gpu_is_refused_in_a_line_before_there_is_a_run_folder(tmp_path, monkeypatch, capsys, algo):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"^algo\.precision=fp8 needs NVIDIA GPUs.*none here\. Type algo\.precision=auto$"
    ) as first:
        run(algo, tmp_path)
    assert not list(tmp_path.iterdir())
    # Where that is not certain, as with a driver and no nvidia-smi, the worker says it.
    monkeypatch.setattr("hub.launch.preflight.has_no_gpu", lambda: False)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(first.value))}$"):
        run(algo, tmp_path)
    assert "run folder" in capsys.readouterr().out, "a worker was started"


def test_no_gpu_is_certain_only_where_none_is_visible_and_the_driver_is_missing(monkeypatch):
    found = {"gpus": 0, "driver": True}

    def load(name: str) -> None:
        assert name == "libcuda.so.1"
        if not found["driver"]:
            raise OSError

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "CDLL", load)
    monkeypatch.setattr(gpus, "num_visible_gpus", lambda: found["gpus"])
    assert not gpus.has_no_gpu()
    found["driver"] = False
    assert gpus.has_no_gpu()
    found["gpus"] = 1
    assert not gpus.has_no_gpu()


def test_the_jobs_of_a_cluster_are_checked_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = ["algo=sft", "algo.precision=fp8", "model=tiny", "data=tiny", "launch.strategy=fsdp", f"output_dir={tmp_path}"]
    cfg = compose(*options)
    preflight.prepare(cfg, here=False)
    with pytest.raises(ConfigError) as here:
        preflight.prepare(cfg)
    assert [line.split(" ")[0] for line in here.value.problems] == ["algo.precision=fp8", "launch.strategy=fsdp"]
    seen = []

    def prepare(cfg, here):
        seen.append(here)
        raise ConfigError("enough seen")

    monkeypatch.setattr(sweep, "prepare", prepare)
    for on_cluster in ([], ["hydra/launcher=basic"]):
        with pytest.raises(ConfigError, match="enough seen"):
            sweep.sweep([*options, "algo.seed=1,2", *on_cluster], None)
    assert seen == [True, True, False, False]
