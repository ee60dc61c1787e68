"""Which model a verb on finished models is asked about, and the one line for each mistake."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hub import ConfigError, HubError, compose
from hub.compose.own_options import own_options
from hub.compose.runfile import to_text
from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import option
from hub.config.schema import RunConfig
from hub.launch.finished import asked_for
from hub.models.finished import Asked, finished_run
from hub.result import Result
from hub.run import Run
from hub.testing import tiny_model_path


@dataclass(kw_only=True)
class Own(FinishedOptions):
    """Options of a made-up verb."""

    prompt: str | None = None
    """A text."""

    loud: bool = False
    """Yes or no."""

    parts: list[str] = field(default_factory=list)
    """A list."""

    port: int = option(8000, ge=1)
    """A number."""


VERB = FinishedVerb(name="ask", summary="Ask.", options=Own, function="x:y", sections=("model", "data", "generate"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model."""
    return shutil.copytree(tiny_model_path("llama"), tmp_path / "base")


@pytest.fixture
def asked(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """Asks in a folder with the finished run `one` of an adapter, which wrote a checkpoint, as such a run leaves it."""
    monkeypatch.chdir(tmp_path)
    run = Run.create("runs", "one")
    words = ["algo=lora_sft", f"model.path={base}", "data=tiny", "run_name=one", "generate.temperature=0.2"]
    run.config_file.write_text(to_text(compose(*words)))
    run.write_result(
        Result(status="completed", algo="lora_sft", backend="native", model=str(base), run_path=run.path, num_steps=2)
    )
    checkpoint = run.checkpoints_path / "step-00000001"
    for folder in (run.model_path, checkpoint / "model"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"}))
        (folder / "adapter_model.safetensors").touch()
    (checkpoint / "state.json").write_text("{}")
    return lambda *words: asked_for(VERB, words)


def line(asked: Callable[..., Asked], *words: str) -> str:
    """The one line of a mistake."""
    with pytest.raises(HubError) as caught:
        asked(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_run(run: str) -> str:
    """The one line of a run in `runs` without a model."""
    with pytest.raises(HubError) as caught:
        finished_run(run, "runs", RunConfig())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def status(folder: Path, value: str) -> None:
    """Write another status into the result of a run."""
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": value}))


def test_a_run_is_named_in_many_ways(asked, tmp_path: Path):
    for name in ("latest", "one", "runs/one/model"):
        found = asked(f"run={name}")
        assert (found.model.name, found.model.adapter) == ("one", tmp_path / "runs/one/model"), name
        assert found.model.before is not None
        assert found.cfg.model.path.endswith("/base")
    assert found.cfg.generate.temperature == 0.2
    assert "data.path" in found.from_run
    assert asked("run=latest", "generate=factual").cfg.generate.temperature == 0.1
    assert asked("run=one", "output_dir=runs", "generate.top_k=5").cfg.generate.top_k == 5
    checkpoint = asked("run=runs/one/checkpoints/step-00000001")
    assert checkpoint.model.name == "one/step-00000001"
    assert asked("run=one/checkpoints/step-00000001").model == checkpoint.model
    assert checkpoint.model.adapter is not None
    adapter = asked("model.path=runs/one/model")
    assert adapter.model.adapter == tmp_path / "runs/one/model"
    assert adapter.cfg.model.path.endswith("/base")
    whole = asked("model=tiny")
    assert (whole.model.adapter, whole.model.before, whole.model.name) == (None, None, "tiny:llama")


def test_every_mistake_about_the_model_is_one_line(asked, tmp_path: Path):
    one = tmp_path / "runs" / "one"
    assert "no model is named. Type run=latest" in line(asked)
    assert "name two models" in line(asked, "run=latest", "model=tiny")
    assert "there is no such folder, here or in" in line(asked, "run=two")
    assert "is not a run folder" in of_run("runs")
    assert "there is no run in nowhere" in line(asked, "run=latest", "output_dir=nowhere")
    assert "algo.lora_r: hub ask does not read it" in line(asked, "run=latest", "algo.lora_r=8")
    status(one, "interrupted")
    assert f"has the status interrupted, after 2 steps. To continue it type python -m hub resume={one}" in of_run("one")
    assert f"run={one}/checkpoints/step-00000001" in of_run("one")
    status(one, "failed")
    assert "has the status failed, after 2 steps" in of_run("one")
    status(one, "verified")
    assert "verified and trained nothing" in of_run("one")
    (one / "result.json").write_text("{")
    assert "result.json can't be read. Type model.path=" in of_run("one")
    (one / "result.json").unlink()
    assert "is not finished: it has no result yet" in of_run("one")


def test_a_model_that_is_gone_is_one_line(asked, base: Path, tmp_path: Path):
    one = tmp_path / "runs" / "one"
    base.rename(tmp_path / "moved")
    try:
        assert "the base of this adapter" in line(asked, "run=one")
        assert "is gone" in line(asked, "model.path=runs/one/model")
    finally:
        (tmp_path / "moved").rename(base)
    shutil.rmtree(one / "checkpoints" / "step-00000001" / "model")
    assert "this checkpoint holds no model" in of_run("runs/one/checkpoints/step-00000001")
    from hub.tasks import loading

    weights = one / "model" / "adapter_model.safetensors"
    with pytest.raises(HubError, match=r"adapter_model\.safetensors is broken"):
        loading.load_finished(given := asked("run=one"), given.model, print)
    weights.rename(weights.with_name("adapter_model.bin"))
    assert "is missing, and adapter_model.bin is a pickle" in of_run("one")
    (one / "model" / "adapter_config.json").write_text("{")
    assert "adapter_config.json can't be read" in line(asked, "model.path=runs/one/model")
    assert "adapter_config.json can't be read" in of_run("one")
    (one / "model").rename(one / "elsewhere")
    assert "holds no model. Was it moved?" in of_run("one")


def test_own_options_are_read_as_typed():
    words = ["prompt=2, 3 [and] {x}: why?", "loud=true", "parts=a,b", "port=9", "model=tiny"]
    options, rest = own_options(Own, words)
    assert (options.prompt, options.loud, options.parts, options.port) == ("2, 3 [and] {x}: why?", True, ["a", "b"], 9)
    assert rest == ["model=tiny"]
    assert own_options(Own, ["prompt=1e3"])[0].prompt == "1e3"
    assert own_options(Own, ['prompt="it\'s \\"so\\""'])[0].prompt == 'it\'s "so"'
    assert own_options(Own, ["prompt=null"])[0].prompt is None
    assert own_options(Own, ["loud=1", "parts=[a]"])[0].loud
    for typed, texts in {
        "1e3,2026": ["1e3", "2026"],
        "[a=b/(c), d]": ["a=b/(c)", "d"],
        "'a,b',c": ["a,b", "c"],
        "[]": [],
        "a": ["a"],
    }.items():
        assert own_options(Own, [f"parts={typed}"])[0].parts == texts
    assert own_options(Own, [], {"parts": "a"})[0].parts == ["a"]
    for word, said in {
        "loud=3": "loud=3 is not allowed. Allowed: true or false",
        "port=0": "port=0 is not allowed. Allowed: a number at least 1",
        "port=x": "port=x is not allowed. Allowed: a whole number",
        "parts=": "parts= is empty",
        "parts=[a": r"parts=\[a is not allowed. Allowed: a text, or a list like",
        "parts=[[a]]": "is not allowed. Allowed: a text, or a list like",
        "parts=a,,b": "is not allowed. Allowed: a text, or a list like",
        "promt=x": "promt: there is no such option. Did you mean prompt",
        "rum=latest": "rum: there is no such option. Did you mean run",
    }.items():
        with pytest.raises(ConfigError, match=said):
            own_options(Own, [word])
    with pytest.raises(ConfigError, match=r"Did you mean generate\.temperature"):
        asked_for(VERB, ["model=tiny", "temperature=0.3"])
    with pytest.raises(ConfigError, match=r"algo\.deterministic=3 is not allowed\. Allowed: true or false"):
        compose("algo=lora_sft", "algo.deterministic=3")
