"""The exporter `gguf`: what it is called, and what can be wrong before anything is loaded."""

import os
from collections.abc import Callable, Iterator

from hub.config.export import NONE, TRAIN
from hub.config.schema import RunConfig
from hub.errors import HubError
from hub.plugins.offers import Exporter
from hub.tasks.export.gguf.converter import converter_script
from hub.tasks.export.gguf.kinds import find_kind
from hub.tasks.export.gguf.library import llama_library

INSTALL = 'pip install "finetune-hub[gguf]"'


def ggml_library() -> object:
    """Find the library that quantizes."""
    from hub.tasks.export.gguf import ggml  # numpy is slow to import

    return ggml.ggml_library()


def _problems(cfg: RunConfig) -> Iterator[str]:
    """A line for each kind of file that there is not, and for a tool that is missing."""
    wanted = cfg.export
    looks: list[Callable[[], object]] = [converter_script, llama_library]
    for name in wanted.quant:
        try:
            if find_kind(name, wanted.imatrix != NONE).is_quantized and ggml_library not in looks:
                looks.append(ggml_library)
        except HubError as error:
            yield f"export.{error}"
    if wanted.imatrix not in (NONE, TRAIN) and not os.path.isfile(os.path.expanduser(wanted.imatrix)):
        yield f"export.imatrix={wanted.imatrix}: there is no such file. Type imatrix=train, or a GGUF file of llama-imatrix"
    for look in looks:
        try:
            look()
        except HubError as error:
            yield f"export.to=gguf: {error}"


EXPORTER = Exporter(
    name="gguf",
    function="hub.tasks.export.gguf.write:write",
    summary="GGUF files for llama.cpp, converted by its own converter",
    needs=("gguf",),
    install=INSTALL,
    problems=_problems,
    after=("merged",),
)
