"""Reads the curves of a run while it trains and at its end, and says what is wrong with it. Nothing here imports torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from hub.config.schema import AlgoConfig
from hub.result import read_metrics
from hub.run import Run
from hub.train.diagnosis import diagnose
from hub.train.findings import Finding

_GROWTH = 1.2
"""The run must have grown by this factor before its curves are read again, so that reading them takes no time in all."""


def diagnose_run(run: Run, algo: Mapping[str, Any]) -> list[Finding]:
    """Read the curves in a run folder.

    Args:
        run: the folder, in any state.
        algo: the options of its algorithm by name.
    """
    plan = run.plan()
    data: dict[str, Any] = plan.get("data") or {}
    return diagnose(
        read_metrics(run.metrics_file),
        algo,
        num_steps=plan.get("num_steps"),
        batch_size=plan.get("effective_batch_size"),
        num_units=(data.get("train") or {}).get("num_units"),
        streaming=bool(data.get("streaming")),
    )


class Watch:
    """Reads the curves of a run with new evaluations, and says each finding once while it trains."""

    def __init__(self, run: Run, algo: AlgoConfig) -> None:
        self._run, self._algo = run, asdict(algo)
        self._said: set[str] = set()
        self._last = 0

    def look(self, step: int, say: Callable[[str], None]) -> None:
        """Read the curves after an evaluation, unless they were read a short while ago.

        Args:
            step: the step that was logged last.
            say: receives a line for the user.
        """
        if not self._run.is_main or step < _GROWTH * self._last:
            return
        self._last = step
        for finding in diagnose_run(self._run, self._algo):
            if finding.kind not in self._said:
                self._said.add(finding.kind)
                say(f"step {step}: {finding.line()}")


def say_diagnosis(run: Run, algo: AlgoConfig, verbs: Iterable[str]) -> list[dict[str, Any]]:
    """Say what the curves of a run show at its end, and write it into plan.json.

    Args:
        run: its folder.
        algo: the options of its algorithm.
        verbs: the verbs on finished models that there are.

    Returns:
        The findings for result.json. None on other processes than the first.
    """
    if not run.is_main:
        return []
    findings = diagnose_run(run, asdict(algo))
    for finding in findings:
        run.say(finding.line(verbs, str(run.path)))
    values = [finding.as_json() for finding in findings]
    run.write_plan(diagnosis=values)
    return values
