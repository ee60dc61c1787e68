"""Bytecode of libraries that have none beside them."""

import os
import subprocess
import sys

from hub import compose
from hub.launch import launcher
from hub.system import bytecode


def test_a_library_without_bytecode_gets_it_in_the_cache_and_one_with_it_stays(tmp_path, monkeypatch):
    (tmp_path / "packages" / "manylines").mkdir(parents=True)
    (tmp_path / "packages" / "manylines" / "__init__.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(bytecode, "WRITTEN_FOR", "manylines")
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "packages"), "PYTHONDONTWRITEBYTECODE": "1"}

    found = bytecode.bytecode_variables(environment)
    assert launcher._environment(compose("algo=sft", "model=tiny", "launch.nproc_per_node=1")).items() >= found.items()
    subprocess.run([sys.executable, "-c", "import manylines"], env=environment | found, check=True)
    assert [file.name.split(".")[0] for file in (tmp_path / "cache" / "bytecode").rglob("manylines/*.pyc")] == ["__init__"]
    assert bytecode.bytecode_variables(environment | {"PYTHONPYCACHEPREFIX": "/elsewhere"}) == {}

    beside = environment | {"PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-c", "import manylines"], env=beside, check=True)
    assert bytecode.bytecode_variables(environment) == {}
