"""How a run ended that is resumed now. Its result is put aside, and comes back if nothing is trained."""

import json
from contextlib import suppress

from hub.run import Run


def has_ended(run: Run, status: str) -> bool:
    """Whether the run has ended so, by its result."""
    for file in (run.result_file, run.end_before):
        if file.is_file():
            with suppress(ValueError, TypeError, KeyError):
                return bool(json.loads(file.read_text(encoding="utf-8"))["status"] == status)
    return False


def forget_end(run: Run) -> None:
    """Put aside the result of a run that is resumed, and remove its failures."""
    for file in run.path.glob("error-rank*.json"):
        file.unlink(missing_ok=True)
    if run.result_file.is_file():
        run.result_file.replace(run.end_before)


def restore_end(run: Run) -> bool:
    """Bring back the result of a run that could not be resumed. Returns whether there is one."""
    if not run.is_main or not run.end_before.is_file():
        return False
    run.end_before.replace(run.result_file)
    return True


def forget_all(run: Run) -> None:
    """Remove what a run left that has no checkpoint."""
    forget_end(run)
    for file in (run.end_before, run.metrics_file, run.path / "plan.json"):
        file.unlink(missing_ok=True)
