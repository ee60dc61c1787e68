"""Rows for the tests, and runs in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hub


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """24 pairs of which the chosen answer can be learned. Their lengths differ."""
    rows = [
        {
            "prompt": f"what is {n} + 1?",
            "chosen": f"it is {n + 1}" + " indeed" * (n % 3),
            "rejected": "I do not know " * (1 + n % 4),
        }
        for n in range(24)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def train(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., hub.Result]:
    """Trains for some steps on the pairs, in this process and in float32."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))

    def run(algo: str = "lora_dpo", **options: Any) -> hub.Result:
        usual = {"max_steps": 4, "effective_batch_size": 8, "learning_rate": 1e-2, "dtype": "float32", "mode": "inline"}
        if algo != "lora_dpo":
            usual["learning_rate"] = 1e-3
        return hub.run(algo, model="tiny", output_dir=tmp_path / "runs", **({"data": pairs} | usual | options))

    return run


@dataclass(frozen=True)
class Said:
    """What a command line answered."""

    code: int
    out: str
    problems: list[str]


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line in this process, in an empty folder."""
    from hub.cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Said:
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        return Said(code, said.out, [line.removeprefix("hub: ") for line in said.err.splitlines()])

    return call
