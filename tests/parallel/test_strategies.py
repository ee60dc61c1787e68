"""Two processes that shard one model, over gloo: the same run as one process that has all of it."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from zoo.zoo import zoo_model

from hub import ConfigError, compose
from hub.launch.launcher import launch
from hub.parallel.zero import engine_config
from hub.result import Result

pytestmark = pytest.mark.usefixtures("warm_python")

OPTIONS = ["model=tiny", "data=tiny", "model.dtype=float32", "algo.effective_batch_size=16", "algo.learning_rate=1e-3",
           "algo.max_steps=6", "algo.save_every_steps=3", "algo.keep_checkpoints=9",
           "algo.adam_epsilon=1e-6"]  # fmt: skip
"""With Adam's usual epsilon a gradient of nearly nothing moves a weight as far as any other, to where its rounding points."""


LAST_OUTPUT = [""]


def shared(folder: Path, strategy: str, *more: str) -> Result:
    command = [sys.executable, "-m", "hub", *OPTIONS, "launch.nproc_per_node=2", *more, f"output_dir={folder}"]
    done = subprocess.run(
        [*command, f"launch.strategy={strategy}"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    LAST_OUTPUT[0] = done.stdout
    return Result.read(folder / "latest" / "result.json")


def alone(folder: Path, *more: str) -> Result:
    return launch(compose("launch=inline", f"output_dir={folder}", *OPTIONS, *more))


def same_path(one: Result, other: Result) -> None:
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["num_loss_tokens"] == theirs["num_loss_tokens"]
    assert one.eval_loss == pytest.approx(other.eval_loss, rel=1e-5)


def same_weights(one: Result, other: Result, file: str) -> None:
    first, second = load_file(one.model_path / file), load_file(other.model_path / file)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "file"), [("sft", "model.safetensors"), ("lora_sft", "adapter_model.safetensors")])
def test_shares_train_like_the_whole_and_checkpoints_go_from_one_to_the_other(tmp_path, algo, file):
    whole = alone(tmp_path / "whole", f"algo={algo}")
    parts = shared(tmp_path / "shared", "fsdp", f"algo={algo}")
    same_path(parts, whole)
    same_weights(parts, whole, file)
    # From shares to one process, in the middle of the run.
    checkpoint = parts.run_path / "checkpoints" / "step-00000003"
    (parts.run_path / "result.json").unlink()
    same_path(alone(tmp_path / "shared", f"algo={algo}", f"resume={checkpoint}"), whole)


OTHERS = ["sft", "osft algo.subspace=weights", "osft algo.protect_data=tiny:chats"]


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["lora_sft", *(pytest.param(algo, marks=pytest.mark.slow) for algo in OTHERS)])
def test_twenty_steps_of_four_processes_in_small_micro_batches_have_the_losses_of_one(tmp_path, algo):
    options = [
        *f"algo={algo}".split(),
        "algo.max_steps=20",
        "algo.num_epochs=9",
        "algo.save_every_steps=null",
        "data.eval_fraction=0",
    ]
    one = alone(tmp_path / "one", *options, "algo.max_tokens_per_gpu=4000")
    four = shared(tmp_path / "four", "ddp", *options, "algo.max_tokens_per_gpu=130", "launch.nproc_per_node=4")
    assert [line["num_tokens"] for line in four.metrics] == [line["num_tokens"] for line in one.metrics]
    for mine, theirs in zip(four.metrics, one.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["num_loss_tokens"] == theirs["num_loss_tokens"]


def test_from_one_process_to_shares(tmp_path):
    whole = alone(tmp_path, "algo=sft", "run_name=whole")
    before = whole.metrics
    (whole.run_path / "result.json").unlink()
    parts = shared(tmp_path, "fsdp", "algo=sft", f"resume={whole.run_path / 'checkpoints' / 'step-00000003'}")
    assert [line["step"] for line in parts.metrics] == [line["step"] for line in before]
    for mine, theirs in zip(parts.metrics, before, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.slow
def test_weights_in_bfloat16_are_rounded_in_shares_as_in_the_whole(tmp_path):
    model = f"model.path={zoo_model('ernie4_5_moe')}"  # some of its weights are kept in float32
    options = ["algo=sft", "algo.master_weights=false", "model.dtype=bfloat16", "algo.max_steps=3", "algo.max_grad_norm=null"]
    options.append(model)
    whole = shared(tmp_path / "whole", "ddp", *options)
    parts = shared(tmp_path / "parts", "fsdp", *options)
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]
    first, second = (load_file(result.model_path / "model.safetensors") for result in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the package deepspeed is not installed")
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_trains_like_one_process_and_checkpoints_go_to_it_and_back(tmp_path, strategy):
    options = ["algo=sft", "algo.max_tokens_per_gpu=200", "algo.max_grad_norm=0.5"]  # several micro-batches, clipping
    whole = alone(tmp_path / "whole", *options)
    parts = shared(tmp_path / "parts", strategy, *options)
    same_path(parts, whole)
    same_weights(parts, whole, "model.safetensors")
    for run in (parts, whole):
        (run.run_path / "result.json").unlink()
    same_path(alone(tmp_path / "parts", *options, f"resume={parts.run_path / 'checkpoints' / 'step-00000003'}"), whole)
    again = shared(tmp_path / "whole", strategy, *options, f"resume={whole.run_path / 'checkpoints' / 'step-00000003'}")
    same_path(again, whole)
    same_weights(again, whole, "model.safetensors")


WITHOUT_A_GPU = '''
from dataclasses import dataclass

from hub import Algorithm, Backend, hookimpl
from hub_sft.config import SftConfig

@dataclass(kw_only=True)
class EmulatedConfig(SftConfig):
    """As sft."""

@hookimpl
def hub_algorithms():
    return [Algorithm(name="emulated", config=EmulatedConfig, summary="sft in fp8 without a GPU")]

@hookimpl
def hub_backends():
    return [Backend(name="native", algorithm="emulated", build="emulated_recipe:build")]
'''
EMULATED_RECIPE = """
import hub.train.setup.setup
from hub_sft.recipe import build

hub.train.setup.setup.check_gpu = lambda: None
"""


@pytest.mark.slow
def test_fp8_products_are_the_same_in_shares(tmp_path, plugin_folder, monkeypatch):
    folder = plugin_folder()
    folder.add("emulated", WITHOUT_A_GPU)
    (folder.path / "emulated_recipe.py").write_text(EMULATED_RECIPE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.path), os.environ.get("PYTHONPATH", "")]))
    options = ["algo=emulated", "algo.precision=fp8", "algo.master_weights=false", "model.dtype=bfloat16", "algo.max_steps=3"]
    whole = shared(tmp_path / "whole", "ddp", *options)
    parts = shared(tmp_path / "parts", "fsdp", *options)
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]


