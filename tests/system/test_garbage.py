"""What a run asks of Python's garbage collector."""

from contextlib import suppress
from unittest.mock import Mock, call

import pytest

from hub.system import garbage

FREEZES = [call.collect(), call.freeze(), call.unfreeze()]


@pytest.mark.parametrize(
    ("own_process", "num_frozen", "asked"),
    [
        (True, 0, FREEZES),
        (True, 1_000_000, FREEZES),
        (False, 0, FREEZES),
        (False, 1_000_000, [call.collect()]),  # what the program froze stays frozen
    ],
)
def test_the_collector_is_spared_what_is_there_and_a_program_keeps_what_it_froze(monkeypatch, own_process, num_frozen, asked):
    collector = Mock(get_freeze_count=lambda: num_frozen)
    monkeypatch.setattr(garbage, "gc", collector)
    with suppress(ZeroDivisionError), garbage.frozen(own_process):
        assert collector.mock_calls == asked[:2]
        raise ZeroDivisionError
    assert collector.mock_calls == asked
