import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hydra.core.global_hydra import GlobalHydra

from hub import AlgoConfig, ConfigError
from hub.compose.compose import compose, groups, hydra_session, origins
from hub.compose.overrides import parse
from hub.launch.sweep import _set_options


def problems(*overrides: str, **values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(*overrides, **values)  # type: ignore[arg-type]
    return caught.value.problems


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("modle=tiny", "modle: there is no such option. Did you mean model?"),
        ("outputdir=x", "outputdir: there is no such option. Did you mean output_dir?"),
        ("foo=1", "foo: there is no such option. python -m hub show algo=NAME lists all."),
        ("+foo=1", "foo: there is no such option."),
        ("lora_r=8", "lora_r: there is no such option. Did you mean algo.lora_r?"),
        ("algo=sft lora_r=8", "lora_r: this algorithm has no such option; algo.lora_r is of algo=lora_dpo and algo=lora_sft"),
        ("algo=lora_sft epochs=3", "epochs: there is no such option. Did you mean algo.num_epochs?"),
        ("algo=lora_sft algo.lr=3", "algo.lr: there is no such option. Here it is algo.learning_rate"),
        ("algo=sft rank=8", "rank: this algorithm has no such option; algo.lora_r is of algo=lora_dpo and algo=lora_sft."),
        ("algo=sft algo.foo=8", "algo.foo: there is no such option. python -m hub show algo=sft lists all."),
        ("data.files=x", "data.files: there is no such option. Here it is data.path"),
        ("data.famly=x", "data.famly: there is no such option. Did you mean model.family?"),
        ("data.size=x", "data.size: there is no such option. python -m hub show"),
        ("algo.name=sft", "algo.name: there is no such option. A choice is written algo=NAME"),
        ("algo=LORA_SFT", "algo=LORA_SFT: there is no such algorithm. Did you mean lora_sft?"),
        ("algo=lora_sft algo.lora=8", "algo.lora: there is no such option. Did you mean algo.lora_r?"),
        ("algo=sft model.pth=x", "model.pth: there is no such option. Did you mean model.path?"),
        ("algo=sft datta.path=x", "datta.path: there is no such option. Did you mean data.path?"),
        ("algo.lora_r=8", "algo.lora_r: choose the algorithm first. Type algo=NAME, one of: lora_dpo, lora_sft"),
        ("algo=sft algo.lora_r=8", "algo.lora_r: this algorithm has no such option; algo.lora_r is of algo=lora_dpo and"),
        ("algo=lora", "algo=lora: there is no such algorithm. Did you mean lora_sft or lora_dpo or qlora_sft?"),
        ("algo=rloo", "algo=rloo: there is no such algorithm. Installed: dpo, lora_dpo, lora_sft, osft, osft_dpo, sft."),
        ("model=llama3_8", "model=llama3_8: there is no such preset. Did you mean llama3_8b"),
        ("model=Llama-3.1-8b", "model=Llama-3.1-8b: there is no such preset. Did you mean llama3_1_8b"),
        ("model=./llama3_8b", "model=./llama3_8b: there is no such preset. For a file, a folder"),
        ("model=zzz", "model=zzz: there is no such preset. Allowed: deepseek_v2_lite, gemma2_9b,"),
        ("model=org/name", "model=org/name: there is no such preset. For a file, a folder or an id of the model hub"),
        ("data=a.jsonl", "data=a.jsonl: there is no such preset. For a file, a folder or an id of the model hub"),
        ("launch=locla", "launch=locla: there is no such preset. Did you mean local?"),
        ("algo=[sft,lora_sft]", "algo=[sft,lora_sft]: name one preset. Type algo=NAME, and algo.OPTION=VALUE"),
        ("model={path:x}", "model={path:x}: name one preset."),
        ("algo@x=sft", "algo@x: a choice can't be put elsewhere. Type algo=sft"),
        ("~model.path", "~model.path: an option can't be removed. Type model.path=VALUE or leave it out"),
        ("hydra.run.dir=x", "hydra.run.dir: Hydra's own options are for sweeps. Add --multirun, or leave it out"),
        ("algo=sft,lora_sft", "algo=sft,lora_sft has several values. Add --multirun for a run with each"),
        ("data.path=a,b", "data.path=a,b has several values. Add --multirun for a run with each; to train on all of them "
                          "type data.mix=[{path:a},{path:b}]"),
        ("data.eval_path=a,b", "data.eval_path=a,b has several values. Add --multirun for a run with each; a text 'data"),
        ("algo=lora_sft algo.target_modules=q,v", "algo.target_modules=q,v has several values. Add --multirun for a run with "
                                                  "each; a list is written algo.target_modules=[q,v], a text"),
        ("algo=sft algo.max_steps=1,2", "algo.max_steps=1,2 has several values. Add --multirun for a run with each"),
        ("evaluate.metrics=[f1],[chrf]", "evaluate.metrics=[f1],[chrf] has several values. Add --multirun for a run with each"),
        ("evaluate.metrics=choice(f1,chrf)", "evaluate.metrics=choice(f1,chrf) has several values. Add --multirun"),
        ("evaluate.metrics=[[f1]]", "evaluate.metrics=[[f1]] is not allowed. Allowed: a text, or a list like [\"A\",\"B\"]"),
        ("evaluate.metrics=", "evaluate.metrics= is not allowed. Allowed: a text, or a list like"),
        ("data.mix=a", "data.mix=a is not allowed. Allowed: a list of {path,"),
        ("algo=lora_sft algo.lora_r=x", "algo.lora_r=x is not allowed. Allowed: a whole number"),
        ("algo=lora_sft algo.lora_r=8.5", "algo.lora_r=8.5 is not allowed. Allowed: a whole number"),
        ("algo=lora_sft algo.lora_r=null", "algo.lora_r=null is not allowed. Allowed: a whole number"),
        ("algo=lora_sft algo.use_dora=maybe", "algo.use_dora=maybe is not allowed. Allowed: true or false"),
        ("algo=sft algo.learning_rate=", "algo.learning_rate= is not allowed. Allowed: a number"),
        ("algo=sft algo.effective_batch_size=1.5", "algo.effective_batch_size=1.5 is not allowed. Allowed: a whole"),
        ("algo=sft algo.max_steps=many", "algo.max_steps=many is not allowed. Allowed: a whole number or null"),
        ("data.path=[a,b]", "data.path=[a,b] is not allowed. Allowed: a text. Several sources are written data.mix=[{path: A}"),
        ("data.columns=a", "data.columns=a is not allowed. Allowed: names with a text for each, like {A: B}"),
        ("data.path=???", "data.path=??? is not allowed. Allowed: a text"),
        ("data.path=${nope}", "data.path: Interpolation key 'nope' not found"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_nearest_words(words, text):
    found = problems(*words.split())
    assert found[0].startswith(text)
    assert all("\n" not in line for line in found)


def test_all_mistakes_are_found_at_once_and_only_real_ones():
    found = problems(
        "algo=lora_sft", "model=tinny", "algo.lora_r=x", "algo.lora_alpha=0", "data.eval_fraction=7",
        "launch.mode=proces", "algo.lr=1", "data.path=a.jsonl",
    )  # fmt: skip
    assert [line.split(":")[0].split("=")[0] for line in found] == [
        "model", "algo.lora_r", "algo.lr", "algo.lora_alpha", "data.eval_fraction", "launch.mode",
    ]  # fmt: skip


def test_options_of_an_unknown_algorithm_are_not_called_unknown():
    assert len(problems("algo=ppo", "algo.clip=0.2", "model=tiny", "data=tiny")) == 1


@pytest.mark.parametrize(
    "words", ["experiment=null", "model=null", "algo=null", "~algo", "launch=null", "model=tiny model=null"]
)
def test_nothing_can_be_chosen(words):
    cfg = compose("algo=sft", *words.split())
    assert cfg.model.path == ""
    assert (type(cfg.algo) is AlgoConfig) == ("algo" in words)
    assert "model.path" not in origins("algo=sft", *words.split())


@pytest.mark.parametrize(
    "name",
    [
        "my chats.jsonl", "chats (1).jsonl", "O'Brien.jsonl", "a=b.jsonl", "größe.jsonl", 'a"b.jsonl', "a\\",
        "#1.jsonl", "{x}.jsonl", "1e5", "007", "true",
    ],
)  # fmt: skip
def test_a_text_is_taken_as_it_was_typed(name):
    assert compose(f"data.path={name}").data.path == name
    assert compose(values={"data": {"path": name}}).data.path == name


def test_quotes_lists_numbers_and_interpolations_are_hydras():
    cfg = compose(
        "algo=lora_sft", 'data.path="a,b.jsonl"', "algo.target_modules=[q_proj, v_proj]", "algo.learning_rate=1e-3",
        "++algo.lora_r=4", "model.path=${data.path}", "algo.max_grad_norm=null",
    )  # fmt: skip
    assert cfg.data.path == cfg.model.path == "a,b.jsonl"
    assert (cfg.algo.target_modules, cfg.algo.learning_rate, cfg.algo.lora_r) == (["q_proj", "v_proj"], 1e-3, 4)
    assert cfg.algo.max_grad_norm is None


def test_a_single_value_or_several_with_commas_are_a_list():
    words = ["evaluate.metrics=f1", "evaluate.also=1e3,007", "evaluate.tasks=[1e3,true]", "model.add_tokens=x",
             "generate.stop=a b,c", "data.mix={path: a},{path: b}", "algo=lora_sft", "algo.modules_to_save=norm"]  # fmt: skip
    cfg = compose(*words)
    assert (cfg.evaluate.metrics, cfg.evaluate.also, cfg.evaluate.tasks) == (["f1"], ["1e3", "007"], ["1e3", "true"])
    assert (cfg.model.add_tokens, cfg.generate.stop, cfg.algo.modules_to_save) == (["x"], ["a b", "c"], ["norm"])
    assert [source.path for source in cfg.data.mix] == ["a", "b"]
    assert [source.path for source in compose("data.mix={path: a}").data.mix] == ["a"]
    assert compose("evaluate.metrics='a,b'").evaluate.metrics == ["a,b"]
    assert compose(values={"evaluate": {"metrics": "f1"}}).evaluate.metrics == ["f1"]


def test_a_sweep_gives_hydra_lists():
    with hydra_session() as loader:
        words = ["algo.modules_to_save=norm,lm_head", "evaluate.also=1e3", "evaluate.metrics=[a],[b]", "algo.lora_r=1,2",
                 "data.mix={path:a}"]  # fmt: skip
        assert _set_options(loader, parse(words, loader)) == [
            'algo.modules_to_save=["norm"],["lm_head"]', 'evaluate.also=["1e3"]', "evaluate.metrics=[a],[b]",
            "algo.lora_r=1,2", "data.mix=[{path:a}]"]  # fmt: skip


def test_nested_values_come_last_and_are_checked_like_overrides():
    values = {"algo": {"lora_r": 4, "target_modules": ["q_proj"]}, "output_dir": "there"}
    cfg = compose("algo=lora_sft", "algo.lora_r=8", values=values)
    assert (cfg.algo.lora_r, cfg.algo.target_modules, cfg.output_dir) == (4, ["q_proj"], "there")
    wrong = {"algo": {"lora_r": "x", "use_dora": 7.5}, "data": {"pth": "x"}}
    found = problems("algo=lora_sft", values=wrong)
    assert [line.split()[0] for line in found] == ["algo.lora_r=x", "algo.use_dora=7.5", "data.pth:", "No"]  # model


def test_presets_of_ones_own_come_first_and_their_mistakes_are_one_line(tmp_path):
    files = {
        "model/mine.yaml": "path: a/b\n",
        "model/badkey.yaml": "pth: a/b\n",
        "model/broken.yaml": "path: [a\nfoo: }\n",
        "model/tiny.yaml": "path: tiny:qwen3\n",
        "algo/noalgo.yaml": "lora_r: 4\n",
        "algo/low.yaml": "defaults: [lora_sft]\nlora_r: 4\n",
        "algo/badvalue.yaml": "defaults: [lora_sft]\nlora_r: four\n",
        "experiment/bad.yaml": "# @package _global_\ndefaults:\n  - override /model: nope\n  - /data: tiny\n",
        "experiment/typo.yaml": "# @package _global_\ndefaults:\n  - override /algo: lora_sft\nalgo: {lora_rr: 4}\nrunname: x",
        "experiment/single.yaml": "# @package _global_\nevaluate: {metrics: f1}\n",
        "experiment/list.yaml": "# @package _global_\nevaluate: {metrics: [f1]}\ndata: {pth: x, mix: [{path: a}]}\n",
        "experiment/bare.yaml": "algo: {lora_r: 4}\n",
        "experiment/relative.yaml": "# @package _global_\ndefaults:\n  - override model: tiny\n",
        "recipe/short.yaml": "# @package _global_\nalgo:\n  max_steps: 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    here = str(tmp_path)
    assert compose("model=mine", config_dir=here).model.path == "a/b"
    assert compose("model=tiny", config_dir=here).model.path == "tiny:qwen3"
    assert compose("algo=low", config_dir=here).algo.lora_r == 4
    assert groups(here)["recipe"] == ["short"]
    for word in ("recipe=short", "+recipe=short"):  # a group that the hub does not know
        assert compose("algo=sft", word, config_dir=here).algo.max_steps == 3
    for word, text in {
        "model=badkey": "model/badkey.yaml: model.pth: there is no such option. Did you mean model.path?",
        "model=broken": "model/broken.yaml: line 2: this is not YAML (expected ',' or ']', but got ':')",
        "algo=noalgo": "algo=noalgo: this preset names no algorithm. Its file must begin with: defaults: [NAME], one of:",
        "algo=badvalue": "algo/badvalue.yaml: algo.lora_r=four is not allowed. Allowed: a whole number",
        "experiment=bad": "experiment/bad.yaml: model=nope: there is no such preset. Allowed: ",
        "experiment=typo": "experiment/typo.yaml: algo.lora_rr: there is no such option. Did you mean algo.lora_r?",
        "experiment=bare": "experiment/bare.yaml: the first line of an experiment is: # @package _global_. Without it",
        "experiment=relative": "experiment/relative.yaml: model: a choice is written - override /model: tiny",
        "experiment=single": "experiment/single.yaml: evaluate.metrics=f1 is a list in a preset. Write [f1]",
        "experiment=list": "experiment/list.yaml: data.pth: there is no such option.",
    }.items():
        found = problems(word, config_dir=here)
        assert found[0].removeprefix(f"{here}/").startswith(text)
        assert not [line for line in found if "\n" in line or "Hydra" in line or "raised while" in line]
    bad, typo = (problems(f"experiment={name}", config_dir=here) for name in ("bad", "typo"))
    assert bad[1] == f"{here}/experiment/bad.yaml: data: a choice is written - override /data: tiny"
    assert typo[1] == f"{here}/experiment/typo.yaml: runname: there is no such option. Did you mean run_name or resume?"


def test_a_preset_without_its_algorithm_says_what_its_file_needs(tmp_path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo/fast.yaml").write_text("learning_rate: 1e-3\n")
    (line, *_) = problems("algo=fast", config_dir=str(tmp_path))
    assert line.startswith("algo=fast: this preset names no algorithm. Its file must begin with: defaults: [NAME], one of:")


def test_a_hydra_app_around_us_keeps_its_state():
    around = object()
    GlobalHydra.instance().hydra = around  # type: ignore[assignment]
    try:
        compose("algo=sft")
        assert GlobalHydra.instance().hydra is around
    finally:
        GlobalHydra.instance().hydra = None


def test_threads_compose_at_once():
    interval, begin = sys.getswitchinterval(), threading.Barrier(4)

    def rate(number: int) -> float:
        begin.wait()
        return compose("algo=sft", "model=tiny", f"algo.learning_rate={number + 1}").algo.learning_rate

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(rate, range(16))) == [number + 1 for number in range(16)]
    finally:
        sys.setswitchinterval(interval)
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(("resumed", "folder"), [("runs/one", "runs/one"), ("latest", "runs/latest")])
def test_an_option_of_an_algorithm_beside_resume_says_how_it_is_changed(resumed, folder):
    with pytest.raises(ConfigError) as refused:
        compose(f"resume={resumed}", "algo.lora_r=4")
    assert str(refused.value) == (
        f"algo.lora_r: resume={resumed} without algo=NAME takes all options from the run. To change some type python -m hub "
        f"{folder}/run.yaml resume={resumed} algo.lora_r=VALUE resume_with_changes=true"
    )
