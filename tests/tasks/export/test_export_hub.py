"""`export to=hub`, against a stand-in for the model hub: who may see what is pushed, what gets there, and what is refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tasks.export.model_hub import FINE, READS, WRITES, ModelHub

import hub
from hub import ConfigError, HubError
from hub.config.export import ExportConfig
from hub.config.schema import ModelConfig, RunConfig
from hub.errors import ModelError
from hub.models.finished import Asked, Finished
from hub.tasks.export.export import problems_of
from hub.tasks.export.hub.content import of_exports, stale
from hub.tasks.export.hub.push import push
from hub.tasks.export.hub.repository import PushError, ready
from hub.tasks.export.job import Delivered, Job
from hub.tasks.export.verb import ExportOptions
from hub.testing import tiny_model_path, write_chats

PERSON = "jane-doe-42"
"""Name of a folder, as that of a user would be."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run of an adapter on a base in a folder, all below the folder of a person."""
    place = tmp_path_factory.mktemp(PERSON)
    base = Path(shutil.copytree(tiny_model_path("llama"), place / "own-base"))
    data = write_chats(place / "chats.jsonl", num_rows=8)
    options = {"max_steps": 1, "effective_batch_size": 4, "eval_fraction": 0.25, "dtype": "float32", "mode": "inline"}
    return hub.lora_sft(model=base, data=data, output_dir=place / "runs", run_name="tuned", **options).run_path


@pytest.fixture
def model_hub(monkeypatch, tmp_path):
    """The stand-in, with a token that may write."""
    from huggingface_hub import constants

    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    server = ModelHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("hub.tasks.export.hub.push.WAITS", (0.0,))
    monkeypatch.setenv("HF_TOKEN", WRITES)
    yield server
    server.shutdown()
    server.server_close()


def asked(folder: Path | None, **options) -> Asked:
    cfg = replace(RunConfig(), export=ExportConfig(**{"to": ["hub"], "repo": "me/x"} | options))
    base = ModelConfig(path="org/base")
    finished = Finished(name="tuned", base=base, adapter=folder, before=base)
    return Asked(options=ExportOptions(), cfg=cfg, finished=finished)


def job(wanted: Asked, out: Path, **values) -> Job:
    nothing = {"merged": None, "settings": None, "let_go": None, "rows": list, "tokenizer": None, "done": {}, "say": print}
    return Job(asked=wanted, out=out, final=out, **nothing | values)


@pytest.fixture
def adapter(tmp_path) -> Path:
    """Two large files and a small one, and what training leaves."""
    folder = tmp_path / "adapter-folder"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "some-base"), "r": 4}))
    for name in ("adapter_model.safetensors", "tokenizer.json", "optimizer.safetensors", "trainer_state.json", ".partial-x"):
        (folder / name).write_text(f'"{name}"')
    return folder


def everything(files: dict[str, bytes]) -> bytes:
    return b"".join(name.encode() + content for name, content in files.items())


@pytest.mark.slow
def test_a_merged_model_and_then_its_adapter_are_pushed_privately_and_without_a_trace_of_the_machine(run, model_hub, capsys):
    found = hub.export(run=run, to=["merged", "hub"], repo="me/tuned", dtype="float32")
    files = model_hub.repos["me/tuned"]
    assert model_hub.private == {"me/tuned": True}
    merged = {path.name: path.read_bytes() for path in found.exports[0].path.iterdir()}
    assert {name: files[name] for name in merged if name != "README.md"} == {
        k: v for k, v in merged.items() if k != "README.md"
    }
    card = files["README.md"].decode()
    assert "AutoModelForCausalLM.from_pretrained('me/tuned')" in card
    assert "| `merged` |" in card
    assert f"{model_hub.address}/me/tuned (private), commit " in repr(found)
    record = json.loads((run / "exports/hub/pushed.json").read_text())
    assert (record["private"], record["files"]) == (True, sorted(merged))

    sent = len(model_hub.sent)
    alone = hub.export(run=run, to=["hub"], repo="me/tuned")
    assert "Its base is named by its folder, own-base: write the base's id as base_model_name_or_path into adapter/" in repr(
        alone
    )
    # A model lies at the root, and an adapter beside it would be applied to it once more.
    assert {name for name in files if name.startswith("adapter/")} >= {"adapter/adapter_config.json", "adapter/README.md"}
    assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == "own-base"
    assert files["README.md"].decode() == card
    assert len(model_hub.commits) == 2
    assert len(model_hub.sent) == sent + 1, "the tokenizer was there already"
    assert "compared" not in capsys.readouterr().out.rpartition("for you alone")[2], "no model was loaded"

    assert PERSON.encode() not in everything(files)
    assert WRITES.encode() not in everything(files)
    model_hub.repos["me/other"], model_hub.private["me/other"] = {"adapter_config.json": b"{}"}, True
    with pytest.raises(ConfigError, match="me/other holds an adapter"):
        hub.export(run=run, to=["merged", "hub"], repo="me/other")


