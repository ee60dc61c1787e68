"""Prints how many snippets of the pages were run."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = dict.fromkeys(("run", "checked", "left out"), 0)
    for report in terminalreporter.stats.get("passed", []):
        for name, number in report.user_properties:
            counts[name] = counts.get(name, 0) + number
    looked_at = f"{counts['checked']} lines for make and the shell looked at"
    terminalreporter.write_line(f"snippets: {counts['run']} run, {looked_at}, {counts['left out']} left out with a reason")
