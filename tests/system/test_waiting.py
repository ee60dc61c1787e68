"""Slow parts say how far they are, and quick ones nothing."""

from hub.system import waiting
from hub.system.waiting import counted


def test_a_slow_part_has_a_line_every_ten_seconds(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0, 22.0, 40.0])
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(clock))
    lines = []
    assert list(counted("abcde", 5, "merging: {} tensors", lines.append)) == [*"abcde"]
    assert lines == ["merging: 2 of 5 tensors", "merging: 4 of 5 tensors"]
