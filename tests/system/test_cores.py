"""Cores of a process: those that a scheduler or a container gives it."""

import os
from pathlib import Path

import pytest

from hub.system.cores import usable_cores


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 3), ("150000 100000", 2), ("900000 100000", 3), ("1000 100000", 1)]
)
def test_a_container_and_a_scheduler_give_fewer_cores_than_the_machine_has(monkeypatch, limit, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 7}, raising=False)
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: limit)
    assert usable_cores() == expected
