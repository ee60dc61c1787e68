"""The verb `generate`: its options. Nothing here imports torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub.config.finished import FinishedOptions, FinishedVerb


@dataclass(kw_only=True)
class GenerateOptions(FinishedOptions):
    """Options of `generate` besides those of the sections `generate`, `model` and `data`."""

    prompt: str | None = None
    """One question, in place of `data.path`. The answer is printed."""

    system: str | None = None
    """System message in front of each prompt that has none."""

    out: str | None = None
    """JSON lines file for the answers. It is added to while they are generated, and the same command continues it. null: they
    are printed."""

    overwrite: bool = False
    """Begin anew even if `out` has answers already."""

    compare: bool = False
    """Generate the answers of the model before training, too: of an adapter's base, or of the model that a run began with."""

    def problems(self) -> Iterator[str]:
        if self.prompt is not None and not self.prompt.strip():
            yield 'prompt= is empty. Type prompt="..." with a question'
        if self.out is not None and not self.out.endswith((".jsonl", ".ndjson")):
            yield f"out={self.out}: answers are written as JSON lines. Type out=NAME.jsonl"
        if self.overwrite and self.out is None:
            yield "overwrite=true is for out=FILE.jsonl. Leave it out, or name the file"


VERB = FinishedVerb(
    name="generate",
    summary="Generate the answers of a finished model to a question or a file of prompts.",
    options=GenerateOptions,
    function="hub.tasks.generate.generate:generate",
    sections=("model", "data", "generate"),
    examples=(
        ("one question", 'python -m hub generate run=latest prompt="What is a cell?"'),
        ("a file of prompts", "python -m hub generate run=latest data.path=prompts.jsonl out=answers.jsonl"),
        ("before and after training", 'python -m hub generate run=latest compare=true prompt="What is a cell?"'),
        ("always the most likely words", 'python -m hub generate model=smollm2_135m generate.temperature=0 prompt="Hi"'),
    ),
    notes="Rows may have any format of training data. The last answer of a conversation is not shown to the model; it is "
    "written beside the model's own as reference. Ctrl-C keeps what was done.",
)
