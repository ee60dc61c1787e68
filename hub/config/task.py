"""The tasks of a worker: what it does with the recipe that a backend builds. The one place that names them.

A task is a folder in hub/tasks/, an entry here and with that a verb of the command line. Rules between options ask what a task
needs (`takes_steps`, `compares_gradients`), never which task it is.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    name: str
    """`task=NAME`, and the verb `python -m hub NAME`."""

    summary: str
    """What it does, in one line of the help."""

    function: str
    """`"module:function"`, called in each worker as `function(setup, recipe) -> Outcome`."""

    status: str
    """`status` in result.json when it ends well; a participle, for messages: "can't be verified"."""

    takes_steps: bool = False
    """It takes optimizer steps: the length of the run must be known, and the run can be resumed."""

    compares_gradients: bool = False
    """It compares gradients: in float32 unless asked otherwise, and options that round more or hide gradients are refused."""


TASKS = {
    task.name: task
    for task in (
        Task(
            name="train",
            summary="Train a model. The default verb.",
            function="hub.tasks.train.train:train",
            status="completed",
            takes_steps=True,
        ),
        Task(
            name="verify",
            summary="Verify on your own model, data and processes that the layout does not change the result.",
            function="hub.tasks.verify.verify:verify",
            status="verified",
            compares_gradients=True,
        ),
    )
}
