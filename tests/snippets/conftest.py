"""Prints how many snippets of the pages were run."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = {"run": 0, "left out": 0}
    for report in terminalreporter.stats.get("passed", []):
        for name, number in report.user_properties:
            counts[name] = counts.get(name, 0) + number
    terminalreporter.write_line(f"snippets of the pages: {counts['run']} run, {counts['left out']} left out with a reason")
