import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_sources import HEAD, algorithm, backends

from hub.errors import Interrupted, PluginError
from hub.plugins.registry import load


def with_path(folder: Path) -> dict[str, str]:
    """The environment, with a folder before what Python finds anyway."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def hub(*words: str, path: Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with the plugins in a folder beside the installed ones."""
    return subprocess.run(
        [sys.executable, "-m", "hub", *words],
        env=with_path(path) | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plugin_that_fails_to_import_is_one_warning_and_an_error_only_when_its_algorithm_is_asked_for(
    plugin_folder, tmp_path
):
    folder = plugin_folder()
    folder.add("broken", "import no_such_module_anywhere")
    folder.add("whole", algorithm("dig"))

    shown = hub("--help", path=folder.path, cwd=tmp_path)
    assert shown.returncode == 0
    assert "  dig " in shown.stdout
    assert shown.stderr.splitlines() == [
        "hub: plugin broken (dist-broken 1.0) is left out: ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    ]

    listed = hub("plugins", path=folder.path, cwd=tmp_path)
    assert listed.returncode == 0
    assert "left out: ModuleNotFoundError" in listed.stdout

    used = hub("show", "algo=dig", path=folder.path, cwd=tmp_path)
    assert used.returncode == 0

    asked = hub("algo=lost", "model=tiny", "data=tiny", path=folder.path, cwd=tmp_path)
    assert asked.returncode == 2
    error = asked.stderr.splitlines()[-1]
    assert error.startswith("hub: algo=lost: there is no such algorithm.")
    assert "Plugin broken (dist-broken 1.0) is left out" in error
    assert not (tmp_path / "runs").exists()


QUICK = """
import os
from pathlib import Path
from hub import Backend, Outcome, hookimpl

@hookimpl
def hub_backends():
    return [Backend(name="quick", algorithm="lora_sft", build=f"{__name__}:train", priority=9)]

def train(setup):
    return Outcome(num_steps=1, effective_batch_size=1, train_loss=1.0, eval_loss_before=None, eval_loss=None,
                   tokens_per_second=None, peak_memory_gb=None, base_model_path=Path())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python_here")
@pytest.mark.parametrize("mode", ["process", "inline"])
def test_a_run_says_once_what_is_wrong_with_a_plugin_and_why_it_has_its_backend(plugin_folder, tmp_path, mode):
    folder = plugin_folder()
    folder.add("broken", "import no_such_module_anywhere")
    folder.add("quick", QUICK)
    run = ("algo=lora_sft", "model=tiny", "data=tiny", "run_name=it", f"launch.mode={mode}", "launch.nproc_per_node=1")
    done = hub(*run, path=folder.path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plugin broken (dist-broken 1.0) is left out") == 1
    plan = json.loads((tmp_path / "runs/it/plan.json").read_text())
    assert (plan["backend"], plan["backend_because"]) == ("quick", "highest priority")


def test_another_interpreter_still_says_what_is_wrong_with_its_own_plugins(plugin_folder, tmp_path):
    folder = plugin_folder()
    folder.add("broken", "import no_such_module_anywhere")
    known = "plugin broken (dist-broken 1.0) is left out: ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert known in hub("--help", path=folder.path, cwd=tmp_path).stderr
    folder.add("other", "1 / 0")
    shown = hub("--help", path=folder.path, cwd=tmp_path, HUB_WARNINGS_SHOWN=json.dumps([known]))
    assert shown.stderr == "hub: plugin other (dist-other 1.0) is left out: ZeroDivisionError: division by zero\n"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("raise SystemExit('go away')", "SystemExit: go away"),
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
        ("def broken(:", "SyntaxError: "),
    ],
)
def test_whatever_a_plugin_raises_while_loading_is_one_line(plugin_folder, source, line):
    folder = plugin_folder()
    folder.add("broken", source)
    found = load(folder.entry_points)
    (warning,) = found.warnings
    assert line in warning
    assert "\n" not in warning


def test_a_signal_while_a_plugin_is_loaded_ends_the_run_and_leaves_no_plugin_out(plugin_folder):
    folder = plugin_folder()
    folder.add("slow", "import hub.errors\nraise hub.errors.Interrupted.before_training(15)")
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        load(folder.entry_points)


def test_two_plugins_of_one_name_are_both_named(plugin_folder):
    folder = plugin_folder()
    folder.add("dig", algorithm("dig"), "first-dist", "a_module")
    folder.add("dig", algorithm("drill"), "second-dist", "b_module")
    found = load(folder.entry_points)
    assert list(found.algorithms) == ["dig"]
    assert found.warnings == [
        "plugin dig (second-dist 1.0) is left out: first-dist has a plugin of this name too; uninstall one of the two"
    ]


def test_one_distribution_twice_on_the_path_is_no_clash(plugin_folder):
    first, second = plugin_folder("first"), plugin_folder("second")
    for folder in (first, second):
        folder.add("dig", algorithm("dig"), module="dig_module_twice")
    found = load([*first.entry_points, *second.entry_points])
    assert list(found.algorithms) == ["dig"]
    assert not found.warnings


def test_an_algorithm_of_a_taken_name_leaves_its_plugin_out(plugin_folder):
    folder = plugin_folder()
    folder.add("one", algorithm("dig"))
    folder.add("two", algorithm("dig") + "@hookimpl\ndef hub_backends(): return []\n")
    found = load(folder.entry_points)
    assert found.owners == {"dig": "one"}
    assert found.warnings == [
        "plugin two (dist-two 1.0) is left out: plugin one has an algorithm of the name dig too; uninstall one or rename it"
    ]


TWO = """
@hookimpl
def hub_algorithms():
    return [Algorithm(name={a}, config={c}, summary=''), Algorithm(name={b}, config={d}, summary='')]
"""
SUB = "\n@dataclass(kw_only=True)\nclass More(Options):\n    pass\n"
REFUSED = {
    "misspelt hook": (
        HEAD + "\n@hookimpl\ndef hub_algoritms(): return []",
        "there is no hook hub_algoritms. Allowed: hub_algorithms, .* Did you mean hub_algorithms",
    ),
    "hook without mark": (
        HEAD + "\ndef hub_algorithms(): return []",
        r"hub_algorithms\(\) is not decorated. Write @hookimpl",
    ),
    "unknown argument": (
        HEAD + "\n@hookimpl\ndef hub_log(run, metric): pass",
        r"hub_log\(\) has no argument metric. Allowed: run, step, metrics",
    ),
    "no hook": (HEAD, "it has no hook, so it adds nothing"),
    "no list": (
        HEAD + "\n@hookimpl\ndef hub_algorithms(): return Algorithm(name='dig', config=Options, summary='')",
        r"hub_algorithms\(\) must return a list of hub.Algorithm, but returned Algorithm\(",
    ),
    "list of something else": (
        HEAD + "\n@hookimpl\ndef hub_algorithms(): return ['dig']",
        r"hub_algorithms\(\) must return a list of hub.Algorithm, but returned \['dig'\]",
    ),
    "hook that raises": (HEAD + "\n@hookimpl\ndef hub_backends(): return 1 / 0", "ZeroDivisionError: division by zero"),
    "bad name": (algorithm("Dig-deep"), "algorithm name 'Dig-deep' is not allowed. Allowed: lower case letters"),
    "one name twice": (
        HEAD + SUB + TWO.format(a="'dig'", b="'dig'", c="Options", d="More"),
        "it has an algorithm of the name dig too",
    ),
    "shared options class": (
        HEAD + TWO.format(a="'dig'", b="'drill'", c="Options", d="Options"),
        "drill and dig share the options class Options",
    ),
    "plain AlgoConfig": (algorithm("dig", "AlgoConfig"), "must be a class of their own that inherits hub.AlgoConfig"),
    "not AlgoConfig": (algorithm("dig", "dict"), "must be a class of their own that inherits hub.AlgoConfig"),
    "no dataclass": (
        HEAD + "\nclass Bare(Options):\n    width: int = 1\n" + algorithm("dig", "Bare").removeprefix(HEAD),
        r"Bare is not decorated. Write @dataclass\(kw_only=True\) above it",
    ),
    "option without default": (
        HEAD
        + "\n@dataclass(kw_only=True)\nclass Bare(AlgoConfig):\n    width: int\n"
        + algorithm("dig", "Bare").removeprefix(HEAD),
        "Bare can't be composed: .*width.* Every option needs a default",
    ),
    "option of an impossible type": (
        HEAD
        + "\n@dataclass(kw_only=True)\nclass Bare(AlgoConfig):\n    width: int | list[str] = 1\n"
        + algorithm("dig", "Bare").removeprefix(HEAD),
        "Bare can't be composed: .* a union of these",
    ),
    "option with a name of the hub": (
        HEAD
        + "\n@dataclass(kw_only=True)\nclass Bare(AlgoConfig):\n    dtype: str = ''\n"
        + algorithm("dig", "Bare").removeprefix(HEAD),
        "the option Bare.dtype has a name that the hub uses elsewhere",
    ),
    "backend called auto": (backends("name='auto'"), "this name is not allowed. Allowed: lower case .* not auto"),
    "backend twice": (backends("name='one'", "name='one'"), "there is a backend of this name already"),
    "needs is a text": (backends("name='one', needs=('peft')"), r"needs='peft' is not allowed. .* \('peft',\)"),
    "old field": (
        HEAD + "\n@hookimpl\ndef hub_backends(): return [Backend(name='one', algorithm='dig', train='nowhere:train')]",
        r"hub.Backend has no field train. Allowed: name, algorithm, build, .* Write build=.* that returns a hub.recipe.Recipe",
    ),
    "misspelt field": (
        HEAD + "\n@hookimpl\ndef hub_algorithms(): return [Algorithm(name='dig', config=Options, sumary='')]",
        "hub.Algorithm has no field sumary. Allowed: name, config, summary. Did you mean summary",
    ),
    "build is no place": (
        HEAD + "\n@hookimpl\ndef hub_backends(): return [Backend(name='one', algorithm='dig', build='nowhere.train')]",
        "build='nowhere.train' is not allowed. Write it as 'package.module:function'",
    ),
    "no config folder": (
        HEAD + "\n@hookimpl\ndef hub_config_dir(): return Path(__file__).parent / 'conf'",
        r"hub_config_dir\(\) must return the Path of a folder, but returned PosixPath\(",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_one_line_for_the_author_and_leaves_nothing_behind(mistake, plugin_folder):
    source, line = REFUSED[mistake]
    folder = plugin_folder()
    folder.add("wrong", source)
    found = load(folder.entry_points)
    assert not found.algorithms
    assert not found.backends
    assert not found.config_dirs
    assert not found.manager.get_plugins()
    (warning,) = found.warnings
    assert warning.startswith("plugin wrong (dist-wrong 1.0) is left out: ")
    with pytest.raises(PluginError, match=line):
        raise PluginError(warning)


CONF = "\n@hookimpl\ndef hub_config_dir(): return Path(__file__).parent / 'conf'\n"


def write_preset(folder: Path, module: str, name: str, text: str) -> None:
    file = folder / module / "conf" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_presets_of_a_plugin_are_found_with_their_origin_and_a_hidden_one_is_named(plugin_folder, tmp_path):
    folder = plugin_folder()
    module = folder.add("dig", algorithm("dig") + CONF)
    write_preset(folder.path, module, "algo/dig_deep.yaml", "defaults: [dig]\ndepth: 9\n")
    write_preset(folder.path, module, "model/tiny.yaml", "path: mine\n")

    shown = hub("show", "--json", "algo=dig_deep", "model=tiny", "data=tiny", path=folder.path, cwd=tmp_path)
    assert shown.returncode == 0
    options = {option["name"]: (option["value"], option["source"]) for option in json.loads(shown.stdout)["options"]}
    assert options["algo.depth"] == (9, "plugin dig: conf/algo/dig_deep.yaml")
    assert options["model.path"] == ("tiny:llama", "conf/model/tiny.yaml")
    assert shown.stderr.splitlines() == [
        "hub: plugin dig (dist-dig 1.0): its model/tiny.yaml is not used, for the hub has a model preset of this name; "
        "rename the file"
    ]


def test_a_preset_and_an_algorithm_can_not_share_a_name(plugin_folder):
    first = plugin_folder("first")
    module = first.add("one", HEAD + CONF)
    write_preset(first.path, module, "algo/dig.yaml", "depth: 9\n")
    first.add("two", algorithm("dig"))
    assert "plugin one has a preset algo=dig, so an algorithm can't have this name" in load(first.entry_points).warnings[0]

    second = plugin_folder("second")
    second.add("one", algorithm("dig"))
    module = second.add("two", HEAD + CONF)
    write_preset(second.path, module, "algo/dig.yaml", "depth: 9\n")
    assert "a preset can't have the name of an algorithm; rename the file" in load(second.entry_points).warnings[0]


def test_hub_plugins_narrows_and_names_what_is_missing(plugin_folder, tmp_path):
    folder = plugin_folder()
    folder.add("dig", algorithm("dig"))
    folder.add("drill", algorithm("drill"))

    shown = hub("show", "algo=dig", path=folder.path, cwd=tmp_path, HUB_PLUGINS="drill, digg")
    assert shown.returncode == 2
    lines = shown.stderr.splitlines()
    assert lines[0] == "hub: HUB_PLUGINS names digg, but no plugin of this name is installed. Did you mean dig?"
    assert lines[1].startswith("hub: algo=dig: there is no such algorithm. Installed: drill.")
    assert "HUB_PLUGINS=digg,drill loads these plugins only." in lines[1]

    none = hub("plugins", path=folder.path, cwd=tmp_path, HUB_PLUGINS="")
    assert none.returncode == 0
    assert "dig" not in none.stdout


def test_plugins_lists_slow_imports_and_backends_without_algorithm(plugin_folder, tmp_path):
    folder = plugin_folder()
    folder.add("slow", "import numpy\n" + algorithm("dig"))
    folder.add("lost", backends("name='one'").replace("'dig'", "'digg'"))
    shown = hub("plugins", path=folder.path, cwd=tmp_path)
    assert "slow: it imports numpy while it is loaded" in shown.stdout
    assert "backend one of digg (priority 0): unused: no plugin has the algorithm digg. Did you mean dig?" in shown.stdout


def test_an_algorithm_of_the_hub_whose_plugin_is_missing_says_what_to_install(monkeypatch, tmp_path):
    from hub import ConfigError, compose
    from hub.plugins import known

    # As if the hub had one more plugin of its own; its name is near that of another algorithm.
    monkeypatch.setitem(known.ALGORITHMS, "sftt", "hub-sftt-of-nobody")
    line = "algo=sftt: its plugin hub-sftt-of-nobody is not installed. Type pip install hub-sftt-of-nobody"
    with pytest.raises(ConfigError) as caught:
        compose("algo=sftt", "algo.learning_rate=1e-4")
    assert str(caught.value).splitlines()[0] == line
    with pytest.raises(PluginError, match="Type pip install hub-sftt-of-nobody"):
        load([]).algorithm("sftt")
    # Installed but switched off is another matter.
    narrowed = hub("algo=osft", "model=tiny", "data=tiny", path=tmp_path, cwd=tmp_path, HUB_PLUGINS="sft")
    assert "pip install" not in narrowed.stderr
    assert "HUB_PLUGINS=sft loads these plugins only." in narrowed.stderr
