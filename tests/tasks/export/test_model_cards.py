"""Model cards: what they say is what the run has, nothing is guessed, and nothing of this machine gets into them."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml

import hub
from hub.config.schema import ModelConfig, RunConfig
from hub.models.finished import Asked, finished_adapter
from hub.tasks.export.card import card_text, write_card, write_cards
from hub.tasks.export.card_facts import Facts, facts_of, facts_of_run
from hub.tasks.export.card_private import hub_id, shown, without_machine
from hub.tasks.export.job import Delivered
from hub.tasks.export.verb import ExportOptions
from hub.tasks.report.record import read_record
from hub.testing import tiny_model_path, write_chats

PERSON = "jane-doe-43"
"""Name of a folder, as that of a user would be."""

TOKEN = "hf_canaryInTheEnvironment0123456789"
KEY = "canary-key-0123456789"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """An adapter, trained and measured below the folder of a person, with secrets in the environment."""
    place = tmp_path_factory.mktemp(PERSON)
    base = Path(shutil.copytree(tiny_model_path("llama"), place / "own-base"))
    (base / "README.md").write_text("---\nlicense: llama3\nlicense_name: own\n---\n# Base\n")
    data = place / "chats"
    data.mkdir()
    write_chats(data / "train.jsonl", num_rows=8)
    (data / "README.md").write_text("---\nlicense: [cc-by-4.0, mit]\n---\n")
    template = place / "template.jinja"
    template.write_text((base / "chat_template.jinja").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("WANDB_API_KEY", KEY)
        found = hub.lora_sft(
            model=base, data=data, output_dir=place / "runs", run_name="tuned", max_steps=2, effective_batch_size=4,
            eval_fraction=0.25, dtype="float32", mode="inline", template=template, learning_rate=0.01,
            evaluate={"retention": "auto", "limit": 4},
        )  # fmt: skip
    return found.run_path


def parts(card: str) -> tuple[dict, str]:
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text


def rows(text: str, first: str) -> list[str]:
    """The cells of the row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def clean(text: str, place: Path) -> bool:
    return not any(word in text for word in (PERSON, str(place.parent), TOKEN, KEY, socket.gethostname(), "runs/"))


def test_the_end_of_training_writes_a_card_of_what_the_run_has(run):
    card = (run / "model/README.md").read_text()
    values, text = parts(card)
    assert values == {
        "library_name": "peft", "pipeline_tag": "text-generation", "license": "llama3", "license_name": "own",
        "tags": ["finetune-hub", "lora_sft"],
    }  # fmt: skip
    result, plan = (json.loads((run / f"{name}.json").read_text()) for name in ("result", "plan"))
    assert rows(text, "steps")[1] == "2 of 4 samples"
    assert rows(text, "held-out loss")[1] == f"{result['eval_loss_before']:.4f} before, {result['eval_loss']:.4f} after"
    counts = plan["data"]["train"]
    numbers = [f"{counts[name]:,}" for name in ("num_rows", "num_samples", "num_tokens", "num_loss_tokens")]
    assert rows(text, "training") == ["training", *numbers]
    assert rows(text, "`chats`") == ["`chats`", "training", "cc-by-4.0, mit"]
    assert rows(text, "`algo.learning_rate`") == ["`algo.learning_rate`", "`0.01`", "`0.0002`"]
    assert rows(text, "`data.template`")[1] == "`template.jinja`"
    assert "output_dir" not in text
    measured = json.loads((run / "evaluation.json").read_text())["rows"]
    (loss,) = [row for row in measured if (row["set"], row["metric"]) == ("held-out", "loss")]
    change = loss["difference"]
    line = next(line for line in text.splitlines() if "held-out: loss" in line)
    after, before = (f"{value['value']:.4g}" for value in loss["values"])
    assert f"| {before} | {after} | {change['value']:+.4g} [{change['low']:.4g}, {change['high']:.4g}] |" in line
    assert line.startswith("| learnt |" if change["high"] < 0 else "| no change |")
    assert "PeftModel.from_pretrained(base, '.')" in text
    assert clean(card, run.parent)
    assert "More Information Needed" not in card


