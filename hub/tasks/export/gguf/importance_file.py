"""Importance matrices that llama.cpp's llama-imatrix wrote, as GGUF files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hub.errors import ConfigError, first_line

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_importance(file: Path) -> dict[str, NDArray[np.float32]]:
    """The mean square of each input channel, by tensor. Of a tensor with experts, those of all experts in a row.

    Raises:
        ConfigError: it is no such file.
    """
    import gguf

    try:
        values = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(file).tensors}
    except Exception as error:  # whatever the reader raises
        raise ConfigError(f"export.imatrix={file}: it can't be read ({first_line(error)}). Type imatrix=train") from None
    found = {}
    for name, sums in values.items():
        if not name.endswith(_SUMS):
            continue
        counts = values.get(name.removesuffix(_SUMS) + _COUNTS)
        if counts is None:
            continue
        rows, each = sums.reshape(counts.size, -1), counts.reshape(-1, 1)
        # An expert that no token reached counts all channels alike.
        found[name.removesuffix(_SUMS)] = np.where(each > 0, rows / np.maximum(each, 1), 1).astype(np.float32).reshape(-1)
    if not found:
        raise ConfigError(f"export.imatrix={file} holds no importance matrix. Type imatrix=train")
    return found
