"""The GPUs of this machine, without importing torch."""

import os
import shutil
import subprocess
from ctypes import CDLL
from functools import cache


def num_visible_gpus() -> int:
    """Number of GPUs that a worker would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() and gpu.strip() != "-1"])
    program = shutil.which("nvidia-smi")
    return 0 if program is None else _num_listed(program)


@cache
def _num_listed(program: str) -> int:
    """Number of GPUs that nvidia-smi lists, asked once: on a machine with several it takes up to a second."""
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def has_no_gpu() -> bool:
    """Whether a worker would certainly see no NVIDIA GPU. A machine that only lacks nvidia-smi may have one."""
    if num_visible_gpus():
        return False
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return True
    try:
        CDLL("libcuda.so.1")  # the driver's library, which torch loads too
    except OSError:
        return True
    return False
