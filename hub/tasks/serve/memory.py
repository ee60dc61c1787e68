"""How much of the device's memory an engine may take, if others use it too."""

import math
import os
import subprocess

import psutil
import torch

from hub.system.memory import free_host_memory

_OF_VLLM = 0.92
"""vLLM's own share, which must be free when it starts."""
_MARGIN = 0.03
"""Left to what other processes take meanwhile."""


def share() -> float | None:
    """Share of the memory for vLLM. None: its own choice, as a GPU is free, or of unknown memory.

    On the CPU, half of what is free: vLLM takes its share at once for its cache, whatever the model needs.
    """
    if not torch.cuda.is_available():
        return max(0.01, _down(free_host_memory() / psutil.virtual_memory().total / 2))
    free = _free_of_gpu()
    return None if free is None or free >= _OF_VLLM + _MARGIN else max(0.01, min(_OF_VLLM, _down(free - _MARGIN)))


def _free_of_gpu() -> float | None:
    """Free share of the first visible GPU. None: unknown. By nvidia-smi, as torch would take GPU memory to find out."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    words = ["nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits", "-i", first]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout
        free, total = (float(value) for value in said.split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return free / total


def _down(value: float) -> float:
    return math.floor(round(value * 100, 6)) / 100
