"""`python -m hub serve`: starts the engine, waits until it answers, hands signals on."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from hub.config.option import AUTO
from hub.errors import ConfigError, Interrupted, LaunchError
from hub.models.finished import Asked
from hub.system.signals import STOP_SIGNALS
from hub.tasks.generate.data_options import OF_PROMPTS, check_data_options
from hub.tasks.serve.engines import HOST, Served, choose, command, curl
from hub.tasks.serve.folder import make_folder, model_name
from hub.tasks.serve.verb import ServeOptions

GRACE_SECONDS = 5.0
"""Time that an engine has to end after a signal."""

_SET_DEATH_SIGNAL = 1
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


def say(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)


def serve(asked: Asked) -> None:
    """Serve a model until a signal ends it.

    Raises:
        ConfigError: an option can't be followed, or the port is taken.
        LaunchError: nothing that serves is installed, or it failed.
        ModelError: the model can't be loaded.
        Interrupted: a signal ended it.
    """
    options = asked.options
    assert isinstance(options, ServeOptions)
    check_data_options(asked, OF_PROMPTS)
    engine = choose(options.engine)
    if asked.cfg.generate.stop or asked.cfg.generate.batch_size != AUTO:
        raise ConfigError("generate.stop and generate.batch_size are not for a server. Send stop with each request")
    _check_port(options.port)
    above = Path(tempfile.mkdtemp(prefix="hub-serve-"))
    try:
        folder = above / model_name(asked)
        folder.mkdir()
        served = make_folder(asked, engine, folder, say)
        _run(engine, served)
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            with socket.socket() as other:
                other.bind((HOST, 0))
                free = other.getsockname()[1]
            raise ConfigError(f"port={port} can't be used ({error.strerror}). Type another one, e.g. port={free}") from None


def _run(engine: str, served: Served) -> None:
    words = command(engine, served)
    say(f"starting {engine}: {' '.join(words)}")
    with _signals() as received:
        child = subprocess.Popen(
            words,
            cwd=served.folder.parent,
            env=os.environ | _QUIET,
            stdout=sys.__stderr__,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        announced = False
        try:
            while child.poll() is None and not received:
                if not announced and _answers(served.port):
                    announced = True
                    say(f"{served.folder.name} is served on {HOST}:{served.port}. Ctrl-C ends it. Ask it with")
                    print(curl(served, engine), flush=True)
                time.sleep(0.1 if announced else 0.3)
        finally:
            if child.poll() is None:
                _end(child, received)
    if received:
        raise Interrupted("the server was stopped", received[0])
    if child.returncode:
        raise LaunchError(f"{engine} ended with exit code {child.returncode}. What it says is above")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Record SIGINT and SIGTERM within this context."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, receive) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: "subprocess.Popen[bytes]", received: list[int]) -> None:
    """Hand the signal on. A second one, or an engine that does not end in time: kill all its processes."""
    child.send_signal(received[0] if received else signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < deadline and len(received) < 2:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _end_with_parent() -> None:
    """Let the kernel end the engine when this process is killed. On Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code != 503  # it answers, and has no such page
    except OSError:
        return False
