"""Signals while a run trains in the user's own process."""

import signal

import pytest

from hub.errors import Interrupted
from hub.system.signals import StopRequest


def test_a_second_signal_ends_a_run_in_this_process_and_not_the_process():
    request, before = StopRequest(), signal.getsignal(signal.SIGINT)
    request.signal_number = signal.SIGTERM  # of an earlier run
    request.in_loop = True
    with request.handled_here():
        assert request.signal_number is None
        signal.raise_signal(signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        with pytest.raises(Interrupted, match=r"^stopped by a second signal \(SIGTERM\)"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
