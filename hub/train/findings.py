"""What may be wrong with a run: kinds, evidence, and the options to change. Nothing here imports torch."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from shlex import quote
from typing import Any

TITLES = {
    "rate_too_high": "the learning rate is too high",
    "overfitting": "overfitting",
    "memorized": "training rows are memorized",
    "underfitting": "underfitting",
    "rate_too_low": "nothing is learned",
    "batch_too_small": "the batch is too small",
    "chosen_collapsed": "the chosen answers lose probability",
}


@dataclass(frozen=True)
class Change:
    """An option to change in the next run."""

    option: str
    """Full name, as `algo.num_epochs`."""

    value: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.option}={self.value}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run."""

    kind: str
    """A key of `TITLES`."""

    evidence: str
    """What the curves show, in figures."""

    changes: tuple[Change, ...]
    """Options of the run's algorithm, the most useful first. Each alone may be enough."""

    advice: str = ""
    """What helps besides options, in words."""

    afterwards: tuple[str, ...] = ()
    """Verbs that can mend the finished model: scale, average."""

    @property
    def title(self) -> str:
        return TITLES[self.kind]

    def line(self, verbs: Iterable[str] = (), run: str = "") -> str:
        """The finding in one line.

        Args:
            verbs: the verbs that there are. Of `afterwards` only these are named.
            run: the run folder, for their commands.
        """
        parts = [f"{self.title}: {self.evidence}."]
        if self.changes:
            parts.append(f"Try {', or '.join(map(str, self.changes))}.")
        if self.advice:
            parts.append(f"{self.advice}.")
        if commands := [f"python -m hub {verb} {quote(f'run={run}')}" for verb in self.afterwards if verb in verbs]:
            parts.append(f"For this model: {', '.join(commands)}.")
        return " ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """The finding for plan.json and result.json."""
        values = {"title": self.title, **asdict(self)}
        return values | {"afterwards": [*self.afterwards], "changes": [asdict(change) for change in self.changes]}
