"""The exporter `ollama`: what it is called."""

from hub.plugins.offers import Exporter

EXPORTER = Exporter(
    name="ollama",
    function="hub.tasks.export.ollama.write:write",
    summary="a Modelfile beside the GGUF file, with prompts that have the token ids of training",
    brings=("gguf",),
)
