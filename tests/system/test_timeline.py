"""The clock of stages before the first step."""

import io
import json
import sys
import time
from threading import Thread

import pytest

from hub.system import timeline
from hub.system.saying import say


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield lambda seconds: now.__setitem__(0, now[0] + seconds)
    timeline.close()


def test_each_second_is_of_one_stage_also_what_a_parent_process_took_and_what_the_compiler_takes(clock, monkeypatch):
    compiled = [5.0]
    monkeypatch.setattr(timeline, "_seconds_compiling", lambda: compiled[0])
    timeline.start(started=997.0)
    parent = timeline.of_run(None)
    clock(1)
    parent.begin("checks")
    clock(2)
    for name, value in timeline.handed_over().items():
        monkeypatch.setenv(name, value)
    clock(0.5)
    worker = timeline.take_over(None)
    timeline.begin("imports")
    clock(8)
    timeline.begin("model")
    clock(0.25)
    with timeline.stage("weights"):
        clock(3)
        timeline.begin("data")  # what is called within a stage does not end it
        with timeline.stage("causality"):
            clock(1)
        clock(1)
    clock(0.25)
    timeline.begin("step")
    other = Thread(target=lambda: timeline.begin("evaluation"))
    other.start()
    other.join()
    clock(6)
    compiled[0] += 4
    found = timeline.end()
    assert found == {
        "start": 4, "checks": 2, "process": 0.5, "imports": 8, "weights": 4, "model": 0.5, "causality": 1, "compiling": 4,
        "step": 2,
    }  # fmt: skip
    assert sum(found.values()) == time.monotonic() - 997
    clock(9)
    timeline.begin("model")
    assert timeline.end() is None
    assert worker.seconds == found
    said = timeline.lines(found)
    assert said[0] == "the first step ended 26.0 s after the start:"
    assert said[4].split() == ["8.00", "s", "31%", "imports", "importing", "torch,", "transformers", "and", "the", "algorithm"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"here": "elsewhere", "since": 1, "seconds": {"checks": 99}}', "later", '{"seconds": {"checks": "x"}}'],
)
def test_a_clock_that_is_not_of_this_machine_or_is_damaged_is_not_taken_over(clock, monkeypatch, text):
    if text == "later":
        text = json.dumps({"here": timeline.here(), "since": time.monotonic() + 5, "seconds": {"checks": 99.0}})
    monkeypatch.setenv(timeline.VARIABLE, text)
    monkeypatch.setattr(timeline, "process_started", lambda: 999.0)
    taken = timeline.take_over(None)
    taken.begin("imports")
    assert taken.end() == {"process": 1, "imports": 0}


def test_the_next_run_of_a_process_has_a_clock_of_its_own(clock):
    timeline.start()
    first = timeline.of_run(None)
    first.close()
    clock(50)
    second = timeline.of_run(None)
    assert second is not first
    assert second.end() == {"start": 0}


def test_a_stage_that_lasts_is_said_once_and_one_that_is_quick_or_over_is_not(monkeypatch):
    monkeypatch.setattr(timeline, "SECONDS_UNTIL_SAID", 0.05)
    said = []
    clock = timeline.Timeline(say=said.append)
    clock.begin("checks")
    clock.begin("model")
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    with clock.stage("weights"):
        pass
    time.sleep(0.15)
    clock.begin("step")
    clock.end()
    time.sleep(0.15)
    assert said == ["preparing what trains ..."]


@pytest.mark.parametrize(
    ("term", "stage", "is_terminal"),
    [("xterm", "imports", True), ("dumb", "imports", True), ("xterm", "evaluation", True), ("xterm", "imports", False)],
)
def test_a_stage_that_lasts_turns_on_a_terminal_and_repeats_itself_elsewhere(monkeypatch, term, stage, is_terminal):
    monkeypatch.setattr(timeline, "SECONDS_UNTIL_SAID", 0.0)
    monkeypatch.setattr(timeline, "SECONDS_BETWEEN_FRAMES", 0.001)
    monkeypatch.setattr(timeline, "SECONDS_UNTIL_REPEATED", 0.02)
    monkeypatch.setenv("TERM", term)
    terminal, said = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    output = io.StringIO()
    output.isatty = lambda: is_terminal  # --quiet and a pipe have another standard output
    monkeypatch.setattr(sys, "stdout", output)
    clock = timeline.Timeline(say=lambda text: say(text, said))
    clock.begin(stage)
    time.sleep(0.1)
    say("another line", io.StringIO())
    clock._timer.join()
    clock.close()
    first, *repeated = said.getvalue().splitlines()
    assert first == f"{timeline.STAGES[stage]} ..."
    assert all(line.endswith(" ... 0 s so far") for line in repeated)
    turns = (term, stage, is_terminal) == ("xterm", "imports", True)
    lasts = term == "dumb" or not is_terminal
    assert (terminal.getvalue().startswith("\r| 0 s\r\r/ 0 s\r"), bool(repeated)) == (turns, lasts)
