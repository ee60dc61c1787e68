"""Random files and options, by Hypothesis: each is used, or is one line for the user. `make fuzz` tries them for minutes.

With HUB_FUZZ_SECONDS each target takes a new seed until its share of the time is over. Without it there are a few examples, the
same each time.
"""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hub.compose import runfile
from hub.compose.compose import compose
from hub.config.bounds import BoundOptions
from hub.config.data import DataConfig, DataSource
from hub.config.schema import ModelConfig
from hub.data.check import check_rows
from hub.data.formats.detect import convert
from hub.data.sources.read import Row
from hub.data.tokens.template import encode
from hub.errors import HubError
from hub.models.load import check_weights, load_tokenizer
from hub.models.reading import ModelFileError
from hub.models.weights import check_folder
from hub.testing import CHATML, tiny_model_path, tokenizer
from hub.train.checkpoints.checkpoint import MANIFEST, damage

SECONDS = float(os.environ.get("HUB_FUZZ_SECONDS", "0"))
NUM_TARGETS = 7

LEAVES = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, 1, -1, 2**31, 2**63, 10**18]), st.integers(), st.floats(),
    st.sampled_from(["", "x", "../../etc/passwd", "\0", "{{ 1 // 0 }}", "float16", "<|im_end|>"]), st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
