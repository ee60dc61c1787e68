"""The verb `chat`: its options. Nothing here imports torch."""

from dataclasses import dataclass

from hub.config.finished import FinishedOptions, FinishedVerb


@dataclass(kw_only=True)
class ChatOptions(FinishedOptions):
    """Options of `chat` besides those of the sections `generate`, `model` and `data`."""

    system: str | None = None
    """System message in front of the conversation."""

    compare: bool = False
    """Show the answer of the model before training, too: of an adapter's base, or of the model that a run began with."""


VERB = FinishedVerb(
    name="chat",
    summary="Talk with a finished model in the terminal.",
    options=ChatOptions,
    function="hub.tasks.chat.chat:chat",
    sections=("model", "data", "generate"),
    has_result=False,
    examples=(
        ("the newest run", "python -m hub chat run=latest"),
        ("before and after training", "python -m hub chat run=latest compare=true"),
        ("a model, with more chance", "python -m hub chat model=smollm2_135m generate=creative"),
        ("questions from a file", "python -m hub chat run=latest < questions.txt"),
    ),
    notes="/help lists the commands of the conversation. Ctrl-C ends an answer, Ctrl-D the conversation. With input from a "
    "pipe each line is a turn.",
)
