from importlib.util import find_spec

import pytest
from hub_lora_sft.config import LoraSftConfig

from hub import ConfigError, DataError, RunConfig, compose
from hub.launch.preflight import check_paths, with_absolute_paths


def config(*overrides: str) -> RunConfig:
    return compose("algo=lora_sft", "model=tiny", "data=tiny", *overrides)


def test_defaults_follow_good_practice():
    algo = config().algo
    assert type(algo) is LoraSftConfig
    assert (algo.lora_r, algo.lora_alpha, algo.lora_dropout, algo.learning_rate) == (16, 32, 0, 2e-4)
    assert (algo.target_modules, algo.effective_batch_size, algo.init) == ("auto", 16, "default")
    assert config().problems() == []


def test_qlora_is_lora_on_four_bits():
    algo = config("algo=qlora_sft").algo
    assert type(algo) is LoraSftConfig
    assert algo.load_in_4bit
    assert not algo.load_in_8bit


@pytest.mark.parametrize("value", ["auto", "attention", "mlp", "all-linear", "[q_proj]", "[q_proj,v_proj]"])
def test_target_modules_are_a_word_or_a_list(value):
    assert config(f"algo.target_modules={value}").problems() == []


@pytest.mark.parametrize("value", ["q_proj", "[]", "[1]", "3", "all", "null", "{a:b}"])
def test_other_target_modules_are_refused(value):
    (line,) = config(f"algo.target_modules={value}").problems()
    assert line.startswith("algo.target_modules=")
    assert line.endswith("is not allowed. Allowed: auto, attention, mlp, all-linear, or a list like [q_proj,v_proj]")


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (
            ["algo.load_in_4bit=true", "algo.load_in_8bit=true"],
            ["algo.load_in_4bit and algo.load_in_8bit are both set"],
        ),
        (["algo.lora_alpha=0"], ["algo.lora_alpha=0.0 is not allowed"]),
        (["algo.lora_r=0"], ["algo.lora_r=0 is not allowed"]),
        (["algo.lora_dropout=1"], ["algo.lora_dropout=1.0 is not allowed. Allowed: a number at least 0 and below 1"]),
        (["algo.bias=some"], ["algo.bias=some is not allowed. Allowed: none, all, lora_only."]),
        (["algo.init=pisa"], ["algo.init=pisa is not allowed. Allowed: default, gaussian, orthogonal, pissa,"]),
        (["algo.init=eva"], ["algo.init=eva is not allowed. Allowed: default, gaussian,"]),
        (["algo.init=pissa_niter_4"], []),
        (["algo.protect=self", "algo.unfreeze_rank_ratio=0.25"], []),
        (
            ["algo.unfreeze_rank_ratio=0.25"],
            ["algo.unfreeze_rank_ratio has no effect without algo.protect. Type"],
        ),
        (["algo.protect_strength=56"], ["algo.protect_strength has no effect without algo.protect. Type"]),
        (
            ["algo.protect=self", "algo.unfreeze_rank_ratio=1"],
            ["algo.unfreeze_rank_ratio=1.0 protects nothing."],
        ),
        (["algo.protect=[none.jsonl,3]"], ["algo.protect=['none.jsonl', 3] is not allowed. Allowed: self, a file, the folder"]),
        (["algo.protect=3"], ["algo.protect=3 is not allowed. Allowed: self, a file, the folder of a run, or a list of these"]),
        (
            ["algo.protect=[self,tiny:chats]"],
            ["algo.protect=['self', 'tiny:chats']: self can't be combined with data. Type algo.protect=self, or leave it out"],
        ),
        (["algo.protect=none.jsonl"], ["algo.protect=none.jsonl"]),
        (
            ["algo.protect=self", "algo.use_dora=true"],
            ["algo.protect and algo.use_dora=true can't be combined: it would change what is protected."],
        ),
        (["algo.protect=self", "algo.init=pissa"], ["algo.protect and algo.init=pissa can't be combined"]),
        (["algo.protect=self", "algo.bias=all"], ["algo.protect and algo.bias=all can't be combined"]),
        (["algo.init=orthogonal", "algo.lora_r=7"], ["algo.init=orthogonal needs an even algo.lora_r, not 7"]),
        (["algo.use_dora=true", "algo.init=olora"], ["algo.use_dora and algo.init=olora can't be combined"]),
        (["algo.load_in_4bit=true", "algo.init=loftq"], ["algo.init=loftq needs unquantized weights"]),
        (["model=qwen3_8b_bnb_4bit", "algo.init=pissa"], ["algo.init=pissa needs unquantized weights"]),
        (
            ["model=qwen3_8b_bnb_4bit", "algo.load_in_8bit=true"],
            ["model.path=unsloth/Qwen3-8B-bnb-4bit is stored as bnb-4bit"],
        ),
        (
            ["algo=qlora_sft", "algo.precision=fp8", "model.dtype=float32", "algo.use_dora=true", "launch.strategy=fsdp"],
            [
                f"algo.precision=fp8 can't be combined with {other}. Type algo.precision=auto, or leave the other out"
                for other in ("algo.load_in_4bit=true", "algo.use_dora=true", "model.dtype=float32", "launch.strategy=fsdp")
            ],
        ),
        (["algo.precision=fp16"], ["algo.precision=fp16 is not allowed. Allowed: auto, fp8."]),
        (["algo.precision=fp8", "task=verify"], ["algo.precision=fp8 can't be verified"]),
    ],
)
def test_combinations_that_make_no_sense_are_refused(overrides, texts):
    needs_package = "algo.load_in_4bit and algo.load_in_8bit need bitsandbytes"
    cfg = config(*overrides)
    problems = [line for line in cfg.problems() if not line.startswith(needs_package)]
    assert len(problems) == len(texts)
    assert all(line.startswith(text) for line, text in zip(problems, texts, strict=True))
    assert len(with_absolute_paths(cfg).problems()) == len(cfg.problems())


def test_quantization_asks_for_its_package():
    is_asked = any("Type pip install bitsandbytes" in line for line in config("algo=qlora_sft").problems())
    assert is_asked == (find_spec("bitsandbytes") is None)


def test_a_run_that_left_nothing_to_protect_is_no_data(tmp_path):
    for name in ("run.yaml", "plan.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (problem,) = config(f"algo.protect={tmp_path}").problems()
    assert problem.startswith(f"algo.protect={tmp_path}: this run left nothing to protect. Type the folder of one with")
    (problem,) = config(f"algo.protect={tmp_path}/No").problems()
    assert problem.endswith("Type algo.protect=FILE, or algo.protect=self")
    with pytest.raises(DataError, match=r": this is the folder of a run, whose own files are no data"):
        check_paths(config(f"data.path={tmp_path}"))


@pytest.mark.parametrize(("installed", "lines"), [(False, ["algo.init=loftq needs scipy. Type pip install scipy"]), (True, [])])
def test_loftq_asks_for_scipy(monkeypatch, installed, lines):
    monkeypatch.setattr("hub_lora_sft.config.find_spec", lambda name: object() if installed else None)
    assert config("algo.init=loftq").problems() == lines


def test_a_wrong_type_is_refused():
    with pytest.raises(ConfigError, match=r"algo\.use_rslora=often is not allowed\. Allowed: true or false"):
        config("algo.use_rslora=often")
