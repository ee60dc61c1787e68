"""Writes compressed models: llmcompressor does it, in a process of the environment that has it."""

import errno
import json
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hub.errors import ConfigError, ModelError
from hub.system import leash as leashed
from hub.system.leash import leash
from hub.system.memory import free_host_memory
from hub.system.space import says_full, size_text
from hub.tasks.export.compressed import compress_model
from hub.tasks.export.compressed.compress_model import DONE, REFUSE, SAY
from hub.tasks.export.compressed.exporter import CALIBRATED, no_rows
from hub.tasks.export.compressed.interpreter import command, environment, versions_of
from hub.tasks.export.compressed.reader import open_compressed
from hub.tasks.export.job import Job, Written
from hub.tasks.export.result import num_bytes

LIMIT_NATS: Mapping[str, float] = {"w4a16": 0.4, "w8a8_fp8": 0.2, "w8a8_int8": 0.2}
"""Largest divergence in nats per token: about twice that of SmolLM2-135M, where the loss is largest, on 32 held-out chats after
calibration on 128 others: 0.21 for w4a16 (plain rounding: 0.84), 0.091 for w8a8_fp8, 0.075 for w8a8_int8."""

_COPIES = 1.3
"""Memory that a model takes while it is compressed, as a multiple of its weights: the largest layer is there in float32 too."""

_TINY_ROWS = 4
_STEP = re.compile(r"\((\d+)/(\d+)\): Calibrating")
_SHOWN = 10
"""Lines of progress for a model."""


def write(job: Job) -> list[Written]:
    """Write the model in each scheme that is asked for.

    Raises:
        ConfigError: no training rows are known, and a scheme needs some.
        ModelError: it can't be compressed.
    """
    folder, trusted = job.merged(), job.finished.base.trust_remote_code
    schemes = job.cfg.scheme
    rows = job.rows(_TINY_ROWS if job.tiny else job.cfg.num_calibration_rows) if CALIBRATED.intersection(schemes) else []
    for scheme in schemes:
        if scheme in CALIBRATED and not rows:
            raise ConfigError(no_rows(scheme))
    needed, free = _COPIES * num_bytes(folder), free_host_memory()
    if needed > free:
        raise ModelError(
            f"compressed: the model takes about {size_text(int(needed))} of memory, and {size_text(free)} are free. Use a "
            "machine with more, or type to=gguf"
        )
    return [_written(job, folder, scheme, rows if scheme in CALIBRATED else [], trusted) for scheme in schemes]


def _written(job: Job, folder: Path, scheme: str, rows: list[list[int]], trusted: bool) -> Written:
    out, python = job.out / scheme, job.cfg.python
    task = {"model": str(folder), "out": str(out), "scheme": scheme, "rows": rows, "trust_remote_code": trusted}
    job.say(f"hub: compressed {scheme}: starting llmcompressor")
    found = run(python, task, job.out / f"{scheme}.json", lambda line: job.say(f"hub: compressed {scheme}: {line}"))
    note = f"made of {found['compressed']} linear layers"
    if "group_size" in found:
        note += f", groups of {found['group_size']} weights share a scale"
    if rows:
        note += f", calibrated on {len(rows)} rows of the training data"
    return Written(
        kind=scheme,
        path=out,
        open=partial(open_compressed, out, python, trusted),
        limit_nats=LIMIT_NATS[scheme],
        note=note,
        made_by=versions_of(python),
    )


def run(python: str | None, task: Mapping[str, Any], file: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `compress_model.py`.

    Args:
        python: `export.python`.
        task: what it does.
        file: for the task. It is removed.
        say: receives lines for the user.

    Returns:
        What it found.

    Raises:
        ModelError: it failed.
    """
    file.write_text(json.dumps(task), encoding="utf-8")
    with leash() as stdin:
        child = subprocess.Popen(
            [command(python), leashed.__file__, compress_model.__file__, str(file)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(python),
            cwd=file.parent,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            assert child.stdout is not None
            found, refused, last = _follow(child.stdout, say)
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            file.unlink()
    if code == 0 and found is not None:
        return found
    if says_full(refused or last):
        raise OSError(errno.ENOSPC, "No space left on device")
    why = refused or (f"it was ended by signal {-code}. Is there enough memory?" if code < 0 else last)
    raise ModelError(f"compressed {task['scheme']}: {why}")


def _follow(lines: Any, say: Callable[[str], None]) -> tuple[dict[str, Any] | None, str | None, str]:
    """Read what the script prints: its result, the reason of a refusal, and the last line."""
    found, refused = None, None
    last: deque[str] = deque([""], maxlen=1)
    shown = 0
    for text in lines:
        line = text.strip()
        if line.startswith(SAY):
            say(line.removeprefix(SAY))
        elif line.startswith(REFUSE):
            refused = line.removeprefix(REFUSE)
        elif line.startswith(DONE):
            found = json.loads(line.removeprefix(DONE))
        elif step := _STEP.search(line):
            number, count = int(step[1]), int(step[2])
            if number * _SHOWN // count > shown:
                shown = number * _SHOWN // count
                say(f"calibrated {number} of {count} parts")
        elif line:
            last.append(line)
    return found, refused, last[0]
