"""Small files on a disk that is full for a while."""

import errno
import json
import os
import time

import pytest

from hub.result import read_metrics
from hub.run import Run
from hub.system import small_files as module
from hub.system.small_files import SmallFiles


class Disk:
    """Takes so many bytes, and then has no room."""

    def __init__(self, monkeypatch, room: int) -> None:
        self.room, self.number, self._write, self._fsync = room, errno.ENOSPC, os.write, os.fsync
        monkeypatch.setattr(module.os, "write", self.write)
        monkeypatch.setattr("hub.system.files.os.fsync", self.fsync)

    def write(self, descriptor: int, data: bytes) -> int:
        if data and not self.room:
            raise OSError(self.number, os.strerror(self.number))
        written = self._write(descriptor, bytes(data)[: self.room])
        self.room -= written
        return written

    def fsync(self, descriptor: int) -> None:
        if not self.room:
            raise OSError(self.number, os.strerror(self.number))
        self._fsync(descriptor)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_lines_that_a_full_disk_refuses_come_later_whole_and_in_order(tmp_path, monkeypatch, capsys, number):
    disk, run = Disk(monkeypatch, 10**6), Run(tmp_path)
    disk.number = number
    run.log({"step": 1})
    disk.room = 5  # half a line
    for step in (2, 3):
        run.log({"step": step})
        run.write_plan(decided=step)
        assert run.plan() == {"decided": step}
    assert run.metrics_file.read_text() == '{"step": 1}\n'
    assert capsys.readouterr().out == (
        f"{tmp_path} can't be written ({os.strerror(number)}). What is logged waits in memory. Free space there\n"
    )
    refused = f"{run.metrics_file}, {tmp_path / 'plan.json'} could not be written ({os.strerror(number)})"
    assert run.write_what_waits() == refused
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(time, "monotonic", lambda: float(sum(waited)))
    assert run.write_what_waits(minutes=0.5) == refused
    assert sum(waited) == 30
    assert capsys.readouterr().out.endswith(f" can't be written yet ({os.strerror(number)}): trying for up to 0.5 minutes\n")
    disk.room = 10**6
    run.log({"step": 4})
    assert [line["step"] for line in read_metrics(run.metrics_file)] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "plan.json").read_text()) == {"decided": 3}
    assert "can be written again" in capsys.readouterr().out


def test_an_error_that_does_not_pass_is_raised_and_what_it_refused_does_not_wait(tmp_path):
    files = SmallFiles()
    with pytest.raises(FileNotFoundError):
        files.append(tmp_path / "gone" / "file", "line\n")
    assert not files.waiting
