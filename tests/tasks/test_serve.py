"""The engine gets the model with its template, its ends and its sampling, and ends with the command that started it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.config.generate import GenerateConfig
from hub.errors import LaunchError
from hub.tasks.serve import engines, memory, processes, serve
from hub.tasks.serve.engines import Served, command, takes_adapter
from hub.tasks.serve.output import cause

FAILURE = """INFO starts
(VllmWorker-0 pid=7) ERROR 11-29 02:39:34 [multiproc_executor.py:953] Traceback (most recent call last):
(VllmWorker-0 pid=7) ERROR 11-29 02:39:34 [multiproc_executor.py:953]     raise ValueError(
(VllmWorker-0 pid=7) ERROR 11-29 02:39:34 [multiproc_executor.py:953] ValueError: Available memory on node 0 (16/23 GiB) is \
less than desired. Decrease `--gpu-memory-utilization`.
RuntimeError: Engine core initialization failed. See root cause above."""
"""What vLLM 0.32 wrote on a CPU, shortened."""

OTHER_BASE = {"init_lora_weights": "pissa"}

VLLM = """#!{python} -IS
import http.server, json, os, signal, sys, time
open({seen!r}, "w").write(json.dumps([sys.argv, {{name: open(os.path.join(sys.argv[2], name)).read() for name in
    ("generation_config.json", "chat_template.jinja")}}, sorted(os.listdir(sys.argv[2])), os.getpid()]))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
if {fails!r}:
    print({fails!r})
    sys.exit(3)
def worker(*_):  # as vLLM's own: it frees shared memory after the process that started it has ended
    time.sleep(0.4)
    open({seen!r} + ".worker", "w")
    os._exit(0)
if not os.fork():
    signal.signal(signal.SIGTERM, worker)
    while True: time.sleep(1)
def end(*_):
    open({seen!r} + ".signal", "w")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    os._exit(0)
signal.signal(signal.SIGINT, end)
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

    def make(fails: str = "") -> Path:
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
    said = hub(
        "serve",
        "model=tiny",
        f"port={port}",
        "generate=factual",
        "name=my model",
        "data.template=plain",
        "memory=0.5",
        "arguments=--max-model-len 64",
    )
    assert said.code == 130
    assert said.err.endswith("hub: the server was stopped\n")
    assert said.out.startswith(f"curl http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '")
    assert json.loads(said.out.partition("-d '")[2].rstrip("'\n"))["model"] == "my-model"
    words, files, names, process = json.loads(seen.read_text())
    assert words[1:6] == ["serve", words[2], "--host", "127.0.0.1", "--port"]
    assert words[words.index("--served-model-name") + 1] == "my-model"
    assert json.loads(words[words.index("--override-generation-config") + 1])["temperature"] == 0.1
    assert words[-4:] == ["--gpu-memory-utilization", "0.5", "--max-model-len", "64"]
    generation = json.loads(files["generation_config.json"])
    assert (generation["top_p"], generation["do_sample"], generation["eos_token_id"]) == (0.9, True, [2])
    assert "Assistant:" in files["chat_template.jinja"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert not Path(words[2]).exists()
    assert seen.with_name("seen.json.signal").exists()
    assert seen.with_name("seen.json.worker").exists()  # it was waited for
    assert not list(tmp_path.glob("hub-serve-*"))  # nothing is left, as nothing failed
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_mistakes_of_serve_are_one_line_each(hub, stub, monkeypatch, tmp_path):
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
    with monkeypatch.context() as installed:
        installed.setattr(engines, "NEEDS", ())
        assert "memory is for vLLM" in line("engine=transformers", "memory=0.5")[1]
    stub(fails=FAILURE)
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
    assert "arguments=--a 'b can't be split into words" in line('arguments="--a \'b"')[1]
    code, text = line(f"port={free_port()}", "memory=0.9")
    log = next(tmp_path.glob("hub-serve-*.log"))
    assert (code, text) == (
        1,
        "hub: vllm ended with exit code 3: ValueError: Available memory on node 0 (16/23 GiB) is less than desired. "
        f"Type memory= with a smaller share, or free memory. Its output: {log}",
    )
    assert log.read_text() == FAILURE + "\n"


def test_the_engine_ends_when_the_command_is_killed(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    starts = (
        "import os, signal, subprocess, sys, time\nfrom pathlib import Path\nfrom hub.tasks.serve.processes import guard\n"
        "engine = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, start_new_session=True)\n"
        f"guard(engine.pid, Path({str(folder)!r}))\nprint(engine.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    group = int(subprocess.run([sys.executable, "-c", starts], stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.exists()
    assert not processes._lives(group)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("usage: vllm serve\nvllm serve: error: unrecognized arguments: --x", "vllm serve: error: unrecognized arguments: --x"),
        (
            "p.ValidationError: 1 validation error for ModelConfig\n  Value error, 900 is above 8192.0. To allow it, set X.",
            "p.ValidationError: 1 validation error for ModelConfig: Value error, 900 is above 8192.0",
        ),
        (
            "ValueError: To serve one request with max seq len (131072), 9 GiB is needed. Based on the available memory, the "
            "estimated maximum model length is 7024. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`.",
            "ValueError: To serve one request with max seq len (131072), 9 GiB is needed. "
            "Type arguments='--max-model-len 7024', or another length",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
            "ValueError: No available memory for the cache blocks. Type memory= with a larger share, or free memory",
        ),
        ("INFO a ValueError: b is handled\nall is well", ""),
    ],
)
def test_the_first_error_in_an_engines_output_is_its_cause(said, expected, tmp_path):
    log = tmp_path / "log"
    log.write_text(said + "\n")
    assert cause(log) == expected


def test_memory_is_what_others_leave(monkeypatch):
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: True)
    for free, expected in ((96, None), (94, 0.91), (50, 0.47), (1, 0.01)):
        monkeypatch.setattr(
            memory.subprocess, "run", lambda *words, free=free, **others: SimpleNamespace(stdout=f"{free}, 100\n")
        )
        assert memory.share() == expected, free
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 50)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=100))
    assert memory.share() == 0.25


def test_an_adapter_is_given_to_an_engine_that_takes_it(tmp_path, monkeypatch):
    plain = {"peft_type": "LORA", "r": 24, "bias": "none", "use_dora": False, "modules_to_save": None}
    assert takes_adapter("vllm", plain)
    assert takes_adapter("vllm", plain | {"init_lora_weights": "gaussian", "use_bdlora": None})
    for change in (
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"r": 512},
        {"peft_type": "IA3"},
        OTHER_BASE,
    ):
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
