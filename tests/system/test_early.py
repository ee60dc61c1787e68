"""What begins beside a worker's imports."""

import ctypes
import gc
import os
from types import SimpleNamespace

import pytest

from hub.system.early import make_gpu_context, read_ahead, without_collector


@pytest.mark.parametrize(("has_gpu", "asked"), [(True, ["init", "device 3", "context of 7"]), (False, ["init"])])
def test_the_context_is_made_on_the_gpu_of_this_process(monkeypatch, has_gpu, asked):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    calls = []

    def device_of(pointer, number):
        calls.append(f"device {number}")
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = 7
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: [calls.append("init"), 0 if has_gpu else 100][1],
        cuDeviceGet=device_of,
        cuDevicePrimaryCtxRetain=lambda pointer, device: [calls.append(f"context of {device.value}"), 0][1],
    )
    thread = make_gpu_context(3, lambda name: driver)
    assert thread is not None
    thread.join()
    assert calls == asked


def test_without_a_driver_or_with_its_gpus_hidden_no_context_is_made(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    thread = make_gpu_context(0, missing)
    assert thread is not None
    thread.join()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert make_gpu_context(0, missing) is None


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such call")
@pytest.mark.parametrize(
    ("free", "read"), [(10**12, {("a.safetensors", 0), ("a.safetensors", 64), ("b.safetensors", 0)}), (150, set())]
)
def test_weights_are_read_ahead_if_memory_has_room_for_them(tmp_path, monkeypatch, free, read):
    for name, size in (("a.safetensors", 100), ("b.safetensors", 10), ("c.bin", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    asked = set()

    def advise(file, start, length, advice):
        assert (length, advice) == (64, os.POSIX_FADV_WILLNEED)
        asked.add((os.path.basename(os.readlink(f"/proc/self/fd/{file}")), start))

    monkeypatch.setattr("hub.system.early._PIECE", 64)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    thread = read_ahead(tmp_path, free)
    assert thread is not None
    thread.join()
    assert asked == read


def test_the_collector_is_as_it_was_afterwards_also_after_an_error():
    states = []

    def fail() -> None:
        with without_collector(freeze=False):
            states.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert (states, gc.isenabled()) == ([False], True)
