"""The verb `serve`: its options. Nothing here imports torch."""

from dataclasses import dataclass

from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import AUTO, option


@dataclass(kw_only=True)
class ServeOptions(FinishedOptions):
    """Options of `serve` besides those of the sections `generate`, `model` and `data`."""

    port: int = option(8000, ge=1, le=65535)
    """Port on this machine (127.0.0.1). No other machine can reach it."""

    engine: str = option(AUTO, choices=(AUTO, "vllm", "transformers"))
    """Program that serves. auto: vLLM if it is installed, else `transformers serve`."""

    memory: float | None = option(None, gt=0, le=1)
    """Share of the GPU's memory for vLLM. null: vLLM's own, or less if less is free. Without a GPU: half of the free memory."""

    arguments: str = ""
    """More words for the program's command line, e.g. --max-model-len 8192."""

    name: str | None = None
    """Name of the model in requests. null: the name of the run or of the folder."""


VERB = FinishedVerb(
    name="serve",
    summary="Serve a finished model on this machine with an OpenAI-compatible API, by vLLM or transformers.",
    options=ServeOptions,
    function="hub.tasks.serve.serve:serve",
    sections=("model", "data", "generate"),
    has_result=False,
    examples=(
        ("the newest run", "python -m hub serve run=latest"),
        ("another port, less chance", "python -m hub serve run=latest port=8080 generate=factual"),
        ("the larger model on two GPUs", "python -m hub serve run=latest arguments='--tensor-parallel-size 2'"),
        ("by transformers although vLLM is installed", "python -m hub serve run=latest engine=transformers"),
    ),
    notes="The options of generate. are what a request gets that sets none. Ctrl-C ends the server.",
)
