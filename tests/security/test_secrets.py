"""A secret in the environment shows up nowhere: no file, nothing printed, no tracker, no argv, in good runs and bad ones."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hub.config.schema import RunConfig
from hub.errors import ConfigError, DataError
from hub.secrets import secret_in, without_secrets
from hub.testing import write_chats

SECRETS = {
    "HF_TOKEN": "hf_canaryOneAbcdefghijklmnopqrstuvw",
    "WANDB_API_KEY": "canary-two-0123456789abcdef",
    "MLFLOW_TRACKING_PASSWORD": "canary;three'$(x)",
    "AWS_SECRET_ACCESS_KEY": "canary/four+0123456789",
}
URL = "https://someone:canary-five@example.invalid/chats.jsonl"
ODD = 'o\'dd $(touch canary) `touch canary`; touch canary && "x" #'
"""Harmless in a list of arguments; in a shell it would make the canary."""

# Stands in a backend of the run that fails.
LEAKY = f"""
import hub, os
from dataclasses import dataclass

@dataclass(kw_only=True)
class Config(hub.AlgoConfig):
    pass

def train(setup):
    raise RuntimeError("can't fetch {URL} with " + " ".join(os.environ[name] for name in {tuple(SECRETS)!r}))

@hub.hookimpl
def hub_algorithms():
    return [hub.Algorithm(name="leaky", config=Config, summary="fails")]

@hub.hookimpl
def hub_backends():
    return [hub.Backend(name="native", algorithm="leaky", build=__name__ + ":train")]
"""


def leaks(content: bytes) -> list[bytes]:
    """Secrets in some bytes, base64 forms included, as in a header."""
    plain = [value.encode() for value in [*SECRETS.values(), "canary-five"]]
    return [value for value in plain if value in content or base64.b64encode(value)[:-4] in content]


class Watch(threading.Thread):
    """Reads the arguments of all processes of the machine until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    self.seen.add(Path("/proc", pid, "cmdline").read_bytes())
                except OSError:
                    continue


def start(place: Path, *words: str, **env: str) -> tuple[subprocess.CompletedProcess[bytes], set[bytes]]:
    """A run of its own, which has nothing but `place` to write into."""
    own = {name: str(place / name.lower()) for name in ("HOME", "TMPDIR", "HF_HOME", "HUB_CACHE", "XDG_CACHE_HOME")}
    for folder in own.values():
        Path(folder).mkdir(exist_ok=True)
    own["PYTHONPYCACHEPREFIX"] = str(place.parent / "bytecode")  # of plugins of these tests, whose code has the secrets
    watch = Watch()
    watch.start()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "hub", *words],
            cwd=place, env={**os.environ, **SECRETS, **own, "OMP_NUM_THREADS": "1", **env}, capture_output=True,
            timeout=300, check=False,
        )  # fmt: skip
    finally:
        watch.stopped.set()
        watch.join()
    return done, watch.seen


def check_everything(place: Path, done: subprocess.CompletedProcess[bytes], seen: set[bytes]) -> None:
    assert any(str(place).encode() in arguments or b"-m\0hub" in arguments for arguments in seen)
    assert not [arguments for arguments in seen if leaks(arguments)]
    assert not leaks(done.stdout)
    assert not leaks(done.stderr)
    files = [file for file in place.rglob("*") if file.is_file()]
    assert not [(str(file), found) for file in files if (found := leaks(file.read_bytes() + str(file).encode()))]


@pytest.mark.slow
def test_a_full_run_in_a_hostile_folder_shows_no_secret_reaches_no_shell_and_imports_nothing_from_there(
    folder, tmp_path, canary
):
    place = tmp_path / ODD.replace("/", "")
    place.mkdir()
    shutil.move(folder, place / ODD)
    write_chats(place / f"{ODD}.jsonl", num_rows=8)
    for module in ("torch", "transformers", "safetensors", "json", "numpy", "sitecustomize", "hub"):
        (place / f"{module}.py").write_text(canary.module)
    quoted = ODD.replace('"', '\\"')
    options = ["algo=lora_sft", f'model.path="{quoted}"', f'data.path="{quoted}.jsonl"', "data.eval_fraction=0.25"]
    options += ["algo.max_steps=2", "algo.effective_batch_size=2", "algo.save_every_steps=1", "track=tensorboard"]
    done, seen = start(place, *options)
    assert done.returncode == 0, done.stderr.decode()
    assert any(b"hub.launch.worker" in arguments for arguments in seen)
    run = place / "runs" / "latest"
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    assert list(run.rglob("events.out.tfevents.*"))
    assert list(run.glob("checkpoints/*/state.json"))
    check_everything(place, done, seen)
    assert not canary.appeared()
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["process", "inline"])
def test_a_run_that_fails_with_a_secret_in_its_error_blacks_it_out(plugin_folder, tmp_path, mode):
    site = plugin_folder()
    site.add("leaky", LEAKY)
    place = tmp_path / "place"
    place.mkdir()
    options = ["algo=leaky", "model=tiny", f"data.path={write_chats(place / 'chats.jsonl', num_rows=4)}"]
    path = os.pathsep.join(filter(None, [str(site.path), os.environ.get("PYTHONPATH")]))
    done, seen = start(place, *options, f"launch.mode={mode}", PYTHONPATH=path)
    assert done.returncode == 1
    if mode == "process":
        (failure,) = (place / "runs/latest").glob("error-rank0.json")
        assert "RuntimeError: can't fetch https://***@example.invalid/chats.jsonl with *** *** *** ***" in failure.read_text()
    assert b"Traceback" in done.stderr
    assert b"in train" in done.stderr
    assert json.loads((place / "runs/latest/result.json").read_text())["error"].endswith("*** *** *** ***")
    check_everything(place, done, seen)


