"""Stand-in for the interpreter: asks `server.py` to fork a process for a command, and lives as long as that process.

Written into an executable file with the address of the server and the real interpreter, see conftest.py at the top.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

ADDRESS, PYTHON = "@address@", "@python@"

if sys.argv[1:2] == ["-u"]:
    del sys.argv[1]
    os.environ["PYTHONUNBUFFERED"] = "1"
if len(sys.argv) < 2 or (sys.argv[1].startswith("-") and sys.argv[1] != "-m"):
    os.execv(PYTHON, [PYTHON, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    request = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "executable": os.path.abspath(sys.argv[0]),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }
    text = json.dumps(request).encode()
    child = 0
    with suppress(OSError):
        server.connect(ADDRESS)
        socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(text)
        child = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big")
    if not child:  # the server could not fork: starting anew is slower, with the same result
        os.execv(PYTHON, [PYTHON, *sys.argv[1:]])
    for number in range(3):  # else who reads what the process writes would wait for this one too
        os.close(number)

    def forward(number, frame):
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    answer = server.recv(8, socket.MSG_WAITALL)
exit_code = int.from_bytes(answer, "big") - 256 if answer else 1
if exit_code < 0:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if exit_code != -signal.SIGKILL:
        signal.signal(-exit_code, signal.SIG_DFL)
    os.kill(os.getpid(), -exit_code)
os._exit(exit_code)
