"""A config file of one's own, and a run's own run.yaml, as the options of a command line."""

import pytest

from hub import ConfigError, compose
from hub.compose import runfile
from hub.compose.compose import origins
from hub.compose.config_file import file_overrides

BOTH = """\
algo: lora_sft
model: tiny
algo.lora_r: 4
data:
  path: "größe (1).jsonl"
  mix: []
track.project: O'Brien's
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a file in the current folder, and composes it with what is typed."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, *typed: str, name: str = "exp.yaml", config_dir: str | None = None):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return compose(*file_overrides(name, typed, config_dir), *typed, config_dir=config_dir)

    return write


def test_a_section_is_a_choice_or_options_or_full_names(file):
    cfg = file(BOTH)
    assert (type(cfg.algo).__name__, cfg.algo.lora_r, cfg.model.path) == ("LoraSftConfig", 4, "tiny:llama")
    assert (cfg.data.path, cfg.track.project) == ("größe (1).jsonl", "O'Brien's")
    nested = file(
        "algo: {name: qlora_sft, target_modules: [q_proj, v_proj], max_grad_norm: null}\nmodel:\ndata: {name: tiny}\n"
    )
    assert nested.algo.load_in_4bit is True
    assert (nested.algo.target_modules, nested.algo.max_grad_norm) == (["q_proj", "v_proj"], None)
    assert nested.data.path == "tiny:chats"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("model.revision: 1e10", "model.revision", "1e10"),
        ("model.revision: 007", "model.revision", "007"),
        ("model.revision: 'null'", "model.revision", "null"),
        ("model.revision: ~", "model.revision", None),
        ("algo.learning_rate: 2e-4", "algo.learning_rate", 2e-4),
        ("algo.max_steps: 1_000", "algo.max_steps", 1000),
        ("algo.deterministic: yes", "algo.deterministic", True),
        ("data: {path: a, eval_path: '${data.path}'}", "data.eval_path", "a"),
        ("data.path: |\n  a", "data.path", "a\n"),
        ("data: {mix: [{path: 'a, b', weight: 0.5}, {path: c}]}", "data.mix", [("a, b", 0.5), ("c", None)]),
        ("a: &x {seed: 7, max_steps: 2}\nalgo: {<<: *x, seed: 8}".replace("a: &x", "algo.: &x"), "", None),
    ],
)
def test_a_value_is_what_yaml_says_and_a_text_what_was_written(file, text, name, value):
    if not name:
        with pytest.raises(ConfigError, match=r"^exp.yaml: line 1: algo. is not the name of an option$"):
            file(text)
        return
    found = file(f"{text}\n", "algo=sft")
    for part in name.split("."):
        found = getattr(found, part)
    assert ([(item.path, item.weight) for item in found] if isinstance(found, list) else found) == value


def test_a_path_may_stand_for_a_section(file):
    cfg = file("model: org/name\ndata: chats.jsonl\n")
    assert (cfg.model.path, cfg.data.path) == ("org/name", "chats.jsonl")
    assert file("model: tiny:qwen3\ndata: tiny\n").model.path == "tiny:qwen3"
    mix = file("data:\n- a b.jsonl\n- {path: c.jsonl, weight: 2}\n").data.mix
    assert [(source.path, source.weight) for source in mix] == [("a b.jsonl", None), ("c.jsonl", 2.0)]


def test_what_is_typed_wins_and_a_typed_choice_replaces_its_section(file):
    typed = ["model.dtype=float32", "algo.lora_r=8", "algo=qlora_sft", "data=tiny"]
    text = "algo: {name: lora_sft, lora_r: 4, seed: 3, load_in_4bit: false}\nmodel: {path: a/b, dtype: auto}\ndata: {path: x}\n"
    cfg = file(text, *typed)
    assert (cfg.algo.lora_r, cfg.algo.seed, cfg.algo.load_in_4bit) == (8, 3, True)
    assert (cfg.model.path, cfg.model.dtype, cfg.data.path) == ("a/b", "float32", "tiny:chats")
    assert file(text + "experiment: smoke\n").algo.max_steps == 20
    other = file("model: {path: a/b, revision: c}\n", "model=tiny").model
    assert (other.path, other.revision) == ("tiny:llama", None)
    with pytest.raises(
        ConfigError, match=r"^exp.yaml is an experiment itself. Leave experiment= out, or write it into the file$"
    ):
        file(text, "experiment=smoke")


def test_a_runs_own_run_yaml_is_the_same_config_as_a_new_run(file):
    cfg = compose("algo=lora_sft", "model=tiny", "data.mix=[{path: a.jsonl, weight: 2}]", "algo.target_modules=[q_proj]",
                  "output_dir=/x y/z", "run_name=first", "resume=latest", "task=verify")  # fmt: skip
    again = file(runfile.to_text(cfg), name="run.yaml")
    assert (again.run_name, again.resume) == (None, None)
    again.run_name, again.resume = "first", "latest"
    assert again == cfg
    assert file(runfile.to_text(cfg), "task=train", name="run.yaml").task == "train"


def test_a_run_again_with_another_algorithm_keeps_what_was_set_and_not_its_defaults(file):
    text = runfile.to_text(compose("algo=sft", "algo.seed=7", "algo.backend=native", "algo.max_grad_norm=0.5", "model=tiny"))
    again = file(text, "algo=lora_sft", name="run.yaml").algo
    assert again == compose("algo=lora_sft", "algo.seed=7", "algo.max_grad_norm=0.5").algo


def test_an_experiment_of_a_folder_of_presets_runs_by_its_path(file):
    text = "# @package _global_\ndefaults:\n  - override /algo: lora_sft\n  - /model: tiny\n  - _self_\nalgo:\n  lora_r: 4\n"
    cfg = file(text)
    assert (cfg.algo.lora_r, cfg.model.path) == (4, "tiny:llama")


def test_a_group_of_ones_own_can_be_chosen_in_a_file(file, tmp_path):
    (tmp_path / "mine/recipe").mkdir(parents=True)
    (tmp_path / "mine/recipe/short.yaml").write_text("# @package _global_\nalgo:\n  max_steps: 3\n")
    assert file("algo: sft\nrecipe: short\n", config_dir="mine").algo.max_steps == 3


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["exp.yaml: write NAME: VALUE on each line, e.g. algo: lora_sft"]),
        ("- a\n", ["exp.yaml: write NAME: VALUE on each line, e.g. algo: lora_sft"]),
        ("algo: lora_sft\nmodel: [a\n", ["exp.yaml: line 3: this is not YAML (expected ',' or ']', but got '<stream end>')"]),
        ("data:\n\tpath: x\n", ["exp.yaml: line 2: YAML takes no tabs here. Type spaces"]),
        ("algo: sft\nmodel:tiny\ndata: x\n", ["exp.yaml: line 3: write NAME: VALUE, with a space behind the colon, in"]),
        ("algo: sft\n model: x\n", ["exp.yaml: line 2: the indentation is wrong, or a text with a colon lacks quotes"]),
        ("algo: 'sft\n", ["exp.yaml: line 2: a quote or a bracket is not closed"]),
        ("algo: sft\n---\nalgo: sft\n", ["exp.yaml: line 2: --- begins a second document."]),
        ("algo: {seed: 1,\n seed: 2}\n", ["exp.yaml: line 1: seed is set twice"]),
        ("algo.seed: 1\nalgo: {seed: 2}\n", ["exp.yaml: line 2: algo.seed is set twice"]),
        ("algo: sft\nlearning_rate: 1\n", [
            "exp.yaml: learning_rate: there is no such option. Did you mean algo.learning_rate?"]),
        ("algo: sft\nmodle: {path: x}\nmodel: tinny\n", [
            "exp.yaml: model=tinny: there is no such preset. Did you mean tiny?",
            "exp.yaml: modle.path: there is no such option. Did you mean model.path?"]),
        ("algo: {name: sft, seed: x}\n", ['exp.yaml: algo.seed=x is not allowed. Allowed: a whole number']),
        ("algo: {lora_r: 8}\n", ["exp.yaml: algo: names no algorithm. Write name: NAME in it, or type algo=NAME, one"]),
        ("algo: sft\noptim: x\n", ["exp.yaml: optim: there is no such option. Here it is algo.optimizer"]),
        ("model.path: !!python/name:os.system\n", ["exp.yaml: line 1: tag:yaml.org,2002:python/name:os.system is not allowed"]),
        ("model: {_target_: os.system}\n", ["exp.yaml: model._target_: there is no such option."]),
        ("algo: sft\nevaluate.metrics: [own.py:f]\n", [
            "exp.yaml has evaluate.metrics=[\"own.py:f\"], which runs code. If you trust the file, type that too"]),
        ("model.trust_remote_code: true\n", [
            "exp.yaml has model.trust_remote_code=true, which runs code. If you trust the file, type that too"]),
        ("algo: [a, b]\n", ["exp.yaml: algo=[\"a\",\"b\"]: name one preset."]),
        ("hydra: {run: {dir: x}}\n", ["exp.yaml: hydra.run.dir: Hydra's own options are for sweeps."]),
        ("defaults: [lora_sft]\n", ["exp.yaml: line 1: a choice is written GROUP: NAME, e.g. algo: lora_sft"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_one_line_with_the_file(file, text, lines):
    with pytest.raises(ConfigError) as caught:
        file(text)
    found = caught.value.problems[: len(lines)]
    assert [line[: len(expected)] for line, expected in zip(found, lines, strict=True)] == lines


def test_show_names_the_file_of_each_value(file, tmp_path):
    file(BOTH)
    came_from = origins(*file_overrides("exp.yaml", ["algo.seed=1"]), "algo.seed=1")
    assert (came_from["algo.lora_r"], came_from["algo.seed"]) == ("exp.yaml", "command line")


def test_the_command_line_takes_one_file_in_any_place_and_says_what_a_folder_is(hub, tmp_path):
    (tmp_path / "exp.yaml").write_text(BOTH, encoding="utf-8")
    for words in (["show", "exp.yaml", "lora_r"], ["show", "lora_r", "--config", "exp.yaml"]):
        assert "algo.lora_r = 4   # exp.yaml" in hub(*words).out
    assert hub("exp.yaml", "algo.lora_r=0").problems[0].startswith("algo.lora_r=0 is not allowed")
    (tmp_path / "far.yaml").write_text("algo: lora_sft\nmodel: tiny\ndata: no.jsonl\n")
    assert hub("far.yaml").problems[0].startswith("far.yaml: data.path=no.jsonl: there is no such file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").touch()
    assert hub("--config-dir", "mine", "algo=sft").problems == [
        "--config-dir mine: mine/config.yaml would replace the hub's own. If it holds options of a run, type "
        "python -m hub mine/config.yaml. Else give it another name"
    ]
    assert hub("--config", "exp.yaml", "exp.yaml").problems == [
        "a command line takes one config file, but has exp.yaml and exp.yaml"
    ]
    (tmp_path / "runs/a").mkdir(parents=True)
    assert hub("runs/a").problems == [
        "runs/a is a folder. Name a config file, or type --config-dir runs/a for a folder of presets"
    ]
    (tmp_path / "runs/a/run.yaml").touch()
    assert hub("runs/a").problems == ["runs/a is a run folder. Type runs/a/run.yaml to run it again, or resume=runs/a"]
    assert hub("nowhere.yaml").problems == ["nowhere.yaml: there is no such file"]
    assert hub("ex.yaml").problems == ["ex.yaml: there is no such file. Did you mean exp.yaml?"]
