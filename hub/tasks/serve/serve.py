"""`python -m hub serve`: starts the engine, waits until it answers, hands signals on."""

import contextlib
import os
import shlex
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
from dataclasses import replace
from pathlib import Path
from types import FrameType

from hub.config.option import AUTO
from hub.errors import ConfigError, Interrupted, LaunchError
from hub.models.finished import Asked
from hub.system.signals import STOP_SIGNALS
from hub.tasks.generate.data_options import OF_PROMPTS, check_data_options
from hub.tasks.serve.engines import HOST, Served, choose, command, curl
from hub.tasks.serve.folder import make_folder, model_name
from hub.tasks.serve.output import cause, last_line
from hub.tasks.serve.processes import end, guard
from hub.tasks.serve.verb import ServeOptions

PATIENCE_SECONDS = 30.0
"""Time from one line to the next about an engine that is still starting."""

_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
_LOOPBACK = {"VLLM_HOST_IP": HOST}
"""vLLM's processes reach each other at this address."""


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
    if engine != "vllm" and options.memory is not None:
        raise ConfigError("memory is for vLLM, and engine=transformers takes what the model needs. Leave it out")
    arguments = _words(options.arguments)
    _check_port(options.port)
    above = Path(tempfile.mkdtemp(prefix="hub-serve-"))
    try:
        folder = above / model_name(asked)
        folder.mkdir()
        served = replace(make_folder(asked, engine, folder, say), arguments=arguments)
        if engine == "vllm":
            from hub.tasks.serve.memory import share

            served = replace(served, memory=options.memory if options.memory is not None else share())
        _run(engine, served)
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _words(arguments: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(arguments))
    except ValueError as error:
        raise ConfigError(f"arguments={arguments} can't be split into words ({error}). Close each quotation mark") from None


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
    handle, name = tempfile.mkstemp(prefix="hub-serve-", suffix=".log")
    log = Path(name)
    say(f"starting {engine}: {shlex.join(words)}\nWhat it says is in {log}")
    with _signals() as received, os.fdopen(handle, "wb") as output:
        child = subprocess.Popen(
            words,
            cwd=served.folder.parent,
            env=_LOOPBACK | os.environ | _QUIET,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watching = guard(child.pid, served.folder.parent)
        try:
            _watch(child, engine, served, log, received)
        finally:
            end(child, received)
            watching.kill()
            watching.communicate()
    if child.returncode and not received:
        reason = cause(log)
        raise LaunchError(f"{engine} ended with exit code {child.returncode}{': ' * bool(reason)}{reason}. Its output: {log}")
    log.unlink()
    if received:
        raise Interrupted("the server was stopped", received[0])


def _watch(child: "subprocess.Popen[bytes]", engine: str, served: Served, log: Path, received: list[int]) -> None:
    """Wait until the engine or a signal ends it. Say when it answers, and until then what it does."""
    began = time.monotonic()
    announced, told = False, began
    while child.poll() is None and not received:
        if not announced and _answers(served.port):
            announced = True
            say(f"{served.folder.name} is served on {HOST}:{served.port}. Ctrl-C ends it. Ask it with")
            print(curl(served), flush=True)
        if not announced and time.monotonic() - told > PATIENCE_SECONDS:
            told = time.monotonic()
            say(f"{engine} is starting, {told - began:.0f} s: {last_line(log)}")
        time.sleep(0.1 if announced else 0.3)


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


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code != 503  # it answers, and has no such page
    except OSError:
        return False
