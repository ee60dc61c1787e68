"""Unsloth as a backend: the same loss as the native one, samples that do not see each other, 4 and 8 bits, resume.

Unsloth must be imported first in a process, so every run is a command of its own.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM

from hub.testing import tokenizer

pytestmark = pytest.mark.skipif(find_spec("unsloth") is None, reason="the package unsloth is not installed")

COMMON = (
    "algo=lora_sft", "data=tiny", "algo.max_steps=10", "algo.learning_rate=2e-3", "algo.warmup_ratio=0",
    "algo.save_every_steps=2", "algo.keep_checkpoints=9", "output_dir=runs",
)  # fmt: skip


FAMILIES = {"model": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "mistral"}
"""Folder -> family, as Unsloth rewrites it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with small random models, whose heads have 64 numbers: a size for which every build of every kernel is made."""
    folder = tmp_path_factory.mktemp("unsloth")
    tokens = tokenizer()
    for name, family in FAMILIES.items():
        config = AutoConfig.for_model(
            family, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, max_position_embeddings=1024, initializer_range=0.05, bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id, head_dim=64, sliding_window=None,
        )  # fmt: skip
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / name)
        tokens.save_pretrained(folder / name)
    return folder


def run(place: Path, name: str, *options: str, nproc: int = 1) -> Path:
    """Train from the command line; the run folder."""
    words = [sys.executable, "-m", "hub", *COMMON, "model.path=model", f"run_name={name}", f"launch.nproc_per_node={nproc}"]
    done = subprocess.run([*words, *options], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return place / "runs" / name


def read(folder: Path, file: str = "plan.json"):
    return json.loads((folder / file).read_text())


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def native(place) -> Path:
    return run(place, "native")


def from_step_2(place: Path, folder: Path, name: str) -> Path:
    """Copy a run as it was after step 2, so that a resumed run has the same adapters."""
    copy = place / "runs" / name
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "model")
    (copy / "result.json").unlink()
    for checkpoint in sorted((copy / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(checkpoint)
    return copy


@pytest.mark.parametrize("checkpointing", ["auto", "none"])
def test_the_losses_are_those_of_the_native_backend(place, native, checkpointing):
    name = f"same-{checkpointing}"
    copy = from_step_2(place, native, name)
    run(place, name, "algo.backend=unsloth", f"algo.gradient_checkpointing={checkpointing}", f"resume={copy}",
        "resume_with_changes=true")  # fmt: skip
    ours, theirs = losses(native), losses(copy)
    assert ours[-1] < ours[0] - 0.1
    assert theirs == pytest.approx(ours, abs=0.02)
    before = [read(folder, "result.json")["eval_loss"] for folder in (native, copy)]
    assert before[0] == pytest.approx(before[1], abs=0.02)
    plan = read(copy)
    assert (plan["backend"], plan["packed"], plan["attention"]) == ("unsloth", True, "variable-length")
    assert plan["layers_recomputed"] == (4 if checkpointing == "auto" else 0)
    assert "a token takes" in plan["max_tokens_per_gpu_because"]
    AutoPeftModelForCausalLM.from_pretrained(copy / "model")
    assert {file.name for file in place.iterdir()} == {*FAMILIES, "runs"}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_train_and_the_adapter_loads(place, bits):
    folder = run(place, f"bits-{bits}", "algo.backend=unsloth", f"algo.load_in_{bits}bit=true")
    found, base = losses(folder), losses(run(place, f"native-{bits}", f"algo.load_in_{bits}bit=true"))
    assert found[-1] < found[0] - 0.1
    assert found[0] == pytest.approx(base[0], abs=0.02)
    assert found[-1] == pytest.approx(base[-1], abs=0.2)
    AutoPeftModelForCausalLM.from_pretrained(folder / "model")


def test_a_run_goes_on_where_it_was(place):
    whole = run(place, "whole", "algo.backend=unsloth", "algo.lora_dropout=0.1")
    copy = from_step_2(place, whole, "half")
    run(place, "half", "algo.backend=unsloth", "algo.lora_dropout=0.1", f"resume={copy}")
    assert losses(copy) == pytest.approx(losses(whole), abs=0.02)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_take_the_same_steps(place, native):
    found = losses(run(place, "two", "algo.backend=unsloth", nproc=2))
    one = losses(run(place, "one", "algo.backend=unsloth"))
    assert found == pytest.approx(one, abs=0.02)


PROBE = """
import json, sys
from hub_unsloth.recipe import build  # first
import numpy as np
import torch
from hub import Run, compose
from hub.data.prepare import Sample
from hub.launch.preflight import prepare
from hub.train.batch.collate import pack, pad
from hub.train.layout.isolation import can_pack
from hub.train.setup.setup import set_up


def probe(setup, recipe):
    model, loss = recipe.model, recipe.loss
    session, dice = setup.session, np.random.default_rng(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:  # the second matrices of the adapters are zero, and the first have no gradient then
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).to(p.device)
    parts = [Sample(dice.integers(3, 512, n).astype(np.int32), dice.random(n) < 0.6, "") for n in (190, 3, 400, 71)]
    none = Sample(parts[0].input_ids, np.zeros(190, dtype=bool), "")

    def gradient(*batches):
        total = 0.0
        for batch in batches:
            with session.autocast():
                found = loss(model, batch.to(session.device))
            found.backward()
            total += found.item()
        flat = torch.cat([p.grad.flatten().double() for p in trained])
        for p in trained:
            p.grad = None
        return total, flat

    def apart(mine, theirs):
        return [abs(mine[0] - theirs[0]) / theirs[0], float((mine[1] - theirs[1]).norm() / theirs[1].norm())]

    wanted = gradient(*[pack([part]) for part in parts])
    ways = {"packed": [pack(parts)], "two rows": [pack(parts[:2]), pack(parts[2:])], "padded": [pad(parts, 0)]}
    differences = {name: apart(gradient(*batches), wanted) for name, batches in ways.items()}
    # A neighbor without loss must not matter, and a batch without loss gives a zero that has a gradient path.
    differences["beside another"] = apart(gradient(pack([none, parts[2]])), gradient(pack([parts[2]])))
    for make in (pack, lambda samples: pad(samples, 0)):
        total, flat = gradient(make([none]))
        assert total == 0 and not flat.any()
    packed, why = can_pack(model, 512, session.device, session.compute_dtype, recipe.kernels.inputs)
    print("FOUND", json.dumps({"packed": packed, "why": why, "differences": differences}))


cfg = prepare(compose(*sys.argv[1:])).config
setup = set_up(cfg, Run.create(cfg.output_dir, None), "lora_sft")
probe(setup, build(setup))
"""


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("algo.gradient_checkpointing=none",),
        ("algo.load_in_4bit=true",),
        ("algo.load_in_8bit=true",),
        ("model.path=qwen3",),
        ("model.path=qwen2", "algo.bias=all", "algo.use_dora=true"),
        ("model.path=mistral",),
    ],
    ids=" ".join,
)
def test_packed_samples_do_not_see_each_other_in_training_either(place, options):
    model = () if any(option.startswith("model.path=") for option in options) else ("model.path=model",)
    words = [*COMMON, *model, "algo.backend=unsloth", "launch.mode=inline", *options]
    done = subprocess.run([sys.executable, "-c", PROBE, *words], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["packed"], found["why"]
    for name, (loss, gradient) in found["differences"].items():
        assert loss < 5e-3, name
        # Which inputs LLM.int8() keeps in half precision depends on the rows beside them.
        assert gradient < (2e-1 if "8bit" in " ".join(options) else 5e-2), name