@pytest.mark.parametrize("secret", [URL, SECRETS["WANDB_API_KEY"], "hf_notInTheEnvironment0123456789"])
def test_options_that_hold_a_secret_are_refused_without_repeating_it(hub, monkeypatch, tmp_path, secret):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    names = ["data.path", "data.eval_path", "model.path", "model.revision", "track.project", "output_dir", "run_name"]
    options = ["algo=lora_sft", *(f"{name}={secret}" for name in names)]
    said = hub(*options)
    assert said.code == 2
    assert all(any(line.startswith(f"{name} holds ") for line in said.problems) for name in names)
    assert not list(tmp_path.iterdir())
    shown = hub("show", *options)
    assert shown.code == 0
    assert shown.out.count("***") >= len(names)
    for text in (said.out, said.err, shown.out, shown.err):
        assert secret not in text
        assert "canary-five" not in text


def test_a_secret_that_hydra_reads_from_the_environment_is_refused_too(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    said = hub("algo=lora_sft", "model=tiny", "data=tiny", "track.project=${oc.env:HF_TOKEN}")
    assert said.problems[0].startswith("track.project holds the value of HF_TOKEN, and options are written into")
    assert not (tmp_path / "runs").exists()


def test_what_is_a_secret(monkeypatch, tmp_path):
    for name in [name for name in os.environ if secret_in(os.environ[name])]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MY_API_KEY", "0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "tiny")
    monkeypatch.setenv("MONKEY", "chimpanzee")
    monkeypatch.setenv("SIGNING_KEY", str(tmp_path))
    harmless = f"tiny chimpanzee {tmp_path} me@example.org https://example.org/a@b s3://bucket/key HF_TOKEN"
    assert without_secrets(harmless) == harmless
    assert secret_in(harmless) is None
    assert without_secrets("a 0123456789 b ftp://me:it@x/y") == "a *** b ftp://***@x/y"
    assert secret_in("x0123456789x") == "the value of MY_API_KEY"


@pytest.mark.parametrize(
    "name",
    [
        "PGPASSWORD", "DB_PASS", "GITHUB_PAT", "MYSQL_PWD", "HFTOKEN", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_APIKEY",
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "REDIS_AUTH", "SENTRY_DSN", "azureClientSecret", "npm_config__authToken",
        "SLACK_BOT_TOKEN_2", "DOCKER_PASSWD", "GPG_PASSPHRASE", "GOOGLE_CREDENTIALS", "DATABASE_PASSWORD_OLD",
    ],
)  # fmt: skip
def test_a_secret_is_known_by_a_part_of_its_variables_name(monkeypatch, name):
    monkeypatch.setenv(name, "Correct-Horse-7")
    assert without_secrets("x Correct-Horse-7 y") == "x *** y"
    assert secret_in("x=Correct-Horse-7") == f"the value of {name}"


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "PWD",
        "OLDPWD",
        "MONKEY",
        "TOKENIZERS_PARALLELISM",
        "COMPASS",
        "PATTERN",
        "KEYBOARD",
        "AUTHOR",
        "PASSAGE",
        "HOME",
    ],
)
def test_other_variables_are_no_secrets(monkeypatch, name):
    monkeypatch.setenv(name, "Correct-Horse-7")
    assert without_secrets("x Correct-Horse-7 y") == "x Correct-Horse-7 y"


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "aB3" * 8, "ghp_" + "aB3" * 12, "github_pat_" + "aB3_" * 8, "glpat-" + "aB3-" * 6, "sk-" + "aB3" * 10,
        "sk-ant-" + "aB3" * 10, "AIza" + "aB3_d" * 7, "AKIA" + "ABCD" * 4, "xoxb-123456789-abcdef", "pypi-" + "aB3" * 10,
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_shape(secret):
    assert without_secrets(f"a '{secret}' b") == "a '***' b"
    assert secret_in(f"a {secret}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://b.s3.amazonaws.com/d.jsonl?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab12",
         "https://b.s3.amazonaws.com/d.jsonl?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("https://a.blob.core.windows.net/c/d?sv=2024&sig=Ab%2F1%3D", "https://a.blob.core.windows.net/c/d?sv=2024&sig=***"),
        ("https://x.org/d?api_key=abc&split=train", "https://x.org/d?api_key=***&split=train"),
        ("postgresql://me:it@db/x", "postgresql://***@db/x"),
        ("failed: PGPASSWORD=Correct-Horse psql", "failed: PGPASSWORD=*** psql"),
    ],
)  # fmt: skip
def test_keys_in_urls_and_printed_variables_are_blacked_out(text, shown):
    assert without_secrets(text) == shown
    assert secret_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "algo.max_tokens_per_gpu=16384000", "eos_token: <|im_end|>", "model.revision=" + "0123abcd" * 5, "a?b=c https://x.org/?q=1",
        "sk-learn task-force-oriented", "data.columns={messages: my_key_values}", "model.add_tokens=[<secret>]",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_secret_stays(text):
    assert without_secrets(text) == text
    assert secret_in(text) is None


def test_every_error_that_is_shown_is_blacked_out(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    for error in (DataError(f"x {SECRETS['HF_TOKEN']}"), ConfigError([f"x {SECRETS['HF_TOKEN']}"])):
        assert str(error) == "x ***"
    assert ConfigError(f"x {SECRETS['HF_TOKEN']}").problems == ["x ***"]
    assert SECRETS["HF_TOKEN"] not in "".join(RunConfig(run_name=f"a/{SECRETS['HF_TOKEN']}").problems())