@pytest.mark.slow
def test_every_export_gets_a_card_with_its_check_and_one_that_failed_says_so_first(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = hub.export(run=run, to=["merged"], dtype="float32")
    (one,) = found.exports
    values, text = parts((one.path / "README.md").read_text())
    assert (values["library_name"], values["license"]) == ("transformers", "llama3")
    cells = rows(text, "`merged`")
    assert cells[2:5] == [f"{one.check['kl']:.3g}", f"{one.check['ratio']:.3g}", "share 0.01"]
    assert cells[-1] == "passed"
    assert one.check["reader"] in cells[-2]
    for file in [*one.path.rglob("*.json"), *one.path.rglob("*.md"), *one.path.rglob("*.jinja")]:
        assert clean(file.read_text(), run.parent), file

    def base_alone(self, folder):
        shutil.copytree(run.parents[1] / "own-base", folder, dirs_exist_ok=True)
        return folder

    monkeypatch.setattr("hub.tasks.export.tuned.Tuned.merge", base_alone)
    found = hub.export(run=run, to=["merged"], dtype="float32", force=True, out=tmp_path)
    (one,) = found.exports
    assert not one.passed
    _, text = parts((one.path / "README.md").read_text())
    assert text.splitlines()[3].startswith(f"> **Warning:** `{one.path.name}` is **not the model that was trained**. It is ")
    assert rows(text, f"`{one.path.name}`")[-1] == "**failed**"


def test_an_adapter_without_a_run_says_what_is_not_known(run, tmp_path):
    folder = Path(shutil.copytree(run / "model", tmp_path / "alone"))
    finished = finished_adapter(folder, ModelConfig())
    write_card(folder, facts_of(Asked(options=ExportOptions(), cfg=RunConfig(), finished=finished)))
    values, text = parts((folder / "README.md").read_text())
    assert values["tags"] == ["finetune-hub"]
    assert "data, steps and losses are not known" in text
    assert clean(text, run.parent)


def facts(**values) -> Facts:
    given = {"base": "org/base", "base_id": "org/base", "revision": "0a1b", "license": {}, "license_files": (), "trained": True}
    return Facts(**given | values)


def test_the_relation_to_the_base_and_what_to_type_are_those_of_the_files(tmp_path):
    def metadata(names: dict[str, str], **values) -> tuple[dict, str]:
        for name, content in names.items():
            (tmp_path / name).write_text(content)
        kind = "q4_k_m" if any(name.endswith("gguf") for name in names) else "w4a16"
        one = Delivered(exporter="gguf" if kind[0] == "q" else "compressed", kind=kind, path=tmp_path, num_bytes=1, seconds=0.0)
        found = parts(card_text(facts(**values), {name: tmp_path / name for name in names}, [one]))
        return found

    adapter = {"adapter_config.json": "{}"}
    values, text = metadata(adapter)
    assert (values["base_model"], values["base_model_relation"], values["library_name"]) == ("org/base", "adapter", "peft")
    assert "AutoModelForCausalLM.from_pretrained('org/base', revision='0a1b')" in text
    assert "vllm serve org/base --enable-lora" in text
    values, _ = metadata(adapter, base="own", base_id=None)
    assert "base_model" not in values, "the model hub refuses a base that is no id"
    values, text = metadata({"m-q4_k_m.gguf": ""})
    assert (values["base_model_relation"], "library_name" in values) == ("finetune", False)
    assert "llama-cli -m m-q4_k_m.gguf -cnv" in text
    assert metadata({"m-q4_k_m.gguf": ""}, trained=False)[0]["base_model_relation"] == "quantized"
    values, text = metadata({"config.json": '{"quantization_config": {"quant_method": "compressed-tensors"}}'})
    assert "compressed-tensors" in values["tags"]
    assert ("vllm serve ." in text, "AutoModel" in text) == (True, False)
    assert "ollama create mymodel -f Modelfile" in metadata({"Modelfile": "FROM ./m.gguf"})[1]


def test_cards_lie_where_each_export_does(tmp_path):
    final, made = tmp_path / "final", tmp_path / "made"
    (made / "w4a16").mkdir(parents=True)
    (made / "w4a16/config.json").write_text("{}")
    (made / "m.gguf").write_bytes(b"")
    (made / "README.md").write_text("the base's")
    places = ("w4a16", "m.gguf")
    exports = [Delivered(exporter="x", kind=kind, path=final / kind, num_bytes=1, seconds=0.0) for kind in places]
    write_cards(made, final, facts(), exports)
    assert "`m.gguf`" in (made / "README.md").read_text()
    assert "`w4a16`" in (made / "w4a16/README.md").read_text()


def test_paths_become_names_and_ids_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", KEY)
    for path, name in {
        "/home/jane/data/own.jsonl": "own.jsonl",
        "~/models/llama": "llama",
        "../x/y/": "y",
        str(tmp_path): tmp_path.name,
        "/home/jane/metrics.py:right": "metrics.py:right",
        "C:\\Users\\jane\\a.jsonl": "a.jsonl",
        "/root/.cache/hub/models--org--base/snapshots/0a1b": "org/base",
        "org/base": "org/base",
        "tiny:llama": "tiny:llama",
        KEY: "***",
        "https://me:secret@host/x": "https://***@host/x",
    }.items():
        assert shown([{"a": path}]) == [{"a": name}]
    kept = "loss in nats/token, see https://huggingface.co/org/base and org/base/a, 1/2"
    assert without_machine(kept) == kept
    assert without_machine("read /home/jane/x.json, then '/opt/llama.cpp/convert.py'") == "read x.json, then 'convert.py'"
    assert [hub_id(path) for path in ("org/base", "/x/y", "tiny:llama", "a", str(tmp_path))] == ["org/base", *[None] * 4]


def test_a_run_folder_that_was_moved_or_damaged_gets_no_card_and_no_error(run, tmp_path):
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    assert facts_of_run(read_record(moved)) is not None
    (moved / "evaluation.json").write_text('{"rows": [{"set": 3, "values": [null], "difference": {"low": "x"}}], "models": 3}')
    (moved / "plan.json").write_text('{"data": {"train": {"num_rows": 1}, "sources": [1]}}')
    found = facts_of_run(read_record(moved))
    assert found is not None
    text = card_text(found, {})
    assert "## Training" in text
    assert "kept" not in text
    (moved / "result.json").unlink()
    assert facts_of_run(read_record(moved)) is None
