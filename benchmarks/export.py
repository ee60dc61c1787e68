"""Seconds and memory of an export: a model in a known shape with random weights, and a random adapter on it.

python -m benchmarks.export --shape 8b                                             # merged
python -m benchmarks.export --shape 8b --to merged gguf --quant q4_k_m --tokenizer FOLDER
python -m benchmarks.export --shape 135m --quick

`--tokenizer` names a folder with the tokenizer of a known model: llama.cpp's converter knows no made-up ones. Each export runs
in a process of its own; its peak memory is the largest resident set of it or of a process that it starts. With `--unchecked`
nothing is compared, so the model is never loaded.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.shapes import SHAPES, made

RANK = 16
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(folder: Path, base: Path, shape: str) -> None:
    """Write a LoRA adapter of rank 16 on all linear layers, with random numbers of a size that changes the answers."""
    values = SHAPES[shape]
    width, inner = values["hidden_size"], values["intermediate_size"]
    heads = width // values["num_attention_heads"] * values["num_key_value_heads"]
    sizes = {"q_proj": (width, width), "k_proj": (width, heads), "v_proj": (width, heads), "o_proj": (width, width)}
    sizes |= {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(values["num_hidden_layers"]):
        for name in _TARGETS:
            part = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            place = f"base_model.model.model.layers.{layer}.{part}.{name}.lora_"
            ins, outs = sizes[name]
            tensors[f"{place}A.weight"] = torch.randn(RANK, ins, generator=generator) / ins**0.5
            tensors[f"{place}B.weight"] = torch.randn(outs, RANK, generator=generator) * 0.005
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK}
    config |= {"lora_alpha": 2 * RANK, "target_modules": list(_TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def base_of(shape: str, work: Path, tokenizer: Path | None) -> Path:
    """The base, with the tokenizer of a known model if one is named."""
    folder = made(shape)
    if tokenizer is None:
        return folder
    base = work / "base"
    base.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if not file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            os.link(file, base / file.name)
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, base / file.name)
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--to", nargs="+", default=["merged"])
    parser.add_argument("--quant", nargs="+", default=["q4_k_m"])
    parser.add_argument("--tokenizer", type=Path, help="folder of a known model, for --to gguf")
    parser.add_argument("--folder", type=Path, default=Path("runs/export-benchmark"), help="for all files; it is removed")
    parser.add_argument("--quick", action="store_true", help="compare two rows and few tokens")
    parser.add_argument("--unchecked", action="store_true", help="compare nothing")
    asked = parser.parse_args()
    work = asked.folder.absolute()
    shutil.rmtree(work, ignore_errors=True)
    base = base_of(asked.shape, work, asked.tokenizer)
    make_adapter(work / "adapter", base, asked.shape)
    print("| to | seconds | peak memory of a process, GiB | written, GiB |\n| --- | --- | --- | --- |", flush=True)
    words = ["num_check_rows=2", "num_check_tokens=64"] if asked.quick else []
    words = ["num_check_rows=0"] if asked.unchecked else words
    for to in asked.to:
        command = [sys.executable, "-m", "hub", "export", f"model.path={work / 'adapter'}", f"to={to}", f"out={work / to}"]
        command += [f"quant={','.join(asked.quant)}"] if to == "gguf" else []
        begin = time.perf_counter()
        done = subprocess.run([*command, *words], env=os.environ, check=False)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        size = sum(file.stat().st_size for file in (work / to).rglob("*") if file.is_file()) / 2**30
        failed = f" (exit code {done.returncode})" if done.returncode else ""
        what = f"gguf {' '.join(asked.quant)}" if to == "gguf" else to
        print(f"| {what}{failed} | {seconds:.0f} | {peak:.2f} | {size:.2f} |", flush=True)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