LINES = st.one_of(VALUES.map(json.dumps), st.text(max_size=60), st.just('{"messages": [{"role": "user", "content": "hi"}]}'))


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int) -> None:
    """Check random values. Any error but a HubError of one line ends it, with the smallest value that shows it."""

    def one_line(value: Any) -> None:
        said = ["fine"]
        try:
            check(value)
        except HubError as error:
            said = getattr(error, "problems", [str(error)])
        assert said
        assert all(line and "\n" not in line and "Traceback" not in line for line in said), said

    def run(number: int) -> None:
        quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        seed(number)(quiet(given(strategy)(one_line)))()

    run(0)
    until, number = time.monotonic() + SECONDS / NUM_TARGETS, 1
    while time.monotonic() < until:
        run(number)
        number += 1


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has others, at most three deep."""
    keys = list(value)[:30] if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else []
    inner = [(*path, key) for key in keys]
    return inner + [place for key in keys if len(path) < 2 for place in places(value[key], (*path, key))]


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place. `...`: without it."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return copy


def examine(folder: Path) -> None:
    """Read all of a model but its weights, as a worker does."""
    model = ModelConfig(path=str(folder))
    check_folder(folder)
    check_weights(model, folder)
    load_tokenizer(model, folder)


MORE = {
    "tokenizer_config.json": {"chat_template": [{"name": "default", "template": "x"}], "added_tokens_decoder": {}},
    "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": []},
    "config.json": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
}


def test_any_field_of_a_models_files_is_used_or_named(folder):
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    changes = []
    for name, values in (files | MORE).items():
        whole = files.get(name, {}) | (values if name != "config.json" else {})
        changes += [(name, whole, place) for place in places(whole)]
        changes += [(name, whole | MORE["config.json"], ("quantization_config",))] if name == "config.json" else []

    def check(change: Any) -> None:
        (name, whole, place), new = change
        file = folder / name
        before = file.read_text() if file.exists() else None
        file.write_text(json.dumps(changed(whole, place, new)))
        try:
            examine(folder)
        except ModelFileError as error:
            if error.file != name and not name.endswith("_map.json"):
                raise RuntimeError(f"{name}: {place} is at fault, and the line is: {error}") from None
            raise
        finally:
            file.unlink()
            if before is not None:
                file.write_text(before)

    fuzz(st.tuples(st.sampled_from(changes), st.just(...) | VALUES), check, 4)


def test_any_header_of_safetensors_is_read_or_named(folder):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def check(change: Any) -> None:
        place, new, told, cut = change
        text = json.dumps(changed(header, place, new)).encode()
        file.write_bytes(struct.pack("<Q", told or len(text)) + text + body[: len(body) - cut])
        check_folder(folder)
        check_weights(ModelConfig(path=str(folder)), folder)

    lies = st.sampled_from([0, 0, 0, 1, length + 1, 10**9, 2**63])
    numbers = st.lists(st.sampled_from([0, 1, -1, 64, 512, 2**40, 2**63, 1.5]), max_size=3)
    fuzz(
        st.tuples(st.sampled_from(places(header)), st.just(...) | numbers | VALUES, lies, st.sampled_from([0, 0, 1, 999])),
        check,
        25,
    )


def test_any_rows_are_converted_or_named(tmp_path):
    def check(drawn: Any) -> None:
        ending, lines, skip = drawn
        file = tmp_path / f"rows{ending}"
        file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        check_rows(DataSource(path=str(file)), DataConfig(path=str(file), on_bad_row="skip" if skip else "error"))

    endings = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz", ".zip"])
    fuzz(st.tuples(endings, st.lists(LINES, max_size=4), st.booleans()), check, 40)


def test_any_overrides_are_composed_or_named():
    names = st.sampled_from(
        ["algo", "model", "data.path", "algo.learning_rate", "launch.nnodes", "run_name", "data.mix", "x.y", "generate", "+x"]
    )
    words = st.one_of(st.text(max_size=12), st.tuples(names, st.text(max_size=10) | VALUES.map(json.dumps)).map("=".join))
    fuzz(st.lists(words, max_size=3), lambda drawn: compose("algo=lora_sft", "model=tiny", *drawn), 12)
    with pytest.raises(HubError) as caught:
        compose("generate=a\x9a\nb", "algo.learning_rate=a\nb")
    assert len(str(caught.value).splitlines()) == len(caught.value.problems) >= 2


def test_any_run_yaml_is_read_or_named():
    text = runfile.to_text(compose("algo=lora_sft", "model=tiny", "data=tiny"))
    lines = text.splitlines()

    def check(drawn: Any) -> None:
        number, value, whole = drawn
        name = lines[number].partition(":")[0]
        edited = [*lines[:number], f"{name}: {json.dumps(value)}", *lines[number + 1 :]]
        runfile.from_text(whole if whole is not None else "\n".join(edited))

    fuzz(st.tuples(st.integers(0, len(lines) - 1), VALUES, st.none() | st.text(max_size=40)), check, 15)


PIECES = st.sampled_from([
    "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{% if x %}", "{% endif %}", "{{ 1 // 0 }}",
    "{{ ''.__class__ }}",
    "{{ messages[9].content }}", "{% set x = namespace() %}", "{{ x.y.z }}", "{{ raise_exception('no') }}", "{% macro a() %}",
    "{{ 'a' * 99 }}", "{% generation %}", "{% endgeneration %}", "{{ range(10) | list }}", "\0", "{#", "<|im_end|>", CHATML,
])  # fmt: skip


def test_any_template_renders_or_is_named(monkeypatch):
    monkeypatch.setattr("hub.config.bounds._current", BoundOptions(template_seconds=2))
    words = tokenizer()
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    conversation = convert(Row({"messages": turns}, "chats.jsonl", 1), "messages")

    def check(drawn: list[str]) -> None:
        words.chat_template = "".join(drawn)
        encode(words, conversation)

    fuzz(st.lists(PIECES | st.text(max_size=5), max_size=5), check, 12)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000001"
    path.mkdir()
    shutil.copyfile(tiny_model_path("llama") / "config.json", path / "state.json")
    return path


def test_any_manifest_of_a_checkpoint_fits_or_is_damage(checkpoint):
    entry = {"size": 1, "sha256": "x"}
    names = st.sampled_from(["state.json", "../x", "/etc/passwd", "", ".", "\0"]) | st.text(max_size=5)

    def check(manifest: Any) -> None:
        (checkpoint / MANIFEST).write_text(json.dumps(manifest))
        assert damage(checkpoint) is None or isinstance(damage(checkpoint), str)

    whole = st.fixed_dictionaries({"files": st.dictionaries(names, VALUES | st.just(entry), max_size=2) | VALUES})
    fuzz(whole | VALUES, check, 30)
