"""Whether a disturbed run ended well: what it says it did is there, and going on ends where the undisturbed run ends."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.process import Ended
from hub.result import read_metrics

LOGGED = ("step", "epoch", "loss", "learning_rate", "grad_norm", "num_tokens", "num_loss_tokens", "eval_loss")
"""What two runs with equal steps have in common. The rest are times and memory."""


@dataclass(frozen=True)
class Verdict:
    """How a cell ended."""

    good: bool
    ending: str
    """In words, alike for cells that ended alike."""

    lost: int = 0
    """Steps that were done twice."""

    shown: str = ""
    """What was said, for a cell that did not end well."""

    disturbed: bool = True
    """Whether the fault happened. If not, as when the process that should get a signal has ended, the cell does not count."""


@dataclass(frozen=True)
class Reference:
    """What the undisturbed run left."""

    weights: bytes
    lines: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Path) -> "Reference":
        """Read a completed run's folder."""
        return cls(_weights(run), _lines(run))

    def differs(self, run: Path) -> str:
        """In what a completed run differs. Empty: in nothing."""
        if _weights(run) != self.weights:
            return "another model"
        lines = _lines(run)
        for line, other in zip(lines, self.lines, strict=False):
            if other["eval_loss"] is None:
                line["eval_loss"] = None  # a run that a signal stops is measured there too
        return "" if lines == self.lines else "other or missing metrics"


def _weights(run: Path) -> bytes:
    files = sorted((run / "model").glob("*.safetensors"))
    return b"".join(file.read_bytes() for file in files)


def _lines(run: Path) -> list[dict[str, Any]]:
    return [{key: line.get(key) for key in LOGGED} for line in read_metrics(run / "metrics.jsonl")]


def judge(
    ended: Ended, run: Path | None, reference: Reference, go_on: Callable[[Path | None], Ended], may_end: Sequence[int]
) -> Verdict:
    """Judge a disturbed run, and go on with it.

    Args:
        ended: how it ended.
        run: its folder. None: there is none.
        reference: what is to be there in the end.
        go_on: resumes the folder, or begins anew without one.
        may_end: exit codes beside 0 that it may have.
    """

    def bad(ending: str, other: Ended | None = None) -> Verdict:
        texts = [one.err.strip() or one.out.strip() for one in (ended, *([other] if other else []))]
        return Verdict(False, ending, shown="\n".join(text[-1500:] for text in texts))

    if ended.code is None:
        return bad("hung")
    if "Traceback" in ended.err:
        return bad("traceback")
    if ended.code == 0:
        if run is None or not (run / "result.json").is_file():
            return bad("says that it is completed, but there is no result")
        if not _is_completed(run):
            return bad("exit code 0, but result.json says otherwise")
        differs = reference.differs(run)
        return bad(f"completed with {differs}") if differs else Verdict(True, "completed")
    if ended.code not in may_end:
        return bad(f"exit code {ended.code}")
    if not ended.err.strip() and ended.code > 0 and not 128 < ended.code < 160:
        return bad("nothing is said")
    if _is_completed(run):  # its worker came to the end without the process that was killed
        assert run is not None
        differs = reference.differs(run)
        return bad(f"completed with {differs}") if differs else Verdict(True, "killed, but completed")
    reached = len(read_metrics(run / "metrics.jsonl")) if run is not None and (run / "metrics.jsonl").is_file() else 0
    kept = _newest_step(run)
    again = go_on(run)
    if again.code != 0:
        return bad(f"could not go on (exit code {again.code})", again)
    newest = run if run is not None and (run / "model").is_dir() else None
    newest = newest or (Path(again_path) if (again_path := _said_folder(again)) else None)
    if newest is None:
        return bad("went on, but there is no model", again)
    differs = reference.differs(newest)
    if differs:
        return bad(f"went on to {differs}", again)
    ending = "stopped, went on" if kept else "stopped before its first checkpoint, began again"
    return Verdict(True, ending, max(0, reached - kept))


def _is_completed(run: Path | None) -> bool:
    file = None if run is None else run / "result.json"
    return file is not None and file.is_file() and json.loads(file.read_text(encoding="utf-8"))["status"] == "completed"


def _newest_step(run: Path | None) -> int:
    folders = [] if run is None else list((run / "checkpoints").glob("step-*"))
    return max((int(folder.name.partition("-")[2]) for folder in folders if folder.name[5:].isdigit()), default=0)


def _said_folder(ended: Ended) -> str:
    """The run folder that the first line of a run names."""
    for line in ended.out.splitlines():
        if "run folder " in line:
            return line.partition("run folder ")[2].strip()
    return ""
