"""A Python that has imported what workers import, and is forked for each process that tests start: `server.py SOCKET`.

A worker of a tiny model trains for a tenth of a second after importing for five. Here these imports are paid once. Everything
else is as it would be: each request becomes a process with its own arguments, environment, folder, files and signals, started
by `client.py`, which stands in for the interpreter and lives as long as the process does: what is done to one is done to the
other. The server ends, and kills what it started, when its standard input is closed.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IMPORTED = ("hub.cli.main", "hub.launch.sweep", "hub.train.loop", "hub.tasks.verify.verify", "hub_sft.recipe",
            "hub_lora_sft.recipe", "hub_osft.recipe", "hub.data.streaming.workers", "transformers.models.llama.modeling_llama",
            "torch.distributed.elastic.agent.server.local_elastic_agent", "torch.distributed.fsdp")  # fmt: skip
"""Modules whose order of import no test checks. Those that are run are not among them: runpy loads them itself."""

NO_THREADS = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "BLIS", "RAYON")},
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow, which pandas imports where scikit-learn does
    "TORCH_WARM_POOL": "0",  # the compiler of torch where Triton is
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables that keep libraries from starting threads when imported: a forked process would wait for them forever."""


def receive(client: socket.socket) -> dict[str, Any] | None:
    """A request: what is to be run, and the three standard files. None: the client was killed before it had said that."""
    header, files, *_ = socket.recv_fds(client, 8, 3)
    size, text = int.from_bytes(header, "big"), b""
    while len(text) < size and (piece := client.recv(size - len(text))):
        text += piece
    if len(files) == 3 and size == len(text):
        return json.loads(text) | {"files": files}
    for file in files:
        os.close(file)
    return None


def become(request: dict[str, Any], base_path: list[str]) -> None:
    """Turn this forked process into what was asked for, and run it to its end."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through="PYTHONUNBUFFERED" in os.environ)  # type: ignore[union-attr]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.executable = request["executable"]
    arguments = request["arguments"]
    is_module = arguments[0] == "-m"
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = [] if "PYTHONSAFEPATH" in os.environ else [os.getcwd() if is_module else os.path.dirname(arguments[0])]
    sys.path[:] = [*first, *named, *base_path]
    importlib.invalidate_caches()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    if is_module:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns twice: in a forked process with its request, in the server, with None, when it ends."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    ended, ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a byte for each process that ends
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(ends, warn_on_full_buffer=False)
    selector.register(ended, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}  # a process -> its client
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                for child in running:
                    os.kill(child, signal.SIGKILL)
                return None
            if key.fileobj is listener:
                client, _ = listener.accept()
                request = receive(client)
                if request is None:
                    client.close()
                    continue
                child = os.fork()
                if child == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for file in (listener, client, selector, *running.values()):
                        file.close()
                    os.close(ended)
                    os.close(ends)
                    return request
                for file in request["files"]:
                    os.close(file)
                client.sendall(child.to_bytes(8, "big"))
                running[child] = client
                selector.register(client, selectors.EVENT_READ, child)
            elif key.fileobj == ended:
                with suppress(BlockingIOError):
                    os.read(ended, 4096)
                for child, code in finished(running):
                    client = running.pop(child)
                    with suppress(KeyError):
                        selector.unregister(client)
                    with suppress(OSError):
                        client.sendall((code + 256).to_bytes(8, "big"))
                    client.close()
            elif key.data in running:  # the client is gone
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)


def finished(running: dict[int, socket.socket]) -> list[tuple[int, int]]:
    """Processes that have ended, each with its exit code. `os.pidfd_open` would do, but gVisor does not have it."""
    found = []
    for child in running:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            found.append((child, os.waitstatus_to_exitcode(status)))
    return found


def imported() -> None:
    """Import what most processes would import. It ends this process, with their names, if there are threads then."""
    os.environ.update(NO_THREADS)
    num_threads, by = 1, []
    for name in IMPORTED:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)
        if (now := len(os.listdir("/proc/self/task"))) > num_threads:
            num_threads = now
            by.append(name)
    from hub.plugins.registry import registry

    assert not registry.cache_info().currsize, "each process has plugins of its own"
    threads = [file.read_text().strip() for file in sorted(Path("/proc/self/task").glob("*/comm"))]
    if len(threads) > 1:
        names = [thread.name for thread in threading.enumerate()]
        sys.exit(f"{__file__}: no forks, threads would not be in them: {threads}, those of Python: {names}, from {by}")


def main(address: str) -> None:
    own = {os.path.dirname(os.path.abspath(__file__)), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    base_path = [path for path in sys.path if path not in own]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        imported()
        gc.freeze()  # else each process that ends would go through all that was imported, and so copy it
        request = serve(listener)
    if request is not None:
        become(request, base_path)


if __name__ == "__main__":
    main(sys.argv[1])