def test_a_push_that_broke_off_sends_the_rest_alone_and_nothing_is_seen_before_it_is_whole(adapter, model_hub, tmp_path):
    model_hub.breaks_after = 1
    with pytest.raises(PushError, match=r"me/x: the model hub refused it \(400: gone\). It is as it was before. Type the same"):
        push(job(asked(adapter), tmp_path))
    assert (len(model_hub.sent), model_hub.commits, list(model_hub.repos["me/x"])) == (1, [], [".gitattributes"])
    model_hub.breaks_after = None
    push(job(asked(adapter), tmp_path))
    assert len(model_hub.sent) == len(set(model_hub.sent)) == 2
    names = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert set(model_hub.repos["me/x"]) == names
    assert json.loads(model_hub.repos["me/x"]["adapter_config.json"])["base_model_name_or_path"] == "some-base"
    (found,) = push(job(asked(adapter), tmp_path))
    assert "where all of it was already" in found.note
    assert (len(model_hub.commits), len(model_hub.sent)) == (1, 2)


def test_a_connection_that_breaks_is_tried_again_and_ctrl_c_leaves_the_repository_as_it_was(
    adapter, model_hub, tmp_path, monkeypatch
):
    from huggingface_hub import HfApi

    own, errors = HfApi.create_commit, [ConnectionError("reset by peer"), KeyboardInterrupt()]

    def breaks(*args, **options):
        if errors:
            raise errors.pop(0)
        return own(*args, **options)

    monkeypatch.setattr(HfApi, "create_commit", breaks)
    with pytest.raises(hub.Interrupted, match=r"stopped: me/x is as it was before. Type the same command again") as caught:
        push(job(asked(adapter), tmp_path))
    assert caught.value.exit_code == 130
    errors[:] = [RuntimeError("404 at xet-write-token")] * 2
    with pytest.raises(PushError, match=r"xet-write-token.\. To push without its Xet protocol, set HF_HUB_DISABLE_XET=1"):
        push(job(asked(adapter), tmp_path))
    errors[:] = [ConnectionError("reset by peer")]
    (found,) = push(job(asked(adapter), tmp_path))
    assert found.kind == "private"


def test_what_is_public_is_so_because_it_was_typed(adapter, model_hub, tmp_path):
    model_hub.repos["me/x"], model_hub.private["me/x"] = {"own.txt": b"kept"}, False
    with pytest.raises(ConfigError, match=r"me/x exists and is public, so everyone would see it\. Type private=false"):
        push(job(asked(adapter), tmp_path))
    push(job(asked(adapter, private=False), tmp_path))
    assert model_hub.repos["me/x"]["own.txt"] == b"kept"
    push(job(asked(adapter, private=False, repo="org/new"), tmp_path))
    assert model_hub.private["org/new"] is False
    model_hub.repos["me/closed"], model_hub.private["me/closed"] = {}, True
    (found,) = push(job(asked(adapter, private=False, repo="me/closed"), tmp_path))
    assert "(private, as it was before)" in found.note
    model_hub.always_public = True
    with pytest.raises(PushError, match="me/y: the model hub made it public, so nothing was pushed"):
        push(job(asked(adapter, repo="me/y"), tmp_path))
    assert list(model_hub.repos["me/y"]) == [".gitattributes"]


@pytest.mark.parametrize(
    ("token", "repo", "line"),
    [
        (
            "hf_unknownaaaaaaaaaaaaaaaaa",
            "me/x",
            "the model hub does not know this token .401.*Type hf auth login, or set HF_TOKEN",
        ),
        (READS, "me/x", "the token of me may read only. Make one that may write"),
        (FINE, "me/x", "the token of me may read only"),
        (WRITES, "you/x", "you is not yours. This token may write for me, org. Type repo=me/x"),
        (WRITES, "readers/x", "readers is not yours, where you may read only"),
    ],
)
def test_a_token_without_the_right_is_found_before_anything_is_loaded_or_made(
    adapter, model_hub, monkeypatch, token, repo, line
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=line) as caught:
        ready(asked(adapter, repo=repo))
    assert token not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not model_hub.repos


@pytest.mark.parametrize(
    ("path", "status", "line"),
    [
        ("/api/repos/create", 403, "me/x can't be made: this token has no right to write there .403: No"),
        ("/commit/main", 403, "me/x: this token has no right to write there"),
        ("/commit/main", 404, "me/x: the model hub has no such repository"),
        ("/preupload/main", 401, "me/x: the model hub"),
    ],
)
def test_what_the_model_hub_refuses_later_is_one_line(adapter, model_hub, tmp_path, path, status, line):
    model_hub.refuses = {path: status}
    with pytest.raises(PushError, match=line) as caught:
        push(job(asked(adapter), tmp_path))
    assert "\n" not in str(caught.value)
    assert not model_hub.commits


