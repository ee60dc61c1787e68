"""Processes that read and encode data while another one trains.

Each of them (`python -m hub.data.streaming.workers`) reads the same windows of rows and encodes every n-th row of them. It
writes into a pipe and waits when that is full. So samples are made while the GPU works, in an order that doesn't depend on
which process is faster, and memory stays flat.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, BinaryIO, TypedDict

from hub.compose import runfile
from hub.config.bounds import use_bounds
from hub.config.data import DataSource
from hub.config.schema import RunConfig
from hub.data.samples.mix import sources_of
from hub.data.streaming.feed import Frames, SampleStream
from hub.data.streaming.frames import from_bytes, raw_items, to_bytes
from hub.data.streaming.windows import FIRST, Window, WindowState, in_order, items, window_from, windows
from hub.data.tokens.encode import Encoder
from hub.errors import DataError, HubError, one_line
from hub.plugins.registry import warnings_shown
from hub.secrets import without_secrets
from hub.system.signals import end_with_parent, signals_blocked

PIPE_BYTES = 2**20
"""How far a process is ahead: some hundred thousand tokens."""


class StartPosition(TypedDict):
    """Where a process begins in a stream. JSON."""

    number: int
    """Number of the source in the mix."""

    window: WindowState
    skip: int


class Request(TypedDict):
    """What a process is to do. JSON."""

    cfg: str
    base_path: str
    source: dict[str, Any]
    limit: int | None
    shard: int
    num_shards: int
    place: StartPosition | None
    """None: all rows once, in their order."""


class Processes:
    """Starts the reading processes of a run, and ends them."""

    def __init__(self, cfg: RunConfig, base_path: Path, limit: int | None, num_shards: int) -> None:
        """Args:
        cfg: the run.
        base_path: local folder of the base weights, with the tokenizer.
        limit: tokens of the longest sample.
        num_shards: processes for each source.
        """
        self._cfg, self._base_path, self._limit, self._num_shards = cfg, base_path, limit, num_shards
        self._children: list[subprocess.Popen[bytes]] = []

    def stream(self, number: int) -> SampleStream:
        """The units of source `number` as a stream without end."""
        source = sources_of(self._cfg.data)[number]

        def start(window: Window, skip: int) -> Sequence[Frames]:
            place = StartPosition(number=number, window=window.state(), skip=skip)
            return [self._start(source, shard, place) for shard in range(self._num_shards)]

        return SampleStream(source.path, start, self._cfg.data.block_size)

    def rows(self, source: DataSource) -> Iterator[bytes]:
        """The items of each row of a source, in its order, once. Each is a frame, as it is stored.

        Raises:
            DataError: a row can't be used, or a process was killed.
        """
        outputs = [self._open(source, shard, None) for shard in range(self._num_shards)]

        def read(shard: int) -> Window | bytes:
            frame = raw_items(outputs[shard].read)
            if frame is None:
                raise DataError(f"{source.path}: a process that reads it was killed without a report (out of CPU memory?)")
            return frame

        while True:
            window = FIRST
            for shard in range(len(outputs)):
                frame = read(shard)
                assert isinstance(frame, Window)
                window = frame
            if not window.size:
                return
            for place in range(window.size):
                row = read(place % len(outputs))
                assert isinstance(row, bytes)
                yield row

    def close(self) -> None:
        """End all processes."""
        for child in self._children:
            child.kill()
            child.wait()
            if child.stdout:
                child.stdout.close()
        self._children.clear()

    def _start(self, source: DataSource, shard: int, place: StartPosition | None) -> Frames:
        read = self._open(source, shard, place).read
        return iter(lambda: from_bytes(read), None)

    def _open(self, source: DataSource, shard: int, place: StartPosition | None) -> IO[bytes]:
        """Start a process. Gives what it writes."""
        request: Request = {
            "cfg": runfile.to_text(self._cfg),
            "base_path": str(self._base_path),
            "source": asdict(source),
            "limit": self._limit,
            "shard": shard,
            "num_shards": self._num_shards,
            "place": place,
        }
        # No accelerator, no group of processes, and one core each.
        env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **warnings_shown()}
        with (
            signals_blocked()
        ):  # for good in the child: a scheduler signals all processes, and this one is needed until the end
            child = subprocess.Popen(
                [sys.executable, "-m", "hub.data.streaming.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=env,
                start_new_session=True,
            )
        self._children.append(child)
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it ended at once, which shows when it is read from
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
        _enlarge(child.stdout)
        return child.stdout


def _enlarge(pipe: IO[bytes]) -> None:
    """Give a pipe a larger buffer where the system allows it."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        return


def main(request: Request, out: BinaryIO) -> None:
    """Run one process: write what is requested as frames, until the pipe is closed."""
    from transformers.utils import logging

    from hub.data.tokens.tokenizer import load_tokenizer

    logging.set_verbosity_error()
    cfg = runfile.from_text(request["cfg"])
    use_bounds(cfg.launch)
    source, place = DataSource(**request["source"]), request["place"]
    try:
        encode = Encoder(load_tokenizer(cfg, Path(request["base_path"])), cfg.data, source, request["limit"])
        if place is None:
            rows, skip = in_order(source), 0
        else:
            begin, size = window_from(place["window"]), cfg.data.shuffle_window
            rows, skip = windows(source, cfg.algo.seed, place["number"], size, begin), place["skip"]
        for frame in items(encode, rows, skip, request["shard"], request["num_shards"]):
            out.write(to_bytes(frame))
    except HubError as error:
        out.write(to_bytes(error))
    except BrokenPipeError:
        raise
    except Exception as error:  # a disk, a network or a library fails: the run ends with a checkpoint
        out.write(to_bytes(DataError(f"{source.path}: reading it failed: {without_secrets(one_line(error))}")))
    out.flush()


if __name__ == "__main__":
    end_with_parent(at_once=True)
    # Output of a library must not get between the frames.
    frames = io.BufferedWriter(io.FileIO(os.dup(1), "wb"), 2**16)
    os.dup2(2, 1)
    try:
        main(json.load(sys.stdin), frames)
    except BrokenPipeError:
        os._exit(0)
