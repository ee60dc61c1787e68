import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from hub.errors import HubError
from hub.system.cache import cache_dir, make_once


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HUB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "finetune-hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "finetune-hub"
    monkeypatch.setenv("HUB_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"


@pytest.mark.parametrize("damaged_before", [False, True])
def test_makers_at_once_leave_one_whole_folder_and_nothing_else(tmp_path, damaged_before):
    folder, both_inside = tmp_path / "cache" / "thing", Barrier(2)
    if damaged_before:
        folder.mkdir(parents=True)
        (folder / "one").touch()

    def make(aside: Path) -> None:
        (aside / "one").touch()
        both_inside.wait(timeout=30)
        (aside / "two").touch()

    def is_whole(place: Path) -> bool:
        return (place / "two").is_file()

    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(make_once, folder, make, is_whole) for _ in range(2)]
        assert [item.result() for item in made] == [folder, folder]
    assert sorted(item.name for item in folder.iterdir()) == ["one", "two"]
    assert list(folder.parent.iterdir()) == [folder]


def test_maker_that_comes_second_leaves_the_first_result_alone(tmp_path):
    folder = tmp_path / "thing"

    def make(aside: Path) -> None:
        (aside / "name").write_text("second")
        folder.mkdir()
        (folder / "name").write_text("first")

    make_once(folder, make)
    assert (folder / "name").read_text() == "first"


def test_failed_maker_leaves_nothing_and_what_a_killed_one_left_goes_after_a_day(tmp_path):
    folder = tmp_path / "thing"
    fresh, old = tmp_path / ".thing.fresh", tmp_path / ".thing.old"
    for left in (fresh, old):
        left.mkdir()
    os.utime(old, (time.time() - 100_000,) * 2)
    with pytest.raises(ZeroDivisionError):
        make_once(folder, lambda aside: 1 / 0)
    assert list(tmp_path.iterdir()) == [fresh]


@pytest.mark.parametrize("place", ["file/thing", "long" * 100 + "/thing"])
def test_cache_that_cannot_be_written_is_a_line_with_what_to_set(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match="Set HUB_CACHE=FOLDER"):
        make_once(tmp_path / place, Path.touch)