def test_no_network_no_token_and_no_name_are_answered_at_once(adapter, model_hub, monkeypatch):
    from huggingface_hub import constants

    def lines(**options) -> list[str]:
        return list(problems_of(asked(adapter, **options).cfg))

    assert not lines()
    for repo in ("x", "me/x/y", "https://huggingface.co/me/x", "me/-x", "me/a--b", "me/x.git", "me/"):
        (line,) = lines(repo=repo)
        assert line.startswith(f"export.repo={repo}: ")
        assert line.endswith("Type repo=OWNER/NAME")
    monkeypatch.delenv("HF_TOKEN")
    (line,) = lines()
    assert line.startswith("export.to=hub needs a token that may write. Type hf auth login, or set HF_TOKEN.")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (line,) = lines()
    assert "HF_HUB_OFFLINE is set" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"the model hub can't be reached .*refused"):
        ready(asked(adapter))
    assert not model_hub.asked


def test_the_trial_before_training_asks_and_makes_nothing(adapter, model_hub, tmp_path):
    assert push(job(asked(adapter), tmp_path, tiny=True)) == []
    assert {line.split()[0] for line in model_hub.asked} == {"GET", "HEAD"}
    assert any("whoami" in line for line in model_hub.asked)
    assert any(line.endswith("/api/models/me/x") for line in model_hub.asked)
    with pytest.raises(ConfigError, match="tuned is on the model hub already"):
        ready(asked(None))


def test_a_secret_or_a_link_out_of_the_folder_is_not_pushed(adapter, model_hub, tmp_path):
    (adapter / "notes.txt").write_text(f"my token is {WRITES}")
    with pytest.raises(ModelError, match=r"notes.txt holds the value of HF_TOKEN, so nothing is pushed.*notes.txt"):
        push(job(asked(adapter), tmp_path))
    (adapter / "notes.txt").unlink()
    (tmp_path / "private.txt").write_text("private")
    (adapter / "notes.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(ModelError, match=r"notes.txt is a link to .*private.txt, outside the folder"):
        push(job(asked(adapter), tmp_path))
    assert not model_hub.repos


def test_each_export_has_its_place_in_one_repository(tmp_path):
    def delivered(exporter: str, kind: str, *names: str) -> Delivered:
        folder = tmp_path / exporter / kind
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}" if name.endswith("json") else "FROM ../../gguf/all/m-q8_0.gguf\nPARAMETER stop x\n")
        one = folder / names[0] if len(names) == 1 and exporter == "gguf" else folder
        return Delivered(exporter=exporter, kind=kind, path=one, num_bytes=1, seconds=0.0)

    done = {
        "merged": [delivered("merged", "model", "config.json", "model.safetensors", "README.md")],
        "gguf": [delivered("gguf", "q8_0", "m-q8_0.gguf"), delivered("gguf", "f16", "m-f16.gguf")],
        "ollama": [delivered("ollama", "modelfile", "Modelfile", "README.md")],
        "compressed": [delivered("compressed", "w4a16", "config.json", "model.safetensors", "README.md")],
    }
    content = of_exports(done)
    compressed = {"w4a16/config.json", "w4a16/model.safetensors", "w4a16/README.md"}
    at_root = {"config.json", "model.safetensors", "m-q8_0.gguf", "m-f16.gguf", "Modelfile"}
    assert set(content.files) == at_root | compressed
    assert content.card == "README.md"
    assert content.files["Modelfile"] == b"FROM ./m-q8_0.gguf\nPARAMETER stop x\n"
    held = [
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "other/model-00001-of-00002.safetensors",
        "vae.safetensors",
    ]
    assert stale(content, held) == held[:1]
    del done["merged"]
    assert "config.json" in of_exports(done).files


def test_the_card_of_a_repository_says_how_each_of_its_files_is_loaded(adapter, model_hub, tmp_path):
    file = tmp_path / "m-q4_k_m.gguf"
    file.write_bytes(b"GGUF")
    check = {"kl": 0.9, "ratio": 1.0, "limit_nats": 0.3, "reader": "llama.cpp b1", "passed": False, "differs": "no template"}
    one = Delivered(exporter="gguf", kind="q4_k_m", path=file, num_bytes=4, seconds=1.0, check=check)
    push(job(asked(adapter, to=["gguf", "hub"]), tmp_path, done={"gguf": [one]}))
    files = model_hub.repos["me/x"]
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    values = yaml.safe_load(metadata)
    assert (values["base_model"], values["base_model_relation"], "gguf" in values["tags"]) == ("org/base", "finetune", True)
    assert text.splitlines()[3].startswith("> **Warning:** `m-q4_k_m.gguf` is **not the model that was trained**")
    assert "hf download me/x m-q4_k_m.gguf --local-dir ." in text
    assert set(files) == {".gitattributes", "README.md", "m-q4_k_m.gguf"}
