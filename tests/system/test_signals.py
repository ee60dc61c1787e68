"""Signals: a run in the user's own process, and processes that can't handle one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hub.errors import Interrupted
from hub.system.processes import Process
from hub.system.signals import ECHO_SECONDS, END_NOW, STARTED_BY, StopRequest

WAITS_IN_C = """
import ctypes, sys
from hub.errors import Interrupted
from hub.system.signals import stop_request
stop_request.last_words = lambda number: print("ended by", number, flush=True)
stop_request.install()
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
try:
    print("waits", flush=True)
    lock(mutex)
except Interrupted as error:  # the signal came before
    sys.exit(error.exit_code)
"""
OUTLIVES_ITS_PARENT = """
import time
from hub.system.signals import end_with_parent
end_with_parent(0.05)
time.sleep(60)
"""


def test_a_second_signal_ends_a_run_in_this_process_and_not_the_process():
    request, before = StopRequest(), signal.getsignal(signal.SIGINT)
    request.signal_number = signal.SIGTERM  # of an earlier run
    request.in_loop = True
    with request.handled_here():
        assert request.signal_number is None
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # an echo: a wrapper passes on what the terminal has sent already
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR1)
        assert (request.signal_number, request.save_number) == (signal.SIGINT, signal.SIGUSR1)
        request.time -= ECHO_SECONDS
        with pytest.raises(Interrupted, match=r"^stopped by a second signal \(SIGTERM\)"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_signal_of_a_training_run_is_answered_while_its_step_goes_on():
    request, answers = StopRequest(), []
    request.acknowledge, request.in_loop = lambda: answers.append("stopping"), True
    reader, writer = os.pipe()
    os.write(writer, bytes([signal.SIGUSR1, signal.SIGINT, signal.SIGTERM]))
    os.close(writer)
    request._watch(reader)
    os.close(reader)
    assert answers == ["stopping"]


@pytest.mark.parametrize("number", [signal.SIGINT, END_NOW])
def test_a_process_that_waits_in_c_ends_all_the_same_and_writes_why(number):
    with subprocess.Popen([sys.executable, "-c", WAITS_IN_C], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waits\n"
        time.sleep(0.2)  # until it waits in C
        process.send_signal(number)
        assert process.stdout.read() == f"ended by {number:d}\n".encode()
        assert process.wait(timeout=30) == 128 + number


@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_process_whose_parent_was_killed_while_it_imported_ends(is_reaped):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as parent:
        parent.kill()
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
        starter = Process(parent.pid, "")
        if is_reaped:  # and its id is that of another process by now
            parent.wait()
            starter = Process(os.getpid(), "before")
        env = os.environ | {STARTED_BY: str(starter)}
        assert subprocess.run([sys.executable, "-c", OUTLIVES_ITS_PARENT], env=env, timeout=30).returncode == -signal.SIGTERM


def test_a_second_interrupt_ends_a_stopped_command_without_a_traceback():
    script = (
        "import atexit, os, signal\nfrom hub.system.signals import end_process\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\nend_process(130)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
