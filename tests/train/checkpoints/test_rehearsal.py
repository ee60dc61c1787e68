"""Before training it is tried whether the model can be saved."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import hub.train.setup.setup as setup
from hub import ModelError, compose
from hub.launch.launcher import launch
from hub.train.checkpoints import rehearsal


def train(folder, algo="sft"):
    options = ["data=tiny", "launch=inline", "model.dtype=float32", "algo.max_steps=1", "algo.effective_batch_size=4"]
    return launch(compose(f"algo={algo}", "model=tiny", f"output_dir={folder}", *options))


SERIALIZE = TypeError("Object of type set is not JSON serializable\nmore")
FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("error", "message"),
    [(SERIALIZE, "its model can't be saved: TypeError: Object of type set is not JSON serializable. Correct it in the base, "
                 "or type another model.path or algo"),
     (FULL, f"it can't be saved: SafetensorError: {FULL}. Type output_dir=FOLDER with a writable folder that has room")],
)  # fmt: skip
def test_a_model_that_cannot_be_saved_is_not_trained(tmp_path, monkeypatch, hub, error, message):
    def refuse(*ignored):
        raise error

    monkeypatch.setattr(setup, "save_whole_model", refuse)
    said = hub("data=tiny", "launch=inline", "algo=sft", "model.path=tiny:llama", "algo.max_steps=2", "run_name=r")
    assert said.code == 2
    assert said.problems == [f"model.path=tiny:llama is not trained, since {message}"]
    assert not (tmp_path / "runs/r/metrics.jsonl").exists()
    assert not (tmp_path / "runs/r/.rehearsal").exists()


def test_what_cannot_be_loaded_is_not_trained(tmp_path, monkeypatch):
    real = setup.save_whole_model

    def save(model, tokenizer, folder, *rest):
        real(model, tokenizer, folder, *rest)
        (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(setup, "save_whole_model", save)
    with pytest.raises(ModelError, match=r"what is saved of it can't be loaded: tokenizer_config\.json: "):
        train(tmp_path)


def changed(monkeypatch, **generation):
    """Loaded models get a generation config that their files do not have."""
    real = setup.load_causal_lm

    def load(*args):
        model = real(*args)
        vars(model.generation_config).update(generation)
        return model

    monkeypatch.setattr(setup, "load_causal_lm", load)


def test_a_generation_config_that_transformers_refuses_is_corrected(tmp_path, monkeypatch, capsys):
    changed(monkeypatch, temperature=0.7, pad_token_id=-1, length_penalty=2.0)
    result = train(tmp_path)
    assert (
        "generation_config.json is saved with no pad_token_id=-1 and do_sample=true, as temperature=0.7 needs it and no "
        "length_penalty=2.0: transformers refuses to save it as it is"
    ) in capsys.readouterr().out
    saved = json.loads((result.model_path / "generation_config.json").read_text())
    assert {name: saved.get(name) for name in ("do_sample", "temperature", "pad_token_id", "length_penalty")} == {
        "do_sample": True, "temperature": 0.7, "pad_token_id": None, "length_penalty": None,
    }  # fmt: skip


def test_a_generation_config_that_stays_refused_is_named(tmp_path, monkeypatch):
    changed(monkeypatch, max_new_tokens=0)
    with pytest.raises(ModelError, match=r"since its generation config can't be saved: ValueError: .*max_new_tokens.*but is 0"):
        train(tmp_path)


@pytest.mark.parametrize("algo", ["sft", "lora_sft", "osft"])
def test_a_large_model_is_tried_without_its_weights(tmp_path, monkeypatch, capsys, algo):
    read_back, seen = rehearsal.read_back, []

    def look(folder, trust):
        read_back(folder, trust)
        file, kind = ("adapter_model", "adapter_config") if algo == "lora_sft" else ("model", "config")
        seen.append({name: tensor.numel() for name, tensor in load_file(folder / f"{file}.safetensors").items()})
        assert {f"{kind}.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}

    monkeypatch.setattr(rehearsal, "SMALL_BYTES", 0)
    monkeypatch.setattr(rehearsal, "read_back", look)
    result = train(tmp_path, algo=algo)
    assert "the whole model is saved once" not in capsys.readouterr().out
    (file,) = result.model_path.glob("*.safetensors")
    saved = load_file(file)
    assert seen == [dict.fromkeys(saved, 0)]
    assert all(tensor.numel() for tensor in saved.values())
    assert save_file is rehearsal.safetensors.torch.save_file


def test_a_save_that_needs_the_weights_gets_them(tmp_path, monkeypatch, capsys):
    def save(model, tokenizer, folder, dtype, weights, base):
        folder.mkdir()
        torch.save({name: torch.from_numpy(tensor.numpy()) for name, tensor in weights.items()}, folder / "own.bin")

    monkeypatch.setattr(rehearsal, "SMALL_BYTES", 0)
    monkeypatch.setattr(setup, "save_whole_model", save)
    result = train(tmp_path)
    assert (result.status, [file.name for file in result.model_path.iterdir()]) == ("completed", ["own.bin"])
    assert "the whole model is saved once before training: its save can't be tried without data" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_changed_by_the_try(tmp_path, monkeypatch):
    with_it = train(tmp_path / "with")
    monkeypatch.setattr("hub.train.loop.rehearse_save", lambda *ignored: None)
    without = train(tmp_path / "without")
    first, second = (load_file(result.model_path / "model.safetensors") for result in (with_it, without))
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert with_it.train_loss == without.train_loss
