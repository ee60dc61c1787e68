"""A run folder may come from elsewhere: what resuming it takes from its files, and that nothing is written outside it."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from hub.config.schema import RunConfig
from hub.config.trust import machine_options, set_launch
from hub.errors import ConfigError
from hub.system.links import strange_entries

MOST_ENTRIES = 1_000_000
"""Files in a run folder, all checkpoints of all processes included."""


def check_links(folder: Path, resume: str) -> None:
    """Refuse links out of a run folder: a resumed run would write through them.

    Args:
        folder: of the run.
        resume: as typed, for the message.

    Raises:
        ConfigError: there is one, or an entry is no plain file.
    """
    for entry, problem in strange_entries(folder, MOST_ENTRIES):
        raise ConfigError(
            f"resume={resume}: {entry} in the run folder {problem}, and a resumed run writes into its folder alone. Remove it, "
            "or put the file itself there"
        )


def without_machine(before: RunConfig, typed: RunConfig, folder: Path) -> RunConfig:
    """The config of a run without what concerns the machine: that is as typed now, or at its default. A line says what is left.

    Args:
        before: from the run's folder.
        typed: of this call.
        folder: of the run.
    """
    here = dict(machine_options(typed))
    dropped = [(name, value) for name, value in machine_options(before) if name not in here]
    if dropped and os.environ.get("RANK", "0") == "0":
        options = shlex.join(f"{name}={value}" for name, value in dropped)
        print(
            f"hub: {options} of that run is not taken from its folder, since it concerns the machine. If it holds here too, "
            "type it again",
            file=sys.stderr,
        )
    return replace(
        before,
        launch=replace(before.launch, **set_launch(before.launch, typed.launch)),
        export=replace(before.export, repo=typed.export.repo),
        output_dir=str(folder.parent),
    )
