"""hub.sft(), hub.lora_sft(), hub.run(): the command line's checks, with keyword arguments."""

import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from matplotlib.figure import Figure

import hub
from hub.compose.runfile import read as runfile_of
from hub.plugins.registry import HERE, registry
from hub.recipe import Recipe, Setup, train_only
from hub.run import Run
from hub.testing import tiny_model, write_chats
from hub.train.tracker import Tracking

pytestmark = pytest.mark.usefixtures("warm_python")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lora_rank": 8}, r"lora_sft has no option 'lora_rank'\. Here it is lora_r"),
        (
            {"learning_rte": 1e-4, "epochs": 3},
            r"'learning_rte'\. Did you mean learning_rate.*'epochs'\. Did you mean num_epochs",
        ),
        ({"path": "x"}, r"lora_sft has no option 'path'\. Here it is data, or model\."),
        ({"lr": 1}, r"lora_sft has no option 'lr'\. Here it is learning_rate\."),
        ({"algo.lora_r": 1}, r"lora_sft has no option 'algo.lora_r'\. Here it is lora_r\."),
        ({"model_name": "x"}, r"lora_sft has no option 'model_name'\. Here it is model\."),
        ({"master_weights": True}, r"lora_sft has no option 'master_weights'\. master_weights is an option of dpo and sft\."),
        ({"zzz": 1}, r"hub.show\('lora_sft'\) lists all"),
        ({"algo": "sft"}, r"lora_sft\(\) trains with this algorithm only\. For another one type run\('sft', ...\)"),
    ],
)
def test_an_unknown_keyword_is_a_type_error_with_the_nearest_names(options, text):
    with pytest.raises(TypeError, match=text):
        hub.lora_sft(model="tiny", data="tiny", **options)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qlora_sft", r"'qlora_sft'\. Type hub\.run\(\"qlora_sft\", \.\.\.\)$"),
        ("lora", r"Did you mean lora_sft or lora_dpo\?$"),
    ],
)
def test_a_name_that_is_not_there_has_a_hint(name, text):
    with pytest.raises(AttributeError, match=text):
        getattr(hub, name)


def test_a_list_of_paths_and_a_single_source_are_sources(tmp_path):
    (tmp_path / "a.jsonl").touch()
    for data, index in ((["a.jsonl", "nowhere.jsonl"], 1), ({"path": "nowhere.jsonl"}, 0), ([Path("nowhere.jsonl")], 0)):
        with pytest.raises(hub.DataError, match=rf"data\.mix\[{index}\]\.path=nowhere\.jsonl: there is no such file"):
            hub.sft(model="tiny", data=data)
    with pytest.raises(hub.ConfigError, match="data: row 1 is a text"):
        hub.sft(model="tiny", data=["Hello there."])


def test_an_option_of_another_algorithm_is_unknown():
    with pytest.raises(TypeError, match="sft has no option 'lora_r'"):
        hub.sft(model="tiny", data="tiny", lora_r=8)
    with pytest.raises(TypeError, match="positional arguments"):
        hub.sft("tiny", "tiny")  # type: ignore[misc]


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(hub.ConfigError) as caught:
        hub.run(
            "qlora_sft", model="tiny", data="tiny", lora_r="many", lora_alpha=0, load_in_8bit=True, nproc=0,
            use_dora=None, target_modules=("q_proj",), effective_batch_size=2.5, track="wandbb", dtype="bf16",
        )  # fmt: skip
    assert {line.split(" ")[0] for line in caught.value.problems} == {
        "track=wandbb:",
        "algo.lora_r=many",
        "algo.use_dora=None",
        "algo.effective_batch_size=2.5",
        "algo.lora_alpha=0.0",
        "model.dtype=bf16",
        "launch.nproc_per_node=0",
    }
    assert str(caught.value) == "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": "llama3_8"}, "model='llama3_8': there is no such preset, file or folder. Did you mean llama3_8b"),
        ({"data": "tinny"}, "data='tinny': there is no such preset, file or folder. Did you mean tiny?"),
        ({"data": "missing.jsonl"}, "data.path=missing.jsonl: there is no such file or folder."),
        ({"effective_batch_size": 1, "nproc": 2}, "algo.effective_batch_size=1 is below the number of processes (2)"),
        ({"output_dir": Path("file/runs")}, "output_dir="),
    ],
)
def test_a_mistake_is_a_hub_error(arguments, text, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(hub.HubError) as caught:
        hub.sft(**{"model": "tiny", "data": "tiny"} | arguments)
    assert str(caught.value).startswith(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lora", "algo=lora: there is no such algorithm. Did you mean lora_sft or lora_dpo or qlora_sft?"),
        ("sft,osft", "algo=sft,osft: there is no such algorithm. Did you mean osft?"),
        ("LoRA X", "algo=LoRA X: there is no such algorithm. Installed: "),
    ],
)
def test_an_unknown_algorithm_is_that_one_error(name, line):
    for call in (hub.run, hub.verify, hub.show):
        with pytest.raises(hub.ConfigError) as caught:
            call(name, model="tiny", data="tiny", lora_rank=8)
        (problem,) = caught.value.problems
        assert problem.startswith(line)
    with pytest.raises(TypeError, match=r'run\(\) needs an algorithm, e\.g\. run\("lora_sft", '):
        hub.run(model="tiny", data="tiny")


