"""Commands that answer at once must not import modules that take seconds."""

import os
import subprocess
import sys

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "peft",
    "accelerate",
    "pandas",
    "pyarrow",
    "tokenizers",
    "safetensors",
)

SCRIPT = f"""
import sys
import hub
from hub.cli.main import main

HEAVY = {HEAVY!r}

def code(call):
    try:
        return call()
    except (hub.HubError, TypeError) as error:
        return type(error).__name__

COMMANDS = {{
    "": 0,
    "--help": 0,
    "plugins": 0,
    "show algo=qlora_sft model=llama3_8b": 0,
    "exp.yaml run_name=a/b": 2,
    "show exp.yaml lora_r": 0,
    "runs": 0,
    "completion bash": 0,
    "data --help": 0,
    "report --help": 0,
    "report": 2,
    "shw": 2,
    "modle=tiny": 2,
    "algo=lora_sft model=tinny": 2,
    "algo=lora_sft model=tiny data.path=missing.jsonl": 2,
    "algo=lora_sft model=tiny data.path=bad.jsonl": 2,
    "algo=lora_sft model=tiny data=tiny algo.load_in_4bit=true algo.load_in_8bit=true": 2,
    "algo=lora_sft model=tiny data=tiny algo.warmup_steps=999": 2,
    "algo=sft model=tiny data=tiny output_dir=bad.jsonl": 2,
    "algo=sft algo.precision=fp8 model=tiny data=tiny": 2,
    "plan algo=lora_sft model=tiny plan.gpu=rtx4900": 2,
    "plan algo=lora_sft model=tiny data.path=bad.jsonl": 2,
    "--multirun algo=lora_sft model=tiny data=tiny algo.lora_r=1,0": 2,
}}
for words, expected in COMMANDS.items():
    assert main(words.split()) == expected, words
    assert not (found := [name for name in HEAVY if name in sys.modules]), (words, found)
assert code(lambda: hub.sft(model="tiny", data="missing.jsonl")) == "DataError"
assert code(lambda: hub.lora_sft(model="tiny", data="tiny", lora_rank=8)) == "TypeError"
assert not (found := [name for name in HEAVY if name in sys.modules]), found
"""


def test_help_lists_and_mistakes_import_nothing_heavy(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{oops\n")
    (tmp_path / "exp.yaml").write_text("algo: lora_sft\nmodel: tiny\ndata: tiny\n")
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