NARROW = '''
from dataclasses import dataclass

import torch
from hub import Algorithm, Backend, hookimpl
from hub_sft.config import SftConfig

@dataclass(kw_only=True)
class NarrowConfig(SftConfig):
    """As sft."""

@hookimpl
def hub_algorithms():
    return [Algorithm(name="narrow", config=NarrowConfig, summary="memory for 200 tokens on rank 1, from its tenth pass on")]

@hookimpl
def hub_backends():
    return [Backend(name="native", algorithm="narrow", build=f"{__name__}:build")]

def build(setup):
    from hub.train.losses.causal_lm import causal_lm_loss
    from hub.train.recipe import Recipe

    passes = []

    def loss(model, batch):
        passes.append(model.training)
        if setup.session.group.rank == 1 and sum(passes) > 9 and batch.num_tokens > 200:
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    return Recipe(model=setup.load_model(torch.float32), save=lambda model, folder, weights: folder.mkdir(), loss=loss)
'''


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["null", pytest.param("2", marks=pytest.mark.slow)])
def test_where_ranks_wait_for_each_other_a_lack_of_memory_restarts_the_run_in_smaller_pieces(
    tmp_path, plugin_folder, monkeypatch, saves
):
    folder = plugin_folder()
    folder.add("narrow", NARROW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.path), os.environ.get("PYTHONPATH", "")]))
    whole = alone(tmp_path / "whole", "algo=sft", "algo.max_tokens_per_gpu=300")
    found = shared(tmp_path / "narrow", "fsdp", "algo=narrow", "algo.max_tokens_per_gpu=300", f"algo.save_every_steps={saves}")
    same_path(found, whole)
    assert "out of memory" in LAST_OUTPUT[0]
    assert "algo.max_tokens_per_gpu=150" in LAST_OUTPUT[0]
    assert ("from the beginning" if saves == "null" else "from the last checkpoint") in LAST_OUTPUT[0]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the package bitsandbytes is not installed")
def test_four_bit_weights_are_shared_out(tmp_path):
    options = ["algo=qlora_sft", "algo.max_steps=3"]
    whole = alone(tmp_path / "whole", *options)
    parts = shared(tmp_path / "parts", "fsdp", *options)
    same_path(parts, whole)
    same_weights(parts, whole, "adapter_model.safetensors")


WRONG = {
    '{"zero_optimization": {"stage": 1}}': "sets stage 1. Type launch.strategy=zero1",
    '{"gradient_clipping": 0.3}': "sets gradient_clipping, which the hub sets from algo.max_grad_norm. Take it out, or write",
    '{"fp16": {"enabled": true}}': "turns fp16 on",
    '{"zero": ': "no JSON",
    "[]": "a JSON object is needed",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_deepspeed_file_that_clashes_is_refused(tmp_path, text):
    file = tmp_path / "ds.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(WRONG[text])):
        engine_config(2, torch.bfloat16, False, str(file))


def test_a_deepspeed_file_is_laid_over_the_hubs_choices(tmp_path):
    file = tmp_path / "ds.json"
    theirs = {"train_batch_size": "auto", "bf16": {"enabled": True}, "zero_optimization": {"stage": 2, "reduce_bucket_size": 7}}
    file.write_text(json.dumps(theirs), encoding="utf-8")
    config = engine_config(2, torch.bfloat16, True, str(file))
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "torch_autocast" not in config
    assert "train_batch_size" not in config
