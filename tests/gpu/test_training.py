"""The main job on one GPU: both algorithms, quantized base weights, 8-bit optimizers, activation checkpointing, isolation."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hub import compose
from hub.data.samples.sample import Group, Sample
from hub.launch.launcher import launch
from hub.models.patches import patches_of
from hub.parallel.session import start_session
from hub.run import Run
from hub.testing import FAMILIES, tiny_model, tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels.head import FusedHead
from hub.train.layout.isolation import can_pack
from hub.train.layout.layout import Layout
from hub.train.losses.objective import NextToken, Objective
from hub.train.step import Criterion, accumulate_gradients, log_probabilities, weigh


def train(tmp_path, *overrides: str):
    return launch(compose("data=tiny", "launch=inline", f"output_dir={tmp_path}", "algo.max_steps=8", *overrides))


@pytest.mark.parametrize(
    "options",
    [
        ("algo=sft", "algo.learning_rate=1e-3"),
        ("algo=sft", "algo.learning_rate=1e-3", "algo.optimizer=adamw_8bit"),
        ("algo=sft", "algo.learning_rate=1e-3", "algo.optimizer=paged_adamw_8bit"),
        ("algo=sft", "algo.learning_rate=1e-3", "algo.optimizer=paged_adamw"),
        ("algo=lora_sft", "algo.learning_rate=1e-2"),
        ("algo=lora_sft", "algo.learning_rate=1e-2", "algo.load_in_8bit=true"),
        ("algo=qlora_sft", "algo.learning_rate=1e-2"),
        ("algo=qlora_sft", "algo.learning_rate=1e-2", "algo.gradient_checkpointing=all", "algo.optimizer=paged_adamw_8bit"),
        ("algo=lora_sft", "algo.learning_rate=1e-2", "algo.init=loftq"),
    ],
    ids=" ".join,
)
def test_training_learns_and_the_result_loads(tmp_path, options):
    result = train(tmp_path, "model=tiny", *options)
    assert result.status == "completed"
    assert result.eval_loss < result.eval_loss_before - 0.05
    if options[0] == "algo=sft":
        AutoModelForCausalLM.from_pretrained(result.model_path)
    else:
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(result.base_model_path), result.model_path)
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert plan["packed"]
    assert plan["dtype"] == "bfloat16"


def test_base_weights_in_cpu_memory_change_nothing(tmp_path):
    options = ["algo=osft", "model=tiny", "algo.learning_rate=1e-3", "algo.protect_data=tiny:chats", "algo.deterministic=true"]
    results = [train(tmp_path / word, *options, f"algo.offload_base={word}") for word in ("false", "true")]
    first, second = (load_file(result.model_path / "model.safetensors") for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_that_is_stored_in_4_bit_trains_by_lora(tmp_path):
    folder = tiny_model(tmp_path / "full")
    quantized = tmp_path / "quantized"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": 0}).save_pretrained(quantized)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).exists():
            (quantized / name).write_bytes((folder / name).read_bytes())
    result = train(tmp_path, "algo=lora_sft", f"model.path={quantized}", "model.quantization=bnb-4bit")
    assert result.eval_loss < result.eval_loss_before


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_samples_do_not_see_each_other(family):
    options = {"attn_implementation": "eager"} if family == "gemma2" else {}
    device = torch.device("cuda")
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model_path(family), dtype=torch.bfloat16, device_map={"": 0}, **options
    ).eval()
    packed, _ = can_pack(model, 512, device, torch.bfloat16)
    assert packed == (family != "gpt_oss")
    if not packed:
        return
    rng = np.random.default_rng(1)
    parts = [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in (190, 1, 400, 70)]
    changed = [*parts[:2], Sample((parts[2].input_ids + 5) % 512, parts[2].loss_mask, ""), parts[3]]

    def logits(samples):
        batch = pack(samples).to(device)
        with torch.no_grad():
            return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0].float()

    before, after = logits(parts), logits(changed)
    others = torch.cat([before[:191] - after[:191], before[591:] - after[591:]]).abs().max()
    assert others == 0 or (family in {"mixtral", "deepseek_v2"} and others < 0.1)


class SquaredDifference(Objective):
    """Couples the two samples of a unit by the squared difference of their mean log-probabilities."""

    roles = None

    def divisor(self, units):
        return len(units)

    def loss(self, units, values):
        return sum((first.mean() - second.mean()).square() for first, second in values)


@pytest.mark.parametrize("objective", [NextToken(), SquaredDifference()], ids=["next token", "pairs"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain head", "fused head"])
def test_gradients_on_the_gpu_are_those_of_the_cpu_for_any_layout(tmp_path, objective, fused):
    cfg = compose("algo=sft", "model=tiny", "data=tiny", "model.dtype=float32")
    session = start_session(cfg, Run(tmp_path))
    rng = np.random.default_rng(2)
    samples = [Sample(rng.integers(3, 512, n).astype(np.int32), rng.random(n) < 0.5, "") for n in rng.integers(8, 200, 24)]
    for sample in samples:
        sample.loss_mask[-1] = True
    units = (
        samples
        if isinstance(objective, NextToken)
        else [Group((a, b), "") for a, b in zip(samples[::2], samples[1::2], strict=True)]
    )
    criterion = Criterion(objective)

    def gradient(device: str, layout: Layout, checkpointed: bool = False) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32).to(device).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        here = session if device == "cuda" else on_cpu(session)
        if fused and device == "cuda":
            patches_of(model).apply(FusedHead(model.get_output_embeddings()))
        values = log_probabilities(here, model, units, layout, criterion)[0] if criterion.needs_values else None
        accumulate_gradients(here, model, units, layout, criterion, weigh(objective, units, values)[1])
        return torch.cat([p.grad.flatten().cpu().double() for p in model.parameters()])

    expected = gradient("cpu", Layout(10**6, True, 0, 0.0))
    for layout in (Layout(10**6, True, 0, 0.0), Layout(700, True, 0, 0.01), Layout(700, False, 0, 0.01)):
        for checkpointed in (False, True):
            found = gradient("cuda", layout, checkpointed)
            assert (found - expected).norm() / expected.norm() < 1e-5


def on_cpu(session):
    group = type(session.group)(0, 1, 0, torch.device("cpu"))
    return type(session)(group, session.accelerator, torch.float32)