def test_a_run_returns_its_result_and_shows_what_the_worker_prints(tmp_path, capsys):
    chats = write_chats(tmp_path / "my chats (1).jsonl", num_rows=8)
    model = tiny_model(tmp_path / "tiny")  # of the name of a preset: what lies here comes first
    result = hub.lora_sft(
        model="tiny",
        data=chats,
        max_steps=2,
        effective_batch_size=4,
        nproc=1,
        target_modules=("q_proj",),
        output_dir=tmp_path / "out",
    )
    assert (result.status, result.num_steps, result.effective_batch_size) == ("completed", 2, 4)
    assert result.model == result.base_model_path.as_posix() == str(model)
    assert result.run_path == (tmp_path / "out/latest").resolve()
    assert (result.model_path / "adapter_model.safetensors").is_file()
    assert [line["step"] for line in result.metrics] == [1, 2]
    said = capsys.readouterr().out
    assert "training 4,096 of " in said
    assert "step 2/2" in said


@pytest.mark.slow
def test_the_model_of_the_last_run_is_meant_where_latest_stands(tmp_path):
    options = {"data": "tiny", "max_steps": 1, "mode": "inline", "effective_batch_size": 4}
    first = hub.sft(model="tiny", **options)
    (tmp_path / "named.jsonl").symlink_to(write_chats(tmp_path / "chats", num_rows=8))
    second = hub.sft(model="runs/latest/model", **options | {"data": "named.jsonl"})
    asked = runfile_of(second.run_path / "run.yaml")
    assert Path(asked.model.path) == first.model_path.resolve()
    assert asked.data.path == str(tmp_path / "named.jsonl")
    assert Path("runs/latest").resolve() == second.run_path


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["process", "inline"])
def test_ctrl_c_in_a_notebook_ends_the_run_and_gives_the_handler_back(mode):
    def interrupt():
        while not list(Path().glob("runs/*/metrics.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(hub.Interrupted, match="stopped by SIGINT after step") as caught:
        hub.sft(model="tiny", data="tiny", num_epochs=100000, mode=mode)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    result = hub.Result.read(Path("runs/latest/result.json").resolve())
    assert result.status == "interrupted"
    assert (result.model_path / "config.json").is_file()


@pytest.mark.slow
def test_inline_runs_of_several_threads_take_turns_and_train_as_they_do_alone(capsys):
    options = {"model": "tiny", "data": "tiny", "max_steps": 2, "mode": "inline", "effective_batch_size": 4}

    def loss(rate: float) -> float:
        return hub.lora_sft(learning_rate=rate, lora_dropout=0.1, **options).metrics[-1]["loss"]

    alone = [loss(1e-3), loss(2e-3)]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(loss, (1e-3, 2e-3))) == alone
    assert alone[0] != alone[1]
    assert "hub: another thread trains in this process (launch.mode=inline). This run waits" in capsys.readouterr().out


def test_threads_that_make_run_folders_at_once_get_one_each():
    begin = threading.Barrier(8)

    def make(_: int) -> Path:
        begin.wait()
        return Run.create("runs").path

    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(make, range(160)))
    assert len(set(folders)) == 160
    assert Path("runs/latest").resolve() in folders
    assert len(list(Path("runs").iterdir())) == 161


def test_several_sources_are_a_list_of_dictionaries_or_of_sources(tmp_path):
    chats = [write_chats(tmp_path / f"{name}.jsonl", num_rows=20) for name in "ab"]
    data = [{"path": chats[0], "weight": 3}, hub.DataSource(path=str(chats[1]), weight=1)]
    result = hub.lora_sft(model="tiny", data=data, output_dir=tmp_path, mode="inline", max_steps=2, effective_batch_size=8)
    assert [(line["num_samples.a"], line["num_samples.b"]) for line in result.metrics] == [(6, 2), (6, 2)]
    with pytest.raises(hub.ConfigError, match=r"data\.mix\[0\]\.wieght: there is no such option\. Did you mean weight\?"):
        hub.lora_sft(model="tiny", data=[{"path": "a.jsonl", "wieght": 1}])


