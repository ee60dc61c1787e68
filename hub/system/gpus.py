"""The GPUs of this machine, without importing torch."""

import os
import shutil
import subprocess
from ctypes import CDLL


def num_visible_gpus() -> int:
    """Number of GPUs that a worker would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() and gpu.strip() != "-1"])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
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
