"""The engine gets the model with its template, its ends and its sampling, and ends with the command that started it."""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.config.generate import GenerateConfig
from hub.errors import LaunchError
from hub.tasks.serve import engines, serve
from hub.tasks.serve.engines import Served, command, takes_adapter

VLLM = """#!{python} -IS
import http.server, json, os, signal, sys
open({seen!r}, "w").write(json.dumps([sys.argv, {{name: open(os.path.join(sys.argv[2], name)).read() for name in
    ("generation_config.json", "chat_template.jinja")}}, sorted(os.listdir(sys.argv[2])), os.getpid()]))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
signal.signal(signal.SIGINT, lambda *_: (open({seen!r} + ".signal", "w"), os._exit(0)))
if {fails}: sys.exit(3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program vllm onto the path. Returns a function that makes it, and the file with what it saw."""
    folder, seen = tmp_path / "bin", tmp_path / "seen.json"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def make(fails: bool = False) -> Path:
        file = folder / "vllm"
        file.write_text(VLLM.format(python=sys.executable, seen=str(seen), fails=fails))
        file.chmod(0o755)
        return seen

    return make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_engine_gets_the_model_and_the_signal(hub, stub, tmp_path, monkeypatch):
    seen, port = stub(), free_port()
    answers = serve._answers

    def answers_then_stop(at):
        if answers(at):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            return True
        return False

    monkeypatch.setattr(serve, "_answers", answers_then_stop)
    said = hub("serve", "model=tiny", f"port={port}", "generate=factual", "name=my model", "data.template=plain")
    assert said.code == 130
    assert said.err.endswith("hub: the server was stopped\n")
    assert said.out.startswith(f"curl http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '")
    assert json.loads(said.out.partition("-d '")[2].rstrip("'\n"))["model"] == "my-model"
    words, files, names, process = json.loads(seen.read_text())
    assert words[1:6] == ["serve", words[2], "--host", "127.0.0.1", "--port"]
    assert words[words.index("--served-model-name") + 1] == "my-model"
    assert json.loads(words[words.index("--override-generation-config") + 1])["temperature"] == 0.1
    generation = json.loads(files["generation_config.json"])
    assert (generation["top_p"], generation["do_sample"], generation["eos_token_id"]) == (0.9, True, [2])
    assert "Assistant:" in files["chat_template.jinja"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert not Path(words[2]).exists()
    assert seen.with_name("seen.json.signal").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_mistakes_of_serve_are_one_line_each(hub, stub, monkeypatch):
    def line(*words):
        said = hub("serve", "model=tiny", *words)
        return said.code, next(text for text in said.err.splitlines() if text.startswith("hub: "))

    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert line() == (
        1,
        "hub: nothing that can serve a model is installed (transformers lacks fastapi, uvicorn, openai, pydantic). Type pip "
        "install vllm, or pip install 'transformers[serving]'",
    )
    assert "engine=vllm: there is no program vllm here" in line("engine=vllm")[1]
    assert "engine=transformers needs fastapi" in line("engine=transformers")[1]
    stub(fails=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = line(f"port={port}")
        assert (code, text.startswith(f"hub: port={port} can't be used (Address already in use). Type another one")) == (
            2,
            True,
        )
    assert "generate.stop and generate.batch_size are not for a server" in line("generate.stop=[a]")[1]
    assert line(f"port={free_port()}") == (1, "hub: vllm ended with exit code 3. What it says is above")


def test_an_adapter_is_given_to_an_engine_that_takes_it(tmp_path, monkeypatch):
    plain = {"peft_type": "LORA", "r": 24, "bias": "none", "use_dora": False, "modules_to_save": None}
    assert takes_adapter("vllm", plain)
    for change in ({"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"r": 512}, {"peft_type": "IA3"}):
        assert not takes_adapter("vllm", plain | change), change
    assert not takes_adapter("transformers", plain)
    served = Served(tmp_path / "one", 8000, GenerateConfig(seed=3), "bfloat16", tmp_path / "adapter", rank=24)
    words = " ".join(command("vllm", served))
    assert f"--enable-lora --lora-modules one={tmp_path}/adapter --max-lora-rank 32" in words
    assert "--served-model-name one-base" in words
    words = " ".join(command("transformers", served))
    assert "transformers.cli.transformers serve one --host 127.0.0.1 --port 8000 --default-seed 3 --dtype bfloat16" in words
    package = tmp_path / "transformers"
    (package / "cli").mkdir(parents=True)
    earlier = "force_model: Annotated[\n            str | None,\n            typer.Option(help='')] = None,"
    (package / "cli" / "serve.py").write_text(earlier)
    monkeypatch.setattr(engines, "find_spec", lambda name: SimpleNamespace(origin=str(package / "__init__.py")))
    assert " serve --force-model one --host" in " ".join(command("transformers", served))
    monkeypatch.setattr(engines, "vllm", lambda: None)
    assert engines.choose("auto") == "transformers"
    with pytest.raises(LaunchError):
        engines.choose("vllm")