@pytest.mark.slow
def test_rows_of_a_program_are_trained_on_and_resumed_by_their_content(tmp_path):
    rows = [{"prompt": f"What is {number} + 0?", "completion": str(number)} for number in range(20)]
    options = {"model": "tiny", "output_dir": tmp_path, "mode": "inline", "max_steps": 2, "effective_batch_size": 8}
    runs = [hub.lora_sft(data=data, **options) for data in (rows, (row for row in rows))]
    first, second = (runfile_of(run.run_path / "run.yaml").data.path for run in runs)
    assert first == second
    assert len(Path(first).read_text().splitlines()) == 20
    unwritable = [{"prompt": {1}, "completion": "x"}]
    for wrong, said in (([], "no row"), ([1], "row 1 is a number"), (unwritable, "row 1: prompt is a set and can't be")):
        with pytest.raises(hub.ConfigError, match=said):
            hub.lora_sft(data=wrong, **options)
    renamed = [{"question": row["prompt"], "completion": row["completion"], "image": b"x"} for row in rows]
    other = hub.lora_sft(data=renamed, columns={"prompt": "question"}, **options)
    assert runfile_of(other.run_path / "run.yaml").data.columns == {"prompt": "question"}
    assert other.train_loss == runs[0].train_loss
    with pytest.raises(hub.ConfigError, match=r"^output_dir=(long)+: can't write there"):
        hub.lora_sft(data=rows, **options | {"output_dir": "long" * 100})
    with pytest.raises(hub.ConfigError, match=r"^model\.path=(long)+: there is no such folder"):
        hub.lora_sft(data="tiny", **options | {"model": "long" * 100})
    with pytest.raises(TypeError, match="an iterable of rows, not int"):
        hub.lora_sft(data=7, **options)
    assert not list(tmp_path.glob("data/.*"))
    with_paths = hub.show(data=[{"path": "a.py", "text": "x = 1"}], output_dir=tmp_path)
    assert Path(with_paths["data.path"]).read_text() == '{"path": "a.py", "text": "x = 1"}\n'


def test_a_run_is_resumed_by_its_name_alone_and_by_its_own_call():
    options = {"mode": "inline", "max_steps": 3, "effective_batch_size": 8, "save_every_steps": 1, "keep_checkpoints": 3}
    whole = hub.sft(model="tiny", data="tiny", **options)
    with pytest.raises(hub.ConfigError, match="this run is complete"):
        hub.run(resume="latest")
    for resume in (
        lambda: hub.run(resume=whole.run_path),
        lambda: hub.sft(model="tiny", data="tiny", resume="latest", **options),
    ):
        (whole.run_path / "result.json").unlink()
        shutil.rmtree(whole.run_path / "checkpoints/step-00000002", ignore_errors=True)
        resumed = resume()
        assert (resumed.run_path, resumed.num_steps, resumed.eval_loss) == (whole.run_path, 3, whole.eval_loss)
        assert [line.get("eval_loss_before") for line in resumed.metrics] == [whole.eval_loss_before, None, None]
    typed = r"type python -m hub \S+/run\.yaml resume=\S+ model\.path=.* resume_with_changes=true$"
    with pytest.raises(hub.ConfigError, match=r"^resume=.* takes all options from the run, so model\.path.*" + typed):
        hub.run(model="tiny", resume="latest")


