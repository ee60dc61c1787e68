"""Seconds and memory of an export: a model in a known shape with random weights, and a random adapter on it.

python -m benchmarks.export --shape 8b                                             # merged
python -m benchmarks.export --shape 8b --to merged gguf --quant q4_k_m --tokenizer FOLDER
python -m benchmarks.export --shape 135m --quick

`--tokenizer` names a folder with the tokenizer of a known model: llama.cpp's converter knows no made-up ones. Each export runs
in a process of its own. Lines of it are shown with their seconds, then the memory of each process. Linux only. With
`--unchecked` nothing is compared, so the model is never loaded. Random weights need more bits than real ones: what fails its
check is kept, with the figure in its name.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass
class Process:
    """What was seen of one process. Memory in KiB."""

    begin: float
    end: float
    own: int = 0
    """Its largest memory that no file backs: the system can't take it back."""

    resident: int = 0
    """With pages of files that it reads through memory, which the system may drop."""


@dataclass
class Watched:
    """A command that has ended."""

    code: int
    seconds: float
    disk: int
    """Peak of bytes of all files in the folder."""

    processes: dict[str, Process]


def watch(command: list[str], folder: Path) -> Watched:
    """Run a command. Its lines are shown with the seconds since its begin; it and its children are looked at twice a second."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes: dict[str, Process] = {}
    disk = 0

    def look() -> None:
        nonlocal disk
        while child.poll() is None:
            now = time.perf_counter() - begin
            for pid in [child.pid, *_children(child.pid)]:
                with suppress(OSError, KeyError, IndexError):  # it may end meanwhile
                    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    script = next((Path(word).name for word in words if word.endswith(".py")), "hub export")
                    one = processes.setdefault(f"{script} ({pid})", Process(now, now))
                    one.end = now
                    one.own = max(one.own, int(status["RssAnon"].split()[0]))
                    one.resident = max(one.resident, int(status["VmHWM"].split()[0]))
            sizes = (_size(file) for file in folder.rglob("*") if not file.is_symlink())
            disk = max(disk, sum(sizes))
            time.sleep(0.5)

    looking = threading.Thread(target=look)
    looking.start()
    assert child.stdout is not None
    for line in child.stdout:
        print(f"{time.perf_counter() - begin:6.0f} s  {line.rstrip()}", flush=True)
    code = child.wait()
    looking.join()
    return Watched(code, time.perf_counter() - begin, disk, processes)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            for one in map(int, file.read_text().split()):
                found += [one, *_children(one)]
    return found


def _size(file: Path) -> int:
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0


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
    print("| to | seconds | peak of files, GiB | written, GiB |\n| --- | --- | --- | --- |", flush=True)
    words = ["num_check_rows=2", "num_check_tokens=64"] if asked.quick else []
    words = ["num_check_rows=0"] if asked.unchecked else words
    for to in asked.to:
        command = [sys.executable, "-m", "hub", "export", f"model.path={work / 'adapter'}", f"to={to}", f"out={work / to}"]
        command += ["force=true"]
        command += [f"quant={','.join(asked.quant)}"] if to == "gguf" else []
        what = f"gguf {' '.join(asked.quant)}" if to == "gguf" else to
        watched = watch([*command, *words], work)
        size = sum(file.stat().st_size for file in (work / to).rglob("*") if file.is_file()) / 2**30
        failed = f" (exit code {watched.code})" if watched.code else ""
        print(f"| {what}{failed} | {watched.seconds:.0f} | {watched.disk / 2**30:.2f} | {size:.2f} |", flush=True)
        print("\n| process | seconds | memory of its own, GiB | with files in it, GiB |\n| --- | --- | --- | --- |")
        for name, one in watched.processes.items():
            print(f"| {name} | {one.end - one.begin:.0f} | {one.own / 2**20:.2f} | {one.resident / 2**20:.2f} |", flush=True)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
