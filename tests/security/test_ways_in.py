"""What comes from elsewhere decides what is computed, and nothing of this machine: run folders, presets, plugins, data."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hub.compose import runfile
from hub.compose.compose import compose
from hub.compose.config_file import file_overrides
from hub.config.bounds import BoundOptions, bounds
from hub.config.schema import LaunchConfig
from hub.config.trust import OF_THE_COMPUTATION
from hub.data.sources import files, text_files
from hub.data.sources.files import data_files
from hub.data.streaming.workers import main
from hub.errors import ConfigError, DataError, ModelError
from hub.launch import worker
from hub.launch.resume import config_to_run
from hub.models.safety import check_files
from hub.models.weights import check_folder
from hub.plugins.registry import load, resolve
from hub.run import Run
from hub.system.links import outside

TINY = ("algo=lora_sft", "model=tiny", "data=tiny")
ALGORITHM = """
from dataclasses import dataclass
import hub
from hub import Algorithm, AlgoConfig, Backend

@dataclass(kw_only=True)
class Config(AlgoConfig):
    pass

@hub.hookimpl
def hub_algorithms():
    return [Algorithm(name="sft", config=Config, summary="takes all")]
"""


def bounded(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    monkeypatch.setattr("hub.config.bounds._current", BoundOptions(**values))


def run_folder(path: Path, *options: str) -> Path:
    """A run folder as it would come from elsewhere."""
    path.mkdir()
    (path / "run.yaml").write_text(runfile.to_text(compose(*TINY, *options)), encoding="utf-8")
    return path


def test_a_run_folder_decides_nothing_of_this_machine(tmp_path, capsys):
    options = ("launch.nnodes=2", "launch.rdzv_endpoint=evil.example:29500", "launch.rdzv_timeout_seconds=5",
               "launch.strategy=fsdp", "export.repo=evil/model", "output_dir=/elsewhere")  # fmt: skip
    folder = run_folder(tmp_path / "run", *options)
    found = config_to_run(compose(f"resume={folder}"))
    assert (found.launch.nnodes, found.launch.rdzv_endpoint, found.export.repo) == (1, None, None)
    assert found.launch.strategy == "fsdp"  # it decides how the same numbers are computed
    assert found.output_dir == str(tmp_path)
    said = capsys.readouterr().err
    assert "launch.nnodes=2 launch.rdzv_endpoint=evil.example:29500" in said
    assert "is not taken from its folder" in said
    typed = ("launch.nnodes=2", "launch.rdzv_endpoint=mine.example:1")
    found = config_to_run(compose(f"resume={folder}", *typed))
    assert (found.launch.nnodes, found.launch.rdzv_endpoint) == (2, "mine.example:1")
    assert not any("rdzv" in line or "nnodes" in line for line in file_overrides(str(folder / "run.yaml"), []))


def test_options_of_launch_are_not_taken_from_a_run_unless_they_are_listed():
    assert {name for name in vars(LaunchConfig()) if f"launch.{name}" in OF_THE_COMPUTATION} == {
        "mode", "nproc_per_node", "strategy", "cpu_offload", "gpu_memory_gb", "grace_seconds",
    }  # fmt: skip


@pytest.mark.parametrize(
    "option", ["model.trust_remote_code=true", f"launch.python={sys.executable}", f"export.python={sys.executable}"]
)
def test_what_runs_code_is_not_taken_over_from_a_run(tmp_path, option):
    folder = run_folder(tmp_path / "run", option)
    with pytest.raises(ConfigError, match=f"{option}, which runs code and is not taken from its folder"):
        config_to_run(compose(f"resume={folder}"))
    config_to_run(compose(f"resume={folder}", option))
    with pytest.raises(ConfigError, match=r"which runs code\. If you trust the file, type that too"):
        file_overrides(str(folder / "run.yaml"), [])


@pytest.mark.parametrize(
    "name", [".metrics.jsonl.7", "metrics.jsonl", "model", "checkpoints", "checkpoints/step-00000001", "new"]
)
def test_a_resumed_run_writes_through_no_link(tmp_path, name):
    folder = run_folder(tmp_path / "run")
    target = tmp_path / "private" / ("missing" if name == "new" else "")
    (tmp_path / "private").mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(ConfigError, match=f"{name} in the run folder is a link to .*private.*, outside the folder"):
        config_to_run(compose(f"resume={folder}"))


@pytest.mark.parametrize("group", ["model", "experiment"])
def test_a_preset_that_runs_code_is_refused_unless_the_option_is_typed(hub, tmp_path, group):
    preset = tmp_path / "conf" / group / "evil.yaml"
    preset.parent.mkdir(parents=True)
    text = "path: tiny:llama\ntrust_remote_code: true\n"
    preset.write_text(text if group == "model" else f"# @package _global_\nmodel:\n  {text.splitlines()[1]}\n")
    words = [*TINY, f"{group}=evil", "--config-dir", "conf"]
    said = hub("show", *words)
    assert (said.code, len(said.problems)) == (2, 1)
    assert f"conf/{group}/evil.yaml sets model.trust_remote_code=true, which runs code" in said.problems[0]
    assert hub("show", *words, "model.trust_remote_code=true").code == 0
    assert hub("show", *words, "model.trust_remote_code=false").code == 0
    (tmp_path / "own.yaml").write_text("algo: lora_sft\nmodel: {name: tiny, trust_remote_code: true}\ndata: tiny\n")
    assert "which runs code" in hub("show", "own.yaml").problems[0]


def test_the_name_of_a_core_algorithm_is_taken_by_no_other_distribution(plugin_folder):
    site = plugin_folder()
    site.add("aaa", ALGORITHM, "a-thief")
    loaded = load(site.entry_points)
    assert "sft" not in loaded.algorithms
    assert "the algorithm sft belongs to hub-sft, and a-thief would take its place" in loaded.warnings[0]
    named = load(site.entry_points, {"A.thief"})
    assert named.owners["sft"] == "aaa"
    assert not named.warnings
    site.add("sft", ALGORITHM, "a-thief-2")
    site.add("sft", ALGORITHM, "hub-sft", "zzz")
    loaded = load([point for point in site.entry_points if point.name == "sft"])
    assert [plugin.source for plugin in loaded.plugins if not plugin.error] == ["hub-sft 1.0"]


@pytest.mark.parametrize("name", ["bpe.codes", "spm.any", "extra/deep/vocab", "tokenizer.json", ".hidden"])
def test_no_entry_of_a_models_folder_leads_out_of_it(folder, tmp_path, name):
    (tmp_path / "private").write_text("private")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(ModelError, match=f"{name} is a link to {tmp_path}/private, outside the folder"):
        check_folder(folder)


def test_circles_of_links_pipes_and_too_many_files_are_refused(folder, monkeypatch):
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    with pytest.raises(ModelError, match="is a link to nothing"):
        check_files(folder, "x")
    (folder / "one").unlink()
    (folder / "two").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelError, match="pipe is no plain file"):
        check_files(folder, "x")
    (folder / "pipe").unlink()
    assert outside(folder / "pipe", folder) == "can't be read"
    number = len(list(folder.rglob("*")))
    bounded(monkeypatch, max_model_files=number)
    check_files(folder, "x")
    bounded(monkeypatch, max_model_files=number - 1)
    with pytest.raises(ModelError, match=rf"is one of more than {number - 1} files.* type a larger launch.max_model_files"):
        check_files(folder, "x")


def test_a_file_that_a_tokenizer_config_names_beside_the_current_folder_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codes.txt").write_text("private")
    (folder / "tokenizer_config.json").write_text(json.dumps({"emoji": "codes.txt"}))
    with pytest.raises(ModelError, match=r"tokenizer_config.json \(emoji\) names .*codes.txt, outside the folder"):
        check_files(folder, "x")


def test_links_out_of_a_folder_of_data_are_refused(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "private.jsonl").write_text("{}\n")
    (data / "a.jsonl").symlink_to(tmp_path / "private.jsonl")
    for path in (str(data), f"{data}/*.jsonl"):
        with pytest.raises(DataError, match=r"a.jsonl is a link to .*private.jsonl, outside the folder"):
            data_files(path)
    assert data_files(str(data / "a.jsonl"))  # it was named itself
    (data / "a.jsonl").unlink()
    (data / "loop").symlink_to(data)
    with pytest.raises(DataError, match="loop is a link to a folder, which is not followed"):
        data_files(str(data))
    (data / "loop").unlink()
    (data / "b.jsonl").write_text("{}\n")
    (data / "c.jsonl").symlink_to("b.jsonl")
    assert [file.name for file in data_files(str(data))] == ["b.jsonl", "c.jsonl"]
    bounded(monkeypatch, max_data_files=1)
    for path in (str(data), f"{data}/*.jsonl"):
        with pytest.raises(DataError, match=r"more than 1 files .* type a larger launch.max_data_files \(now 1\)"):
            data_files(path)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["a0: &a0 [x,x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
        "a: &a [*a]",
        "a: " + "[" * 3000 + "]" * 3000,
        "a: " + "x" * 2**21,
    ],
    ids=["aliases", "circle", "nesting", "size"],
)
def test_a_yaml_file_that_unfolds_is_one_line(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    for read in (lambda: file_overrides(str(tmp_path / "own.yaml"), []), lambda: runfile.read(tmp_path / "own.yaml")):
        with pytest.raises(ConfigError) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_line_or_a_file_that_unfolds_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LARGE", 100)
    monkeypatch.setattr(files, "_ALWAYS_ALLOWED", 2**16)
    small = {"max_row_mb": 1, "max_row_values": 1000, "max_unpacked_ratio": 10}
    bounded(monkeypatch, **small)
    (tmp_path / "values.jsonl").write_text('{"a": [' + "[]," * 2000 + "1]}\n")
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb") as stream:
        stream.write(b'{"prompt": "a", "completion": "b"}\n' * 10_000)
    (tmp_path / "line.jsonl").write_bytes(b"{" + b" " * 2**21)
    expected = {
        "values": "more than 1,000 values.* type a larger launch.max_row_values",
        "bomb": "unpacks to more than 10 times.* type a larger launch.max_unpacked_ratio",
        "line": "more than 1 MiB.* type a larger launch.max_row_mb",
    }
    for name, said in expected.items():
        file = next(tmp_path.glob(f"{name}.*"))
        with pytest.raises(DataError, match=said):
            _ = [line.entry(file).read() for line in text_files.lines(file)]
        with monkeypatch.context() as larger:
            bounded(larger, **{option: 1000 * value for option, value in small.items()})
            assert all(line.error is None for line in text_files.lines(file))


def test_the_bounds_that_are_typed_hold_in_each_process(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("hub.config.bounds._current", BoundOptions())
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"' + " " * 2**20 + "}\n")
    for words in (("algo=lora_sft",), ("evaluate",), ("data",)):
        said = hub(*words, "model=tiny", "data.path=a.jsonl", "launch.max_row_mb=1")
        assert said.code == 2
        assert "a.jsonl:1: this line has more than 1 MiB" in said.problems[0]
    assert hub("data", "model=tiny", "data.path=a.jsonl", "launch.max_row_mb=2", "launch.template_seconds=9").code == 0
    assert bounds() == BoundOptions(max_row_mb=2, template_seconds=9)
    cfg = replace(compose(*TINY), launch=LaunchConfig(max_row_mb=3))
    request = {"cfg": runfile.to_text(cfg), "source": {"path": "a.jsonl"}, "base_path": str(tmp_path), "place": None}
    main(request, io.BytesIO())  # which ends in a line: there is no tokenizer
    assert bounds().max_row_mb == 3
    seen = []

    def task(*_) -> None:
        seen.append(bounds().max_row_mb)
        raise ConfigError("enough")

    monkeypatch.setattr(worker, "_run_task", task)
    with pytest.raises(ConfigError, match="enough"):
        worker.work(resolve(replace(cfg, launch=LaunchConfig(max_row_mb=4))), Run.create(tmp_path / "runs"))
    assert seen == [4]
    assert hub("chat", "model=tiny", "launch.max_row_mb=0").problems == [
        "launch.max_row_mb=0 is not allowed. Allowed: a number at least 1"
    ]


LOOK = """
import sys
from hub.config.data import DataConfig, DataSource
from hub.data.check import check_rows
from hub.errors import HubError
try:
    print(check_rows(DataSource(path=sys.argv[1]), DataConfig(path=sys.argv[1])))
except HubError as error:
    print(str(error)[:200])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gz", "deep", "wide", "list", "text", "folder"])
def test_the_launcher_looks_at_any_data_within_300_mib(tmp_path, kind):
    file = tmp_path / {"gz": "a.jsonl.gz", "text": "a.txt", "list": "a.json", "folder": "many"}.get(kind, "a.jsonl")
    if kind == "gz":
        with gzip.open(file, "wb", compresslevel=1) as stream:
            for _ in range(400):
                stream.write(b"\0" * 2**24)
    elif kind == "folder":
        file.mkdir()
        for number in range(100_010):
            (file / f"{number}.jsonl").touch()
    else:
        content = {"deep": '{"a": ' + "[" * 10**7, "wide": '{"a": [' + "[]," * 10**7, "text": "word " * 10**8}
        file.write_text(content.get(kind) or "[" + '{"prompt": "a b c", "completion": "d"},' * 5 * 10**6)
    done = subprocess.run([sys.executable, "-c", LOOK, str(file)], capture_output=True, text=True, timeout=300, check=True)
    *said, peak = done.stdout.splitlines()
    assert int(peak) < 300 * 1024, said
    shutil.rmtree(tmp_path, ignore_errors=True)
