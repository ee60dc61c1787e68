"""ggml's own quantization by ctypes: `ggml_quantize_chunk` of the package libggml-python, or of a build of llama.cpp."""

import ctypes
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hub.errors import ModelError
from hub.tasks.export.gguf.kinds import BLOCKS, TensorType

_PATTERNS = {"darwin": "libggml-base*.dylib", "win32": "ggml-base*.dll"}


def ggml_library() -> Path:
    """The file of the library: of the package libggml-python, else of a build in `$LLAMA_CPP_DIR`.

    Raises:
        ModelError: there is none.
    """
    pattern = _PATTERNS.get(sys.platform, "libggml-base.so*")
    spec = find_spec("libggml")
    folders = [Path(spec.origin).parent / name for name in ("lib64", "lib", "bin")] if spec and spec.origin else []
    if build := os.environ.get("LLAMA_CPP_DIR"):
        folders += [Path(build) / "build" / "bin", Path(build) / "build" / "ggml" / "src", Path(build)]
    for folder in folders:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ModelError('Quantizing needs the package libggml-python. Type: pip install "finetune-hub[gguf]"')


@cache
def _library() -> ctypes.CDLL:
    file = ggml_library()
    try:
        library = ctypes.CDLL(str(file))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
    except (OSError, AttributeError) as error:
        raise ModelError(
            f"{file} can't be used for quantizing ({error}). Type: pip install --force-reinstall libggml-python"
        ) from None
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return library


def quantize_rows(
    rows: NDArray[np.float32], to: TensorType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8] | None:
    """Quantize rows of weights. Other threads run meanwhile.

    Args:
        rows: 2-D, contiguous.
        to: the type to store them in. A row must be a whole number of its blocks.
        importance: one positive number per input channel: the mean of its square over the data.

    Returns:
        The stored bytes. None if a weight is not finite in this type.

    Raises:
        ModelError: ggml is not installed, or the type needs an importance matrix and there is none.
    """
    library = _library()
    weights, size = BLOCKS[to]
    num_rows, row = rows.shape
    if importance is None and library.ggml_quantize_requires_imatrix(int(to)):
        raise ModelError(f"{to.name.lower()} needs an importance matrix. Add imatrix=train")
    stored = np.empty(num_rows * (row // weights * size), np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    library.ggml_quantize_chunk(int(to), rows.ctypes.data, stored.ctypes.data, 0, num_rows, row, pointer)
    return stored if library.ggml_validate_row_data(int(to), stored.ctypes.data, stored.size) else None
