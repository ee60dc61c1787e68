"""Whole runs in a worker, with a stand-in for Unsloth made of plain transformers.

tests/gpu/test_unsloth.py has the real one.
"""

import json
import os
import subprocess
import sys

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

STAND_IN = """
import json, os, sys

EARLY = sorted({"transformers", "trl", "peft", "accelerate", "datasets"} & set(sys.modules))
PLACE = {name: os.environ.get(name) for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION")}
print("a banner")

import peft
import transformers


class FastLanguageModel:
    @staticmethod
    def from_pretrained(name, *, tokenizer_name, dtype, device_map, **options):
        print("a banner")
        tokens = transformers.AutoTokenizer.from_pretrained(tokenizer_name)
        config = transformers.AutoConfig.from_pretrained(name)
        assert tokens.chat_template is None
        assert tokens.pad_token_id not in (None, config.pad_token_id, config.eos_token_id)
        with open(os.environ["RECORD"], "w") as file:
            json.dump({"early": EARLY, "options": options, **PLACE}, file)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device_map)
        if os.environ.get("FAULT") == "random":
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        if os.environ.get("FAULT") == "mean":
            model.loss_function = lambda logits, labels, vocab_size, **others: logits.float().mean()
        return model, tokens

    @staticmethod
    def get_peft_model(model, *, random_state, use_gradient_checkpointing, target_modules, **options):
        transformers.set_seed(random_state)
        if os.environ.get("FAULT") == "targets":
            target_modules = target_modules[1:]
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=target_modules, **options)
        config.auto_mapping = {"base_model_class": "Patched", "parent_library": "unsloth_compiled_module"}
        return peft.get_peft_model(model, config)
"""


@pytest.fixture
def train(tmp_path):
    """Runs the command line with a stand-in for Unsloth, from a folder where nothing else may appear."""
    packages = tmp_path / "packages"
    for name, source in (("unsloth", STAND_IN), ("unsloth_zoo", "")):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(source)
        (packages / f"{name}-2026.10.9.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 2026.10.9\n"
        (packages / f"{name}-2026.10.9.dist-info" / "METADATA").write_text(text)
    here = tmp_path / "here"
    here.mkdir()

    def run(*options: str, **env: str):
        path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
        words = ["algo=lora_sft", "model=tiny", "data=tiny", "model.dtype=bfloat16", "algo.max_steps=6"]
        done = subprocess.run(
            [sys.executable, "-m", "hub", *words, "algo.learning_rate=1e-2", "launch.nproc_per_node=1", *options],
            env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0", "RECORD": str(tmp_path / "record.json"), **env},
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
        assert [file.name for file in here.iterdir()] == ["runs"]
        return done

    return run


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_hubs_loop_trains_what_unsloth_loads(train, tmp_path):
    done = train("algo.backend=unsloth", "run_name=theirs", "algo.target_modules=attention")
    assert done.returncode == 0, done.stderr
    assert "a banner" not in done.stdout
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["early"] == []
    assert record["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert "unsloth/2026.10.9-transformers" in record["UNSLOTH_COMPILE_LOCATION"]
    assert record["options"]["use_gradient_checkpointing"] == "unsloth"
    assert (record["options"]["load_in_4bit"], record["options"]["max_seq_length"]) == (False, 512)

    assert train("algo.backend=native", "run_name=ours", "algo.target_modules=attention").returncode == 0
    theirs, ours = (tmp_path / "here" / "runs" / name for name in ("theirs", "ours"))
    assert losses(theirs) == pytest.approx(losses(ours), rel=2e-3)
    assert losses(theirs)[-1] < losses(theirs)[0] - 0.3
    plan = json.loads((theirs / "plan.json").read_text())
    assert (plan["backend"], plan["packed"], plan["layers_recomputed"], plan["num_adapters"]) == ("unsloth", True, 2, 8)
    assert plan["unsloth_loss"].startswith("same as the plain sum")
    config = json.loads((theirs / "model" / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny:llama", None)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plan["base_model_path"]), theirs / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "fault", "line"),
    [
        pytest.param([], "mean", "hub: Unsloth's loss of this model is not the sum over its tokens", marks=pytest.mark.slow),
        ([], "random", "hub: model.path=tiny:llama: Unsloth: 16 of 21 tensors of the loaded model are not those of"),
        pytest.param([], "targets", "hub: algo.target_modules: Unsloth adapts 12 layers instead of 14", marks=pytest.mark.slow),
        (["model.path=tiny:mixtral"], "", "hub: model.path=tiny:mixtral: Unsloth adds adapters to the experts"),
    ],
)
def test_what_would_not_be_the_same_run_ends_it_before_training(train, options, fault, line):
    done = train("algo.backend=unsloth", *options, FAULT=fault)
    assert done.returncode == 2
    (said,) = [words for words in done.stderr.splitlines() if words.startswith("hub: ")]
    assert said.startswith(line)
    assert said.endswith("Type algo.backend=native")
