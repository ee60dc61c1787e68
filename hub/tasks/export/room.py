"""The room on a disk that an export needs, asked before minutes are spent on it. Only sizes of files are read."""

from collections.abc import Collection
from pathlib import Path

from hub.config.export import ExportConfig
from hub.config.option import AUTO
from hub.system.space import check_space

_BITS = {"float32": 4, "float16": 2, "bfloat16": 2}


def check_room(wanted: ExportConfig, exporters: Collection[str], base: Path, out: Path) -> None:
    """Check that the disk has room for what is on it at once: the merged model, and the GGUF file that is made from it.

    Files of fewer bits come when the merged model is gone, and need less. Where the size is not known, the smallest is taken.

    Args:
        wanted: what is asked for.
        exporters: names of all that run.
        base: folder with the weights of the model, or of its base.
        out: where exports are written.

    Raises:
        ConfigError: there is too little.
    """
    stored = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    if wanted.dtype != AUTO:
        stored = stored // 4 * _BITS[wanted.dtype]  # each weight takes 4 bytes at most
    if "gguf" in exporters:
        check_space(out, "the merged model and the GGUF file that is made from it, which quant= is made from,", 2 * stored)
    elif {"merged", "compressed"} & set(exporters):
        check_space(out, "the merged model", stored)
