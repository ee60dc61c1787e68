"""`python -m benchmarks families`: each preset has a row, and rows are measured once."""

import json
import re

import pytest
import yaml

from benchmarks import families
from benchmarks.families import Asked, Machine, cases_of, fitted, main, parameters_of
from benchmarks.family_shapes import FAMILIES, IN_FOUR_BITS, cut, is_mixture, tiny
from benchmarks.family_table import cells, markdown
from hub.config.option import conf_dir

ROOM = Machine(gpu="NVIDIA H100 80GB HBM3", gpu_bytes=80e9, disk_bytes=1e12)


def presets():
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in (conf_dir() / "model").glob("*.yaml")}


def test_each_preset_has_a_row_of_its_own_family_and_size():
    held = presets()
    assert held.keys() - {"tiny"} == FAMILIES.keys() | IN_FOUR_BITS.keys()
    for preset, other in IN_FOUR_BITS.items():
        assert held[preset]["notes"].split(" parameters")[0] == held[other]["notes"].split(" parameters")[0]
    for preset, config in FAMILIES.items():
        assert config["model_type"] == held[preset]["family"]
    for preset in ("yi_6b", "granite3_3_8b", "deepseek_v2_lite", "gpt_oss_20b", "qwen3_30b_a3b", "mixtral_8x7b"):
        said = float(re.match(r"([\d.]+)B parameters", held[preset]["notes"])[1])
        assert parameters_of(FAMILIES[preset]) / 1e9 == pytest.approx(said, abs=0.06), preset


@pytest.mark.parametrize("preset", ["gemma2_9b", "gpt_oss_20b", "qwen3_30b_a3b", "deepseek_v2_lite", "phi3_mini"])
def test_a_tiny_one_has_the_same_parts(preset):
    small = tiny(FAMILIES[preset])
    assert parameters_of(small) < 1e6
    assert is_mixture(small) == is_mixture(FAMILIES[preset])
    assert {name for name, value in FAMILIES[preset].items() if value} == {name for name, value in small.items() if value}


def test_what_does_not_fit_is_cut_to_an_even_number_of_layers_or_left_out_with_the_reason():
    whole = FAMILIES["mixtral_8x7b"]
    shorter = fitted(whole, 68e9, 2.0)
    assert 16 <= shorter["num_hidden_layers"] < 32
    assert shorter["num_hidden_layers"] % 2 == 0
    assert 2 * parameters_of(shorter) <= 68e9 < 2 * parameters_of(cut(whole, shorter["num_hidden_layers"] + 2))
    assert len(cut(FAMILIES["gpt_oss_20b"], 6)["layer_types"]) == 6
    cases = {case.name: case for case in cases_of("llama3_1_8b", Asked(out=None), ROOM)}
    assert list(cases) == [f"llama3_1_8b/{method}" for method in ("lora_sft", "qlora_sft", "sft", "osft")]
    assert cases["llama3_1_8b/lora_sft"].config == FAMILIES["llama3_1_8b"]
    assert cases["llama3_1_8b/sft"].left_out == "its state takes 120 GiB, the GPU has 75"
    assert [case.name for case in cases_of("llama3_1_8b", Asked(out=None, only=["8b/qlora"]), ROOM)] == [
        "llama3_1_8b/qlora_sft"
    ]


def test_rows_are_written_at_once_and_measured_again_only_if_they_failed(tmp_path, monkeypatch, capsys):
    runs, fails = [], {"smollm2_135m/sft"}

    def measured(case, contender, task, work, asked):
        runs.append((case.name, contender))
        row = {"name": case.name, "contender": contender, "title": contender, "loss": 6.2, "tokens_per_second": 1000.0}
        return row | ({"failure": "out of memory", "loss": None} if case.name in fails else {})

    monkeypatch.setattr(families, "measured", measured)
    monkeypatch.setattr(families, "plain_loss", lambda *args: (6.2001, ""))
    monkeypatch.setattr(families, "_make", lambda config, model, work: model.mkdir() or "")
    words = ["--out", str(tmp_path / "rows.jsonl"), "--tiny", "--only", "smollm2", "--folder", str(tmp_path)]
    assert main(words) == 1
    assert len(runs) == 4
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"name": "cut off by a k')
    fails.clear()
    assert main([*words, "--markdown", str(tmp_path / "table.md")]) == 0
    assert runs[4:] == [("smollm2_135m/sft", "ours")]
    assert main([*words, "--minutes", "0", "--beside", "unsloth"]) == 0
    assert len(runs) == 5
    table = (tmp_path / "table.md").read_text()
    assert table.count("| smollm2_135m |") == 4
    assert table in capsys.readouterr().out
    assert not list(tmp_path.glob("family-*"))


def test_a_row_says_what_a_reader_must_know():
    plan = {"packed": False, "packed_because": "they would see each other", "attention": "eager"}
    row = {
        "name": "a/lora_sft", "preset": "a", "method": "lora_sft", "contender": "ours", "title": "the hub", "layers": 4,
        "of_layers": 8, "tokens_per_second": 3000.0, "loss": 12.3, "plain_loss": 12.0, "first_step_seconds": 20.4,
        "second_first_step_seconds": 9.6, "second_loss": 12.30001, "experts": "yes", "gpu": "X", "date": "today",
        "plan": plan | {"layers_recomputed": 3, "num_layers": 4},
    }  # fmt: skip
    peer = row | {"contender": "unsloth", "title": "Unsloth", "tokens_per_second": 1500.0, "plan": {}, "plain_loss": None}
    assert cells(row, [row, peer]) == [
        "a (4 of 8 layers)", "lora_sft", "the hub", "3,000", "2.00", "", "", "20, then 10", "no: they would see each other",
        "eager", "yes", "12.3000, 12.0000 **differs by 2.5%**",
        "**the second run's first loss is 12.300010**; 3 of 4 layers checkpointed",
    ]  # fmt: skip
    assert cells(peer, [row, peer])[4] == ""
    assert markdown([peer, row], ["a"], {"b": "a"}).splitlines()[-1] == "X, today"


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python")
def test_a_family_trains_and_its_first_loss_is_that_of_plain_transformers(tmp_path):
    out = tmp_path / "rows.jsonl"
    pytest.importorskip("bitsandbytes")
    words = ["--out", str(out), "--tiny", "--again", "--folder", str(tmp_path)]
    assert main([*words, "--only", "gemma2_9b/lora", "gpt_oss_20b/qlora"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in rows] == ["gemma2_9b/lora_sft", "gpt_oss_20b/qlora_sft"]
    assert [row["experts"] for row in rows] == ["", "yes"]
    for row in rows:
        assert row["loss"] == row["second_loss"] == pytest.approx(row["plain_loss"], rel=2e-3)
        assert row["plan"]["attention"] == "eager"
        assert "isolation" in row["plan"]["timeline"]
