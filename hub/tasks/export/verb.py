"""The verb `export`: its options, and what it runs."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub.config.finished import FinishedOptions, FinishedVerb


@dataclass(kw_only=True)
class ExportOptions(FinishedOptions):
    """Options of `export` that are its own, beside those of the section `export.`, which need no section here: `to=gguf`."""

    out: str | None = None
    """Folder for the exports, each in a folder of its own. null: `exports` in the run folder, or beside the adapter."""

    def problems(self) -> Iterator[str]:
        if self.out == "":
            yield "out= names no folder. Type out=FOLDER, or leave it out"


VERB = FinishedVerb(
    name="export",
    summary="Write a model as other programs read it, and prove that it is the one that was trained.",
    options=ExportOptions,
    function="hub.tasks.export.export:export",
    sections=("model", "data", "generate", "export"),
    own_section="export",
    flags=("--force",),
    examples=(
        ("one plain model from an adapter and its base", "python -m hub export run=latest to=merged"),
        ("for llama.cpp, in two sizes", "python -m hub export run=latest to=gguf quant=q8_0,q4_k_m"),
        ("for Ollama", "python -m hub export run=latest to=ollama"),
        ("for vLLM, with 4-bit weights", "python -m hub export run=latest to=compressed"),
        ("to the model hub, for you alone", "python -m hub export run=latest to=hub repo=ME/NAME"),
    ),
    notes="Each export is read again by the program it is for, and compared on held-out rows. docs/export.md has the bounds.",
)