def test_a_result_shows_itself_and_plots_its_losses(monkeypatch):
    logged = []
    monkeypatch.setattr(Tracking, "log", lambda self, step, metrics: logged.append((step, dict(metrics))))
    result = hub.sft(model="tiny", data="tiny", mode="inline", max_steps=2, effective_batch_size=4, eval_every_steps=1)
    assert logged[0] == (0, {"eval_loss": result.eval_loss_before})
    assert [line.get("eval_loss_before") for line in result.metrics] == [result.eval_loss_before, None]
    lines = dict(
        line.split(maxsplit=1) for line in repr(result).splitlines() if line.split()[0] in ("status", "steps", "model")
    )
    assert lines == {"status": "completed", "steps": "2 of 4 samples", "model": str(result.model_path)}
    assert f"held-out loss  {result.eval_loss_before:.4f} -> {result.eval_loss:.4f}" in repr(result)
    assert '<td style="text-align: left">2 of 4 samples</td>' in result._repr_html_()
    failed = replace(result, error="<b>", status="failed", run_path=Path("none"))
    assert "&lt;b&gt;" in failed._repr_html_()
    with pytest.raises(hub.ConfigError, match="none has no logged step"):
        failed.plot()
    train, held_out = result.plot(Figure().subplots()).lines
    assert train.get_ydata().tolist() == [line["loss"] for line in result.metrics]
    assert list(zip(*held_out.get_data(), strict=True)) == [
        (0, result.eval_loss_before), *((line["step"], line["eval_loss"]) for line in result.metrics)
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(hub.LaunchError, match="Type pip install matplotlib"):
        result.plot()


def test_show_has_every_option_and_data_and_verify_do_what_the_verbs_do(capsys):
    shown = hub.show("qlora_sft", model="llama3_8b", lora_r=8)
    assert (shown["algo.lora_r"], shown["lora_r"], shown["load_in_4bit"]) == (8, 8, True)
    places = {option.name: option.source for option in shown.options}
    assert (places["algo.lora_r"], places["algo.seed"]) == ("keyword", "default")
    assert places["model.path"].endswith("model/llama3_8b.yaml")
    assert shown.problems == ["No training data is set. Type data.path=FILE.jsonl"]
    assert "This can't run yet: No training data" in repr(shown)
    assert "<td" in shown._repr_html_()

    rows = [{"prompt": f"What is {number}?", "completion": str(number)} for number in range(4)]
    examined = hub.data([*rows, rows[0]], model="tiny", lora_r=4, algo="lora_sft", track="tensorboard")
    assert examined.report["tokens"]["num_samples"] == 5
    assert "[[0<|im_end|>]]" in examined.page
    assert "copies" in repr(examined) or "duplicate" in repr(examined)
    assert not examined.spoils
    assert "hub.data.prepare" in sys.modules
    assert hub.data.prepare is sys.modules["hub.data.prepare"]

    capsys.readouterr()
    checked = hub.verify("sft", model="tiny", data="tiny", effective_batch_size=4, mode="inline")
    assert (checked.status, checked.model_path) == ("verified", None)
    assert "0 failed" in repr(checked)
    assert "0 failed" in capsys.readouterr().out


@pytest.fixture
def forget_algorithms():
    """Forgets at the end what a test has registered."""
    yield
    plugins = registry()
    for name in [name for name, owner in plugins.owners.items() if owner == HERE]:
        del plugins.algorithms[name], plugins.owners[name], plugins.backends[name]
        del ConfigStore.instance().repo["algo"][f"{name}.yaml"]


@pytest.mark.usefixtures("forget_algorithms")
def test_an_algorithm_of_this_program_trains_here_and_can_be_changed():
    trained = []

    def build(setup: Setup) -> Recipe:
        """Train one layer."""
        model = setup.load_model()
        train_only(model, [name for name, _ in model.named_parameters() if f".layers.{setup.cfg.algo.layer}." in name])
        trained.append(setup.cfg.algo.layer)
        return Recipe(model=model, save=setup.save_whole_model)

    @dataclass(kw_only=True)
    class OneLayer(hub.AlgoConfig):
        layer: int = hub.option(1, ge=0)
        """Number of the layer."""

    options = {"model": "tiny", "data": "tiny", "max_steps": 1, "effective_batch_size": 4}
    hub.register("one_layer", build, config=OneLayer)
    result = hub.run("one_layer", layer=0, **options)
    assert (result.status, result.algo, trained) == ("completed", "one_layer", [0])
    (result.run_path / "result.json").unlink()
    assert hub.show("one_layer")["layer"] == 1
    for wrong in ({"nproc": 2}, {"mode": "process"}):
        with pytest.raises(hub.ConfigError) as caught:
            hub.run("one_layer", **wrong, **options)
        (line,) = caught.value.problems
        assert line.startswith("algo=one_layer is defined in this process, and no other process can import it. Leave ")
    with pytest.raises(hub.ConfigError, match=r"algo\.layer=-1 is not allowed"):
        hub.run("one_layer", layer=-1, **options)
    hub.register("one_layer", lambda setup: 3)
    with pytest.raises(TypeError, match="one_layer has no option 'layer'"):
        hub.run("one_layer", layer=0, **options)
    with pytest.raises(hub.PluginError, match=r"one_layer:build must return hub\.recipe\.Recipe, not 3"):
        hub.run("one_layer", **options)
    for name, function, line in (
        ("sft", build, "plugin sft has an algorithm"),
        ("x", 3, "build=3 is not a function"),
        ("x", lambda: None, "build takes other arguments"),
    ):
        with pytest.raises(hub.PluginError, match=line):
            hub.register(name, function)
