"""Every mistake of a user gives one clear line and exit code 2, and leaves no files behind."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hub import compose
from hub.testing import tiny_model, tiny_model_path

pytestmark = pytest.mark.usefixtures("warm_python")

TINY = ("algo=lora_sft", "model=tiny", "data=tiny")
LONG = "long" * 100
"""More than the 255 bytes that a name may have."""

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'


def test_nothing_chosen_is_told_at_once(hub):
    said = hub("train")
    assert said.code == 2
    assert [line.split(".")[0] for line in said.problems] == [
        "No algorithm is chosen",
        "No model is chosen",
        "No training data is set",
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("algo.load_in_4bit=true algo.load_in_8bit=true", "algo.load_in_4bit and algo.load_in_8bit are both set."),
        (f"data.path={LONG}.jsonl", f"data.path={LONG}.jsonl: there is no such file or folder."),
        ("algo.lora_alpha=0", "algo.lora_alpha=0.0 is not allowed. Allowed: a number above 0"),
        ("algo.learning_rate=nan", "algo.learning_rate=nan is not allowed. Allowed: a number above 0"),
        ("algo.learning_rate=-1e-4", "algo.learning_rate=-0.0001 is not allowed. Allowed: a number above 0"),
        ("algo.lora_r=-8", "algo.lora_r=-8 is not allowed. Allowed: a number at least 1"),
        ("algo.weight_decay=inf", "algo.weight_decay=inf is not allowed. Allowed: a number at least 0"),
        ("algo.max_steps=4 algo.warmup_steps=4", "algo.warmup_steps=4 is not shorter than the run: algo.max_steps=4"),
        ("algo.warmup_steps=16", "algo.warmup_steps=16 is not shorter than the run: 115 rows in batches of 16 are"),
        (
            "algo.lr_scheduler=cosine_with_restarts algo.lr_num_cycles=17",
            "algo.lr_num_cycles=17 does not fit the run: 115 rows in batches of 16 are 16 steps, 16 of them from the peak on",
        ),
        ("algo=sft algo.warmup_steps=8", "algo.warmup_steps=8 is not shorter than the run: 115 rows in batches of"),
        ("algo.effective_batch_size=2 launch.nproc_per_node=3", "algo.effective_batch_size=2 is below the number of"),
        ("algo.eval_every_steps=5 data.eval_fraction=0", "algo.eval_every_steps=5 but there is no evaluation set"),
        ("model.dtype=bf16", "model.dtype=bf16 is not allowed. Allowed: auto, bfloat16, float32."),
        ("algo.optimizer=adam", "algo.optimizer=adam is not allowed. Allowed: adamw, adamw_8bit,"),
        ("algo.target_modules=q_proj", "algo.target_modules=q_proj is not allowed. Allowed: auto, attention, mlp,"),
        ("algo.target_modules=[]", "algo.target_modules=[] is not allowed."),
        ("algo.use_dora=true algo.init=pissa", "algo.use_dora and algo.init=pissa can't be combined"),
        ("algo.backend=unslot", "algo.backend=unslot: lora_sft has no such backend. Allowed: auto, native, unsloth. Did"),
        ("algo=sft model=llama3_8b_bnb_4bit", "algo=sft can't train the bnb-4bit weights of"),
        ("algo=osft model=llama3_8b_bnb_4bit", "algo=osft can't train the bnb-4bit weights of"),
        ("model=llama3_8b_bnb_4bit algo=qlora_sft", "model.path=unsloth/llama-3-8b-Instruct-bnb-4bit is stored as"),
        ("model.path=./nowhere", "model.path=./nowhere: there is no such folder"),
        ("model.path=~nobody_here/model", "model.path=~nobody_here/model: there is no such folder"),
        ("model.path=runs/last/model", "model.path=runs/last/model: there is no such folder. Type an existing folder or"),
        (f"model.path={LONG}", f"model.path={LONG}: there is no such folder. Type an existing folder or an id of"),
        (f"model.path=org/{LONG}", f"model.path=org/{LONG}: there is no such folder. Type an existing folder or an id of"),
        (f"resume={LONG}", f"resume={LONG}: "),
        (f"resume=latest output_dir={LONG}", "resume=latest: "),
        (f"run_name={LONG}", f"run_name='{LONG}' is not the name of a folder (of at most 255 bytes). Type run_name="),
        (f"run_name={'é' * 128}", "run_name='é"),
        (f"data.template={LONG}.jinja", f"data.template={LONG}.jinja: there is no such file. Allowed: FILE.jinja, or plain"),
        (f"data.path=org/{LONG}", f"data.path=org/{LONG}: there is no such file or folder. Allowed: a file"),
        ("data.path=~nobody_here/a.jsonl", "data.path=~nobody_here/a.jsonl: there is no such file or folder."),
        (f"launch.python={LONG}", f"launch.python={LONG}: there is no such interpreter"),
        (f"algo=osft algo.protect_from={LONG}", f"algo.protect_from={LONG}: there is no protected_samples.safetensors"),
        (f"--config-dir {LONG}", f"--config-dir {LONG}: there is no such folder"),
        (f"output_dir={LONG}", "output_dir="),
        (f"launch.rdzv_endpoint={LONG}:1234", f"launch.rdzv_endpoint={LONG}:1234: the host {LONG} is not known"),
        ("model.path=tiny:lama", "model.path=tiny:lama: there is no tiny model of this family. Did you mean llama?"),
        ("data.path=tiny:chat", "data.path=tiny:chat: there is no such tiny dataset. Allowed: tiny:chats"),
        ("data.eval_fraction=0 data.eval_path=tiny:chat", "data.eval_path=tiny:chat: there is no such tiny dataset."),
        ("data.path='' data.mix=[{path:tiny:chat}]", "data.mix[0].path=tiny:chat: there is no such tiny dataset."),
        ("data.mix=[{path:tiny:chats}]", "data.path=tiny:chats and data.mix are both set."),
        ("data.mix=[{pth:a.jsonl}]", "data.mix[0].pth: there is no such option. Did you mean path?"),
        ("data.mix=[{path:a.jsonl,weight:much}]", "data.mix[0].weight=much is not allowed. Allowed: a number or null"),
        ("data.mix=[a.jsonl]", "data.mix[0]=a.jsonl is not allowed. Allowed: a list of {path, weight, epochs,"),
        ("data.mix=a.jsonl", "data.mix=a.jsonl is not allowed. Allowed: a list of {path, weight, epochs,"),
        ("data.format=alpaka", "data.format=alpaka is not allowed. Allowed: auto, messages, sharegpt, alpaca,"),
        ("data.format=preferences", "data.format=preferences is not allowed. Allowed: auto, messages,"),
        ("data.template=chatlm", "data.template=chatlm: there is no such file. Allowed: FILE.jinja, or plain, alpaca,"),
        ("data.loss_on=user", "data.loss_on=user is not allowed. Allowed: assistant, last, completion, all"),
        ("data.on_long=cut", "data.on_long=cut is not allowed. Allowed: auto, drop, truncate, split, error"),
        ("data.block_size=64 data.format=messages", "data.block_size=64 joins raw documents, but data.format=messages"),
        ("data.text_column=x data.format=alpaca", "data.text_column=x is for raw documents. Leave data.format=alpaca out"),
        ("data.split=test", "data.split=test applies to datasets of the model hub and to folders, and path=tiny:chats is"),
        ("data.subset=en", "data.subset=en applies to datasets of the model hub only, and path=tiny:chats is none"),
        ("data.max_seq_len=0", "data.max_seq_len=0 is not allowed. Allowed: a number at least 8 or auto"),
        ("launch.rdzv_endpoint=nowhere.invalid:1234", "launch.rdzv_endpoint=nowhere.invalid:1234: the host"),
        ("launch.python=/no/python", "launch.python=/no/python: there is no such interpreter"),
        ("run_name=a/b", "run_name='a/b' is not the name of a folder"),
        ("output_dir=s3://b/runs", "output_dir=s3://b/runs: this is an address, and a run folder needs a file system"),
        ("model.path=s3://b/m", "model.path=s3://b/m: addresses are not read. Download it and type its folder"),
        ("run_name=latest", "run_name=latest: the hub uses this name itself, for the link to the newest run. Type another"),
        ("run_name=", "run_name= is empty. Type run_name=VALUE, or leave it out"),
        ("resume=", "resume= is empty. Type resume=VALUE, or leave it out"),
        ("data.eval_path= data.eval_fraction=0.1", "data.eval_path= is empty."),
        ("output_dir=", "output_dir= is empty."),
        ("algo.optimizer=", "algo.optimizer= is empty."),
        ("resume_with_changes=true", "resume_with_changes=true is for a run that is resumed. Type resume=latest, or leave"),
        ("track.project=x", "track.project=x: no tracker is chosen. Type track=NAME, or leave it out"),
        ("data.eval_fraction=0 data.eval_split=x", "data.eval_split=x is a split of data.eval_path, which is not set."),
        ("launch.strategy=ddp launch.cpu_offload=true", "launch.cpu_offload=true needs launch.strategy=fsdp or zero1"),
        ("algo.optimizer=sgd algo.adam_beta1=0.5", "algo.adam_beta1=0.5 is for adamw, but algo.optimizer=sgd. Leave"),
        ("model.new_token_init=mean", "model.new_token_init=mean: no tokens are added. Type model.add_tokens=[...] too"),
        ("algo.warmup_start_ratio=0.5 algo.warmup_steps=0", "algo.warmup_start_ratio=0.5 is where warmup begins, but there"),
        ("model.revision=main", "model.revision=main is for models of the model hub, and model.path=tiny:llama is none."),
        ("model.path=tiny", "model.path=tiny: there is no such folder. For the preset of this name type model=tiny"),
        ("data.path=tiny", "data.path=tiny: there is no such file or folder. For the preset of this name type data=tiny"),
        ("data.path=s3://a/b.jsonl", "data.path=s3://a/b.jsonl: addresses are not read. Download it and name the file, or"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(hub, tmp_path, words, text):
    said = hub(*TINY, *words.split())
    assert said.code == 2
    assert len(said.problems) == 1
    assert said.problems[0].startswith(text)
    assert not (tmp_path / "runs").exists()


def test_files_that_options_name_are_looked_for_in_the_home_folder_too(tmp_path, monkeypatch):
    def problems(template: str, deepspeed: str) -> list[str]:
        options = [f"data.template={template}", "launch.strategy=zero2", f"launch.deepspeed_config={deepspeed}"]
        return sorted(line.split(": ")[0] for line in compose(*TINY, *options).problems())

    monkeypatch.setenv("HOME", str(tmp_path))
    assert problems("~/a", "~/b") == ["data.template=~/a", "launch.deepspeed_config=~/b"]
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    assert problems("~/a", "~/b") == []
    assert problems(LONG, LONG) == [f"data.template={LONG}", f"launch.deepspeed_config={LONG}"]


def test_problems_of_options_machine_and_data_are_found_at_once(hub):
    said = hub(
        "algo=lora_sft", "model=tiny", "data.path=no.jsonl", "algo.lora_alpha=0", "algo.effective_batch_size=1",
        "launch.nproc_per_node=2", "algo.backend=fast", "model.path=tiny:lama",
    )  # fmt: skip
    assert said.code == 2
    beginnings = ["algo.lora_alpha=", "algo.backend=", "model.path=", "data.path=no.jsonl", "algo.effective_batch_size="]
    assert [line.startswith(text) for line, text in zip(said.problems, beginnings, strict=True)] == [True] * 5


@pytest.mark.parametrize(
    ("words", "option", "typed"),
    [
        ("data.path=no.jsonl", "data.path", "data.path=FILE"),
        ("data=tiny data.eval_fraction=0 data.eval_path=no.jsonl", "data.eval_path", "data.eval_path=FILE"),
        ("data.mix=[{path:tiny:chats},{path:no.jsonl}]", "data.mix[1].path", "data.mix=[{path: FILE, ...}, ...]"),
        ("algo=osft data=tiny algo.subspace=activations algo.protect_data=no.jsonl", "algo.protect_data",
         "algo.protect_data=FILE"),
    ],
)  # fmt: skip
def test_a_path_without_data_names_its_option_what_is_allowed_and_what_to_type(hub, tmp_path, words, option, typed):
    (tmp_path / "now.jsonl").write_text(GOOD)
    (line,) = hub("algo=sft", "model=tiny", *words.split()).problems
    assert line.startswith(
        f"{option}=no.jsonl: there is no such file or folder. Did you mean now.jsonl? Allowed: a file (.jsonl,"
    )
    assert line.endswith(f"a folder or a pattern (*) of such files, or ORG/NAME of the model hub. Type {typed}")
    assert not (tmp_path / "runs").exists()
    if option != "algo.protect_data":
        assert hub("data", "model=tiny", *words.split()).problems == [line]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "data.jsonl: there is no such file or folder. Did you mean date.jsonl?"),
        ("", "data.jsonl: the file holds no rows"),
        (b"\x89PNG\0\0", "data.jsonl:1: a zero byte: this is a binary file, not text"),
        (b"\xff\xfe\xfd", "data.jsonl"),
        (GOOD + '{"messages": [oops\n', 'data.jsonl:2: broken JSON at column 15 (Expecting value). The line begins:'),
        ('{"messages": [{"role": "user", "content": "Hi"}]}\n', "data.jsonl:1: no assistant turn"),
        (GOOD.replace('"user"', '"usr"'), "data.jsonl:1: message 1 has the role 'usr'. Allowed: system, user,"),
        (GOOD + GOOD.replace('"Hi"', "null"), "data.jsonl:2: message 1 (user) has content that is null"),
        ('{"foo": 1}\n', "data.jsonl:1: these fields are of no known format: foo."),
    ],
)  # fmt: skip
def test_bad_data_is_one_line_with_the_place(hub, tmp_path, content, text):
    (tmp_path / "date.jsonl").write_text(GOOD)
    if content is not None:
        (tmp_path / "data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = hub("algo=sft", "model=tiny", "data.path=data.jsonl")
    assert said.code == 2
    assert len(said.problems) == 1
    assert text in said.problems[0]
    assert not (tmp_path / "runs").exists()


def test_evaluation_data_is_checked_too(hub, tmp_path):
    (tmp_path / "eval.jsonl").write_text("")
    said = hub(*TINY, "data.eval_fraction=0", "data.eval_path=eval.jsonl")
    assert (said.code, len(said.problems)) == (2, 1)
    assert "eval.jsonl: the file holds no rows" in said.problems[0]


def test_a_folder_without_config_json_is_no_model(hub, tmp_path):
    (tmp_path / "model").mkdir()
    said = hub("algo=sft", "model.path=model", "data=tiny")
    nothing = "no config.json in this folder, so transformers finds no model in it."
    assert said.problems == [f"model.path=model: {nothing} Type model.path=FOLDER of a model"]
    adapter = tmp_path / "model/adapter_config.json"
    folder = tmp_path / "model"
    for text, wrong in (
        ("", "adapter_config.json can't be read"),
        ('{"base_model_name_or_path": "a/b"}', ".safetensors is missing"),
    ):
        adapter.write_text(text)
        said = hub("algo=sft", "model.path=model", "data=tiny")
        assert len(said.problems) == 1
        assert wrong in said.problems[0]
    (folder / "adapter_model.safetensors").touch()
    said = hub("algo=sft", "model.path=model", "data=tiny")
    assert said.problems[0].startswith(
        f"model.path={folder} is an adapter, and this algorithm trains whole models. Type algo=lora"
    )
    (tmp_path / "runs/a/model").mkdir(parents=True)
    (tmp_path / "runs/a/model/config.json").touch()
    assert hub("algo=sft", "model.path=runs/a", "data=tiny").problems[0].endswith("Type model.path=runs/a/model")
    for path, folder in (("runs/a/model/config.json", "runs/a/model"), ("file", ".")):
        (tmp_path / "file").touch()
        assert hub("algo=sft", f"model.path={path}", "data=tiny").problems == [
            f"model.path={path} is a file. Type the folder with config.json: model.path={folder}"
        ]


@pytest.mark.parametrize("place", ["file", "file/runs"])
def test_an_output_folder_that_can_not_be_made(hub, tmp_path, place):
    (tmp_path / "file").touch()
    said = hub(*TINY, f"output_dir={place}")
    assert (said.code, len(said.problems)) == (2, 1)
    assert said.problems[0].startswith(f"output_dir={tmp_path / place}: can't write there (")


def test_a_run_folder_that_stands_already_is_kept(hub, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    said = hub(*TINY, "run_name=mine")
    assert said.code == 2
    assert said.problems[0].startswith(f"run_name=mine: {tmp_path}/runs/mine exists already.")
    assert not list((tmp_path / "runs/mine").iterdir())


def test_a_port_in_use(hub):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        said = hub(*TINY, f"launch.rdzv_endpoint={endpoint}")
    assert said.code == 2
    assert said.problems == [f"launch.rdzv_endpoint={endpoint}: this port can't be used (Address already in use). Type another"]


def test_a_package_that_is_not_installed(plugin_folder, tmp_path):
    folder = plugin_folder("site")
    folder.add(
        "extra",
        "from hub import Backend, hookimpl\n"
        "@hookimpl\n"
        "def hub_backends():\n"
        "    return [Backend(name='fast', algorithm='sft', build='a.b:train', needs=('no_such_module',))]\n",
    )
    done = subprocess.run(
        [sys.executable, "-m", "hub", "algo=sft", "model=tiny", "data=tiny", "algo.backend=fast"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder.path), os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "hub: algo.backend=fast can't run here: not installed: no_such_module. Type: pip install no_such_module\n"
    )


@pytest.mark.parametrize("mode", ["process", "inline"])
def test_a_chat_template_that_refuses_the_data_is_one_line_from_the_worker(hub, tmp_path, mode):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_path("llama"), model)
    (model / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    said = hub("algo=sft", "model.path=model", "data=tiny", f"launch.mode={mode}")
    assert said.code == 2
    (line,) = [line for line in said.err.splitlines() if line.startswith("hub: ")]
    assert "chats.jsonl:1: the chat template refuses this conversation. It says: never" in line
    assert "Traceback" not in said.out + said.err
    result = json.loads((tmp_path / "runs/latest/result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"] in line


def test_a_base_model_without_chat_template_is_trained_with_a_plain_one_and_that_is_said(hub, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_path("llama"), model)
    (model / "chat_template.jinja").unlink()
    said = hub("algo=sft", "model.path=model", "data=tiny", "launch.mode=inline", "algo.max_steps=1")
    assert said.code == 0
    assert "The tokenizer has no chat template (a base model?): data.template=plain is taken" in said.out
    assert "Assistant: " in (tmp_path / "runs/latest/model/chat_template.jinja").read_text()


def test_a_layer_that_the_model_does_not_have(hub, tmp_path):
    model = tiny_model(tmp_path / "model")
    said = hub("algo=lora_sft", f"model.path={model}", "data=tiny", "launch.mode=inline", "algo.target_modules=[q_prj]")
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(
        "hub: algo.target_modules: no linear layer is called q_prj. Allowed: down_proj,"
    )
    assert "Did you mean q_proj" in said.err
    assert Path(tmp_path, "runs/latest/result.json").is_file()
