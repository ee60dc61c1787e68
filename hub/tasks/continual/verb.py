"""The verb `continual`: its options, and what it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import option

METHODS = ("sft", "replay", "lora_sft", "osft")


@dataclass(kw_only=True)
class ContinualOptions(FinishedOptions):
    """Options of `continual` that are its own."""

    tasks: str | None = None
    """Folder with NAME_train.jsonl and NAME_test.jsonl for each task, with rows of `messages`. They are learned in the order of
    their names."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """What is compared: names of algorithms, or replay, which is sft with rows of earlier tasks mixed in. Each may have options
    of its algorithm, separated by semicolons, in quotes: 'osft:learning_rate=3e-4;protect_strength=100'."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds. Each method goes through the tasks once for each."""

    text: str | None = None
    """File with documents (`text`) on which no method trains. The rise of the loss on it is measured. null: it is not."""

    rows: int = option(1500, ge=1)
    """Most training rows of each task."""

    test_rows: int = option(200, ge=1)
    """Most test rows of each task, and most documents of `text`."""

    replayed: int = option(100, ge=0)
    """Rows of each earlier task that `replay` mixes in, in place of as many tokens of the new task."""

    shuffle: bool = False
    """Whether each seed has the tasks in another order."""

    jobs: int = option(1, ge=1)
    """Runs at the same time, each in a process, spread over the GPUs."""

    time_limit: float | None = option(None, gt=0)
    """Seconds after which no run is begun. The same command again does what is left."""

    out: str = "runs/continual"
    """Folder for the results. What is in it already is not done again."""

    def problems(self) -> Iterator[str]:
        if self.run is not None:
            yield f"run={self.run}: continual begins with a model. Type model.path={self.run}"
        if self.tasks is None:
            yield "hub continual: no tasks are named. Type tasks=FOLDER, with NAME_train.jsonl and NAME_test.jsonl for each"
        chosen: dict[str, Sequence[object]] = {"methods": self.methods, "seeds": self.seeds}
        for name, values in chosen.items():
            if not values:
                yield f"{name}=[] leaves nothing to do. Type at least one"
            if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
                yield f"{name} has {twice[0]} more than once, and both would be one run. Type it once"


VERB = FinishedVerb(
    name="continual",
    summary="Train through tasks one after another, by several algorithms, and measure what each learns and forgets.",
    options=ContinualOptions,
    function="hub.tasks.continual.continual:continual",
    sections=("model",),
    needs_model=False,
    examples=(
        ("four methods, three seeds", "python -m hub continual model=smollm2_135m tasks=TASKS text=documents.jsonl"),
        (
            "with options of a method",
            """python -m hub continual model=tiny tasks=TASKS "methods=[osft,'osft:num_epochs=1']\"""",
        ),
        ("eight processes on the GPUs of this machine", "python -m hub continual model=llama3_2_1b tasks=TASKS jobs=8"),
    ),
    notes="Writes table.md, report.html with the curves, and a folder for each run. What is interrupted goes on where it was. "
    "The exit code is 1 if a run failed.",
)
