"""Adapters that leave alone what is protected: their answers to it, resume, what a run leaves for the next. Tiny models."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_lora_sft import protected
from hub_lora_sft.free_inputs import FreeInputs, Input
from hub_lora_sft.protected import most_used, num_protected
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

from hub import HubError, Interrupted, Result, compose
from hub.launch.launcher import launch
from hub.protection.pull import Pull, low_rank_plus_diagonal
from hub.testing import tiny_model_path

pytestmark = pytest.mark.usefixtures("warm_python")

OPTIONS = ["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", "model.dtype=float32", "algo.max_steps=4",
           "algo.learning_rate=1e-2", "algo.weight_decay=0.1"]  # fmt: skip
CHAT = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four five six"}]


def run(folder: Path, *words: str) -> Result:
    return launch(compose(*OPTIONS, f"output_dir={folder}", *words))


def adapter(result: Result) -> dict[str, torch.Tensor]:
    return load_file(result.model_path / "adapter_model.safetensors")


def plain(dtype: torch.dtype, **more: object) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=dtype, **more)


def tokens() -> torch.Tensor:
    """What is protected, (1, n)."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path("llama"))
    return tokenizer.apply_chat_template(CHAT, return_dict=True, return_tensors="pt")["input_ids"]


@pytest.fixture
def few_words(tmp_path) -> Path:
    """Protected rows of few tokens: all directions that they use are among the protected ones."""
    file = tmp_path / "protect.jsonl"
    file.write_text("".join(json.dumps({"messages": CHAT}) + "\n" for _ in range(4)))
    return file


def inputs_of(model: LlamaForCausalLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each linear layer of a model reads, (tokens, in)."""
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given[0].flatten(0, -2)}))
    model(input_ids=ids)
    return found


def movement(result: Result, before: torch.Tensor, read: dict[str, torch.Tensor]) -> tuple[float, float]:
    """How far what is protected has moved: the largest of the layers' outputs, relative to the change; and the logits."""
    tensors, shares = {key: tensor.double() for key, tensor in adapter(result).items()}, []
    for key, a in tensors.items():
        if "lora_A" in key:
            change = 2 * tensors[key.replace("lora_A", "lora_B")] @ a  # alpha / r = 2
            x = read[key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")]
            shares.append(float((change @ x.mT).norm() / (change.norm() * x.norm())))
    assert len(shares) == 14
    model = PeftModel.from_pretrained(plain(torch.float64), result.model_path)
    unmerged = model(tokens()).logits
    torch.testing.assert_close(model.merge_and_unload()(tokens()).logits, unmerged, rtol=0, atol=1e-9)
    return max(shares), float((unmerged - before).norm() / before.norm())


def test_what_is_protected_is_answered_as_before_whatever_is_learned(tmp_path, few_words):
    result = run(tmp_path, f"algo.protect={few_words}", "algo.max_steps=3")
    assert result.eval_loss < result.eval_loss_before - 0.1
    with torch.no_grad():
        base = plain(torch.float64)
        before, read = base(tokens()).logits, inputs_of(base, tokens())
        assert max(movement(result, before, read)) < 1e-5


@pytest.mark.slow
def test_a_strength_holds_what_is_protected_near_without_a_cut(tmp_path, few_words):
    what = {"free": [], "pulled": [f"algo.protect={few_words}", "algo.protect_strength=1000"]}
    results = {name: run(tmp_path / name, *words) for name, words in what.items()}
    with torch.no_grad():
        base = plain(torch.float64)
        before, read = base(tokens()).logits, inputs_of(base, tokens())
        moved = {name: movement(result, before, read)[1] for name, result in results.items()}
    assert results["pulled"].eval_loss < results["pulled"].eval_loss_before - 0.2
    assert moved["pulled"] < 0.02 * moved["free"]


def test_a_pull_is_the_proximal_step_on_the_change_at_the_rate_at_which_adapters_move_it():
    torch.manual_seed(0)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(12, 20)), LoraConfig(target_modules=["0"], r=4, lora_alpha=12))
    layer = model.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    inputs = torch.randn(30, 12)
    penalty = (inputs.mT @ inputs).double()
    top, energy, rest = low_rank_plus_diagonal(penalty.float(), 12)
    held = FreeInputs([Input({"0": layer}, None, {"0": Pull(top, energy, rest)})])
    change = (3 * b @ a).double()
    moved = 3 * 0.1 * (a.norm() / 12**0.5 + b.norm() / 20**0.5).double()
    expected = torch.linalg.solve(torch.eye(12, dtype=torch.float64) + moved * penalty, change.mT).mT
    held.follow(torch.optim.SGD([a, b], lr=0.1))
    torch.testing.assert_close((3 * b @ a).double(), expected, rtol=1e-3, atol=1e-4)
    cut = top[:, -5:].contiguous()
    held.inputs[0] = Input({"0": layer}, cut)
    torch.nn.init.normal_(a)
    lengths, a.grad = a.norm(dim=1), torch.randn_like(a)
    outside = a.grad - a.grad @ cut @ cut.mT
    held.begin()
    torch.testing.assert_close(a.norm(dim=1), lengths)
    held.project_gradients()
    torch.testing.assert_close(a.grad, outside, rtol=0, atol=1e-5)
    with torch.no_grad():
        a += 1  # as Adam would lead it back
    held.follow(torch.optim.SGD([a, b], lr=0.1))
    assert float((a @ cut).norm()) < 1e-6 * float(a.norm())


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit_in_the_directions_that_it_began_with(tmp_path, monkeypatch):
    from hub.train import loop

    more = ["algo.protect=self", "algo.save_every_steps=2", "algo.unfreeze_rank_ratio=0.25", "algo.protect_strength=5"]
    whole = run(tmp_path / "whole", *more)
    assert not (whole.run_path / protected.FILE).exists()
    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(protected, "GROUP_BYTES", 1)  # one input at a time gives the same directions
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == 3 else None)
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped", *more)
    stopped = Result.read(tmp_path / "stopped" / "latest" / "result.json")
    file = stopped.run_path / protected.FILE
    began = load_file(file)
    with monkeypatch.context() as patch:
        patch.setattr(protected, "most_used", None)
        resumed = run(tmp_path / "stopped", *more, "resume=latest")
    first, second = adapter(whole), adapter(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not file.exists()
    plans = [json.loads((one.run_path / "plan.json").read_text()) for one in (whole, resumed)]
    assert plans[0]["directions_free_of"] == plans[1]["directions_free_of"]
    assert set(plans[0]["directions_free_of"].values()) == {0.25}

    # A completed run keeps its samples, and so continues with the same directions.
    longer = run(tmp_path / "stopped", *more, "resume=latest", "algo.max_steps=5", "resume_with_changes=true")
    for name, a in adapter(longer).items():
        cut = began.get(f"cut {name.removeprefix('base_model.model.').removesuffix('.lora_A.weight')}")
        assert cut is None or float((a @ cut).norm()) < 1e-5 * float(a.norm())
    assert longer.num_steps == 5

    # The next run begins with the merged model, and protects what this one learned, too.
    merged = whole.run_path / "exports" / "merged"
    shutil.copytree(tiny_model_path("llama"), merged)
    monkeypatch.undo()
    second_run = run(tmp_path / "second", "algo.protect=self", f"model.path={merged}", "algo.max_steps=1")
    plan = json.loads((second_run.run_path / "plan.json").read_text())
    assert plan["protected"] == {**plans[0]["protected"], f"learned in {whole.run_path.name}": 115}
    with pytest.raises(HubError, match=r"can't be trained further with it\. Merge it first: python -m hub export model\.path="):
        run(tmp_path, "algo.protect=self", f"model.path={whole.run_path}")


@pytest.mark.slow
def test_adapters_on_a_base_in_4_bits_are_protected_from_its_own_inputs(tmp_path, few_words):
    pytest.importorskip("bitsandbytes")
    held = [f"algo.protect={few_words}", "algo.protect_strength=10", "algo.unfreeze_rank_ratio=0.5"]
    result = run(tmp_path, "algo=qlora_sft", *held)
    assert result.eval_loss < result.eval_loss_before
    directions = {name: tensor for name, tensor in adapter(result).items() if "lora_A" in name}
    assert {int(torch.linalg.matrix_rank(a)) for a in directions.values()} == {16}
    with torch.no_grad():
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        base = plain(torch.float32, quantization_config=how)
        before = base(tokens()).logits
        after = PeftModel.from_pretrained(base, result.model_path)(tokens()).logits
    assert float((after - before).norm() / before.norm()) < 0.02  # products in 4 bits differ by the size of a batch


@pytest.mark.slow
def test_a_strength_measures_a_base_in_8_bits_and_leaves_it_as_it_is(tmp_path):
    pytest.importorskip("bitsandbytes")
    held = ["algo.load_in_8bit=true", "algo.protect=self", "algo.protect_strength=5"]
    result = run(tmp_path, *held, "model.dtype=bfloat16", "algo.max_steps=2")
    assert result.eval_loss < result.eval_loss_before
    sizes = []
    for how in ({}, {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}):
        model = plain(torch.float32, **how)
        sizes.append(protected._size(model.get_submodule("model.layers.0.mlp.up_proj")))
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-2)


