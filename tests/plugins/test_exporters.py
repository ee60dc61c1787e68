"""A plugin's exporter: what it may be, and that `export` runs it on a model that is not merged twice."""

import re
from pathlib import Path

import numpy as np
import pytest

from hub.errors import ConfigError
from hub.launch.finished import ask
from hub.plugins import registry as plugins
from hub.tasks.export import exporters
from hub.tasks.export.verb import VERB

PLUGIN = """
from hub import Exporter, hookimpl

def write(job):
    import numpy as np
    from safetensors.numpy import load_file
    from hub.tasks.export.job import Written

    path = job.out / "weights.npz"
    np.savez(path, **load_file(job.merged() / "model.safetensors"))
    return [Written(kind="npz", path=path, note=f"behind {list(job.done)}")]

@hookimpl
def hub_exporters():
    return [Exporter(**VALUES)]
"""


def load(plugin_folder, values):
    folder = plugin_folder()
    folder.add("arrays", PLUGIN.replace("**VALUES", values))
    return plugins.load(folder.entry_points)


@pytest.mark.slow
def test_an_exporter_of_a_plugin_is_run(plugin_folder, monkeypatch, tmp_path):
    problems = "lambda cfg: ['no'] if cfg.export.force else []"
    values = f"name='npz', function=write, summary='arrays', after=('merged',), problems={problems}"
    found = load(plugin_folder, values)
    assert found.warnings == []
    monkeypatch.setattr(exporters, "registry", lambda: found)
    words = ["model=tiny", "model.dtype=float32", f"out={tmp_path / 'out'}", "num_check_rows=1"]
    made = ask(VERB, [*words, "to=npz,merged"])
    assert [one.exporter for one in made.exports] == ["merged", "npz"]
    assert made.exports[1].note == "behind ['merged']"
    assert len(np.load(tmp_path / "out/npz/weights.npz")) > 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "merged", "npz"]
    with pytest.raises(ConfigError, match=r"^no$"):
        ask(VERB, [*words, "to=npz", "force=true"])


def test_the_exporter_of_the_page_is_run(plugin_folder, monkeypatch, tmp_path):
    folder = plugin_folder()
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (folder.path / "hub_npz").mkdir(parents=True)
    for name in ("__init__", "write"):
        text = re.search(rf"^```python\n(# hub_npz/{name}\.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
        (folder.path / "hub_npz" / f"{name}.py").write_text(text, encoding="utf-8")
    folder.add("points", "from hub_npz import hub_exporters")
    found = plugins.load(folder.entry_points)
    assert found.warnings == []
    monkeypatch.setattr(exporters, "registry", lambda: found)
    words = ["model=tiny", "dtype=bfloat16", f"out={tmp_path / 'out'}", "num_check_rows=1"]
    (made,) = ask(VERB, [*words, "to=npz"]).exports
    assert (made.path, made.check) == (tmp_path / "out/npz/weights.npz", None)
    assert np.load(made.path)["model.embed_tokens.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("name='N P', function=write, summary=''", "exporter 'N P': this name is not allowed."),
        ("name='gguf', function=write, summary=''", "exporter gguf: there is one of this name already"),
        ("name='npz', function='write', summary=''", "exporter npz: function='write' is not allowed. Write it as 'package.mod"),
        ("name='npz', function=write, summary='', best=1", "hub.Exporter has no field best. Allowed: name, function, summary"),
    ],
)
def test_an_exporter_that_can_not_be_used_is_refused_with_what_to_write(plugin_folder, values, line):
    found = load(plugin_folder, values)
    assert line in found.warnings[0]
    assert not found.exporters
