"""`hub show`: options by section with value, source and meaning, in 80 columns; some of them; as JSON."""

import json
import re


def by_name(out: str) -> dict[str, str]:
    """Option -> all that is printed about it, in one line."""
    found = re.findall(r"^  ([\w.]+) = (.*?)(?=^  \w|^\S|\Z)", out, re.MULTILINE | re.DOTALL)
    return {name: " ".join(f"{name} = {text}".split()) for name, text in found}


def test_show_prints_value_origin_and_meaning_of_each_option(hub):
    said = hub("show", "algo=qlora_sft", "model=llama3_8b", "algo.target_modules=[q_proj,v_proj]", "data.path=a[b].jsonl")
    lines = by_name(said.out)
    assert said.code == 0
    assert "conf/model/llama3_8b.yaml" in lines["model.path"]
    assert "plugin lora_sft: conf/algo/qlora_sft.yaml" in lines["algo.load_in_4bit"]
    assert lines["algo.lora_r"].startswith("algo.lora_r = 16 Rank of the adapters")
    assert "[q_proj,v_proj]" in lines["algo.target_modules"]
    assert "command line" in lines["algo.target_modules"]
    assert "a[b].jsonl" in lines["data.path"]


def test_show_says_what_would_be_refused(hub):
    said = hub("show", "algo=sft", "algo.learning_rate=0")
    assert said.code == 0
    assert "This can't run yet" in said.out
    for text in ("algo.learning_rate=0.0 is not allowed", "No model is chosen", "No training data is set"):
        assert text in said.out


def test_show_names_the_file_of_a_preset_of_ones_own(hub, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/small.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /algo: qlora_sft\n  - override /model: tiny\nalgo:\n  lora_r: 4\n"
    )
    said = hub("show", "--config-dir", "mine", "experiment=small", "algo.seed=3")
    lines = by_name(said.out)
    assert "mine/experiment/small.yaml" in lines["algo.lora_r"]
    assert "conf/algo/qlora_sft.yaml" in lines["algo.load_in_4bit"]
    assert "conf/model/tiny.yaml" in lines["model.path"]
    assert "command line" in lines["algo.seed"]


def test_show_fits_80_columns_and_has_a_section_for_each_part(hub):
    lines = hub("show", "algo=lora_sft", "model=llama3_8b", "data=tiny").out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if line and not line.startswith(" ")]
    starts = ["algo=lora_sft: LoRA", "model: The model", "data: Training", "launch: Processes", "track: Trackers"]
    starts += ["generate: How", "evaluate: What", "export: What the", "plan: What the", "The run"]
    assert [head for start in starts for head in heads if head.startswith(start)] == [*heads[:1], *heads[2:11]]


def test_show_takes_parts_of_names(hub):
    assert {name.split(".")[0] for name in by_name(hub("show", "algo=lora_sft", "algo.").out)} == {"algo"}
    assert set(by_name(hub("show", "algo=lora_sft", "model.pat", "lora_r").out)) == {"model.path", "algo.lora_r"}
    assert hub("show", "algo=lora_sft", "lora_rank").problems == [
        "show lora_rank: no option has this in its name. Did you mean lora_r or node_rank or lora_alpha? "
        "Type e.g. show algo. for a section"
    ]
    assert hub("show", "algo.lora_r").problems == [
        "show algo.lora_r: this is of an algorithm. Type algo=lora_dpo or algo=lora_sft as well"
    ]
    assert hub("show", "zzz").problems[0].endswith("For options of an algorithm type algo=NAME as well")


def test_show_as_json_has_values_of_their_types_and_the_problems(hub):
    said = json.loads(hub("show", "--json", "algo=lora_sft", "model=tiny", "algo.lora_r=4", "algo.learning_rate=0").out)
    options = {option["name"]: option for option in said["options"]}
    assert options["algo.lora_r"].items() >= {"value": 4, "default": 16, "source": "command line"}.items()
    assert options["data.mix"]["value"] == []
    assert "whole number" in options["algo.lora_r"]["allowed"]
    assert [line.split()[0] for line in said["problems"]] == ["algo.learning_rate=0.0", "No"]