@pytest.mark.slow
def test_what_else_trains_in_float32_does_not_hinder_the_passes_before_training(tmp_path):
    held = ["algo.protect=self", "algo.protect_strength=5", "algo.unfreeze_rank_ratio=0.5"]
    result = run(tmp_path, *held, "model.path=tiny:gpt2", "model.dtype=bfloat16", "algo.train_embeddings=true")
    assert result.eval_loss < result.eval_loss_before


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_and_leave_alone_the_same(tmp_path, few_words, strategy):
    held = [f"algo.protect={few_words}", "algo.protect_strength=10", "algo.unfreeze_rank_ratio=0.5"]
    words = [word for word in OPTIONS if word != "launch=inline"] + held
    line = [sys.executable, "-m", "hub", *words, "launch.nproc_per_node=2", f"launch.strategy={strategy}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*line, f"output_dir={tmp_path / 'two'}"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two, one = Result.read(tmp_path / "two" / "latest" / "result.json"), run(tmp_path / "one", *held)
    assert [line["loss"] for line in two.metrics] == pytest.approx([line["loss"] for line in one.metrics], rel=1e-4)
    with torch.no_grad():
        base = plain(torch.float64)
        before, read = base(tokens()).logits, inputs_of(base, tokens())
        assert max(movement(two, before, read)) < 1e-5


def test_the_directions_are_those_of_most_energy_whichever_way_they_are_found(monkeypatch):
    inputs = torch.randn(12, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = (inputs.mT @ inputs).float()
    for largest in (4096, 16):
        monkeypatch.setattr(protected, "LARGEST_DECOMPOSED", largest)
        columns = most_used(covariance, 16).double()
        assert float((inputs - inputs @ columns @ columns.mT).norm() / inputs.norm()) < 1e-5
        torch.testing.assert_close(columns.mT @ columns, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-5)
    assert [num_protected(size, None) for size in (1, 64, 576, 4096)] == [0, 32, 288, 1024]
    assert [num_protected(size, 0.25) for size in (1, 64, 4096)] == [0, 48, 3072]
