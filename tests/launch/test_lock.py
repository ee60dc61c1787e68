"""Two starters of one run folder: one trains, the other gets a line. A dead holder keeps nothing."""

import json
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hub.cli.runs import KILLED, RUNNING, UNFINISHED, read_runs
from hub.errors import ConfigError
from hub.launch import lock
from hub.launch.lock import Holder, Lock, hold, release
from hub.system.processes import Process, here


def held_by(folder: Path, **of_holder: str) -> Holder:
    """Write the lock of another process."""
    known = {"host": socket.gethostname(), "machine": here(), "process": str(Process.this()), "since": "then", "token": "other"}
    holder = Holder(**(known | of_holder))
    (folder / lock.NAME).write_text(json.dumps(asdict(holder)))
    return holder


def test_one_of_many_starters_gets_the_folder_and_the_others_a_line_on_who_has_it(tmp_path, monkeypatch):
    monkeypatch.delattr(lock, "_put_exclusively")  # by which others could see half of it
    begin = threading.Barrier(8)

    def start(_: int) -> Lock | str:
        begin.wait()
        try:
            return Lock(tmp_path)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(start, range(8)))
    (mine,) = [one for one in outcomes if isinstance(one, Lock)]
    assert len(outcomes) == 8
    lines = {one for one in outcomes if isinstance(one, str)}
    who = f"process {os.getpid()} on {socket.gethostname()}, since "
    assert all(f"{tmp_path}: another process runs in this folder ({who}" in line for line in lines)
    assert not any("If it is dead" in line for line in lines)
    mine.release()
    assert not list(tmp_path.iterdir())  # nor anything that was written aside


@pytest.mark.parametrize("process", ["reaped", "a zombie", "another with its id"])
def test_a_dead_holder_keeps_nothing_and_its_run_was_killed(tmp_path, process):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").touch()
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        if process == "reaped":
            child.wait()
        dead = Process(os.getpid(), "before") if process == "another with its id" else Process(child.pid, "")
        held_by(folder, process=str(dead))
        assert read_runs(str(tmp_path))[0].status == KILLED
        hold(folder)
    assert read_runs(str(tmp_path))[0].status == RUNNING
    with pytest.raises(ConfigError, match="another thread of this process runs in this folder"):
        hold(folder)
    release(folder)
    assert read_runs(str(tmp_path))[0].status == UNFINISHED


def test_workers_of_a_killed_launcher_still_have_its_folder_until_they_end(tmp_path):
    held_by(tmp_path, process=str(Process(os.getpid(), "before")))
    with subprocess.Popen(
        ["tail", "-f", "/dev/null", "--", str(tmp_path / "x"), str(tmp_path)], stderr=subprocess.DEVNULL
    ) as worker:
        threading.Timer(0.3, worker.kill).start()
        Lock(tmp_path).release()
        assert worker.poll() is not None


def test_a_holder_on_another_machine_is_dead_when_it_has_been_silent_for_long(tmp_path):
    holder = held_by(tmp_path, host="elsewhere", machine="elsewhere 1 2")
    with pytest.raises(ConfigError, match=r"\(process \d+ on elsewhere, since then\).* is free 2 minutes after"):
        Lock(tmp_path)
    past = time.time() - lock.SILENT_SECONDS - 60
    os.utime(tmp_path / lock.NAME, (past, past))
    mine = Lock(tmp_path)
    assert Holder.of(tmp_path) != holder
    (tmp_path / lock.NAME).write_text(json.dumps(asdict(replace(holder, token="third"))))
    mine.release()  # it is another's by now
    assert (tmp_path / lock.NAME).is_file()


def test_a_file_system_without_hard_links_has_the_lock_too(tmp_path, monkeypatch):
    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    mine = Lock(tmp_path)
    assert (holder := Holder.of(tmp_path)) is not None
    assert holder.process == str(Process.this())
    with pytest.raises(ConfigError, match="another process runs"):
        Lock(tmp_path)
    mine.release()


def test_why_a_lock_can_not_be_written_is_said(tmp_path, monkeypatch):
    def write(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(ConfigError, match=r"can't write there \(Permission denied\)"):
        Lock(tmp_path)


def test_one_process_at_a_time_removes_the_lock_of_a_dead_holder(tmp_path):
    dead, mark, file = held_by(tmp_path), tmp_path / ".lock-removed", tmp_path / lock.NAME
    mark.touch()
    lock._remove(tmp_path, dead)  # another one is at it
    assert (mark.exists(), file.exists()) == (True, True)
    os.utime(mark, (0, 0))
    lock._remove(tmp_path, dead)  # it has died at it
    assert (mark.exists(), file.exists()) == (False, True)
    lock._remove(tmp_path, replace(dead, token="third"))  # it is another's by now
    assert (mark.exists(), file.exists()) == (False, True)
    lock._remove(tmp_path, dead)
    assert not list(tmp_path.iterdir())


def test_a_holder_touches_its_lock_until_it_is_released(tmp_path, monkeypatch):
    assert 8 * lock.BEAT_SECONDS <= lock.SILENT_SECONDS  # a few may be lost
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    before = set(threading.enumerate())
    mine = Lock(tmp_path)
    (beat,) = set(threading.enumerate()) - before
    assert (beat.name, beat.daemon) == ("lock", True)
    os.utime(tmp_path / lock.NAME, (0, 0))
    for _ in range(1000):
        if (tmp_path / lock.NAME).stat().st_mtime:
            break
        time.sleep(0.01)
    assert (tmp_path / lock.NAME).stat().st_mtime
    mine.release()
    beat.join(10)
    assert not beat.is_alive()


def test_a_damaged_lock_is_an_unknown_machines_until_it_has_been_silent_for_long(tmp_path):
    (tmp_path / lock.NAME).write_text("[")
    with pytest.raises(ConfigError, match=r"\(process \? on an unknown machine, since \?\).* is free 2 minutes after"):
        Lock(tmp_path)
    os.utime(tmp_path / lock.NAME, (0, 0))
    Lock(tmp_path).release()
    assert not held_by(tmp_path, machine="elsewhere").is_alive(tmp_path / "gone")
    with pytest.raises(ConfigError, match="can't write there"):
        Lock(tmp_path / "gone" / "run")


def test_a_lock_is_taken_although_nfs_lost_the_answer(tmp_path, monkeypatch):
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link)
    mine = Lock(tmp_path)
    with pytest.raises(ConfigError, match="another process runs"):
        Lock(tmp_path)
    mine.release()


def test_a_lock_that_is_released_while_another_asks_who_has_it_is_taken(tmp_path, monkeypatch):
    put, taken = lock._put, iter([False])
    monkeypatch.setattr(lock, "_put", lambda file, text: next(taken, True) and put(file, text))
    mine = Lock(tmp_path)
    assert (tmp_path / lock.NAME).is_file()
    mine.release()
