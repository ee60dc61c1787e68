"""The backend where Unsloth is not installed: it is listed with what is missing, and refuses options that it can't do."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_unsloth.environment import RANGE, obstacle, wrong_version
from hub_unsloth.loss import summed_loss
from packaging.requirements import Requirement

from hub import ModelError, PluginError, compose
from hub.data.samples.sample import Sample
from hub.launch.preflight import prepare
from hub.plugins.known import BACKENDS
from hub.plugins.registry import registry
from hub.train.batch.collate import pack

RUN = ("algo=lora_sft", "model=tiny", "data=tiny")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Makes metadata of packages, as if they were installed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**versions: str | tuple[str, ...]) -> None:
        for name, found in versions.items():
            number, *needs = (found,) if isinstance(found, str) else found
            info = tmp_path / f"{name}-{number}.dist-info"
            info.mkdir()
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}", *(f"Requires-Dist: {n}" for n in needs)]
            (info / "METADATA").write_text("\n".join(lines) + "\n")

    return make


def test_the_range_of_versions_is_that_of_the_extra():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for line in project["optional-dependencies"]["unsloth"]]
    assert {requirement.name for requirement in asked} == {"unsloth", "unsloth_zoo"}
    assert all(requirement.specifier == Requirement(f"x{RANGE}").specifier for requirement in asked)


@pytest.mark.parametrize(
    ("versions", "line"),
    [
        ({}, f"it needs unsloth{RANGE}, and unsloth is not installed"),
        ({"unsloth": "2025.11.1"}, f"it needs unsloth{RANGE}, and unsloth 2025.11.1 is installed"),
        ({"unsloth": "2026.10.9", "unsloth_zoo": "2027.1.1"}, f"it needs unsloth_zoo{RANGE}, and unsloth_zoo 2027.1.1 is"),
        (
            {"unsloth": ("2026.10.9", "transformers<5,>=4.52", "tyro>=99"), "unsloth_zoo": "2026.10.9"},
            f"unsloth 2026.10.9 needs transformers<5,>=4.52, and transformers {version('transformers')} is installed",
        ),
        (
            {"unsloth": ("2026.10.9", "trl<=1.15; python_version < '3'", "trl<1.15; extra == 'x'"), "unsloth_zoo": "2026.10.9"},
            None,
        ),
    ],
)
def test_the_first_wrong_version_is_named(packages, versions, line):
    packages(**versions)
    found = wrong_version()
    assert (found is None) if line is None else found.startswith(line)


def test_what_is_wrong_ends_with_what_to_type_and_a_gpu_is_needed(packages, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert 'Type: pip install "hub-unsloth[unsloth]", best in an environment of its own' in obstacle()
    packages(unsloth="2026.12.1", unsloth_zoo="2026.12.2")
    assert obstacle() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert obstacle() == "it needs a GPU, and none is visible"


def test_auto_stays_with_the_native_backend(packages, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    packages(unsloth="2026.12.1", unsloth_zoo="2026.12.2")
    backend, why = registry().backend(compose(*RUN).algo)
    assert (backend.name, why) == ("native", "highest priority")
    assert (
        registry().backend(compose(*RUN, "algo.backend=unsloth").algo, check_needs=False)[0].build == "hub_unsloth.recipe:build"
    )


def test_a_missing_plugin_is_named(monkeypatch):
    monkeypatch.delitem(registry().backends["lora_sft"], "unsloth")
    monkeypatch.setitem(BACKENDS, ("lora_sft", "unsloth"), "hub-not-there")
    with pytest.raises(PluginError, match=r"algo.backend=unsloth: its plugin hub-not-there is not installed. Type pip install"):
        registry().backend(compose(*RUN, "algo.backend=unsloth").algo)


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        (["launch.strategy=fsdp", "launch.nproc_per_node=2"], "launch.strategy=fsdp is not for algo.backend=unsloth."),
        (["launch.strategy=zero2", "launch.nproc_per_node=2"], "launch.strategy=zero2 is not for algo.backend=unsloth."),
        (["model.dtype=float32"], "model.dtype=float32: Unsloth's kernels are for bfloat16. Type model.dtype=bfloat16 or"),
        (["algo.torch_compile=none"], "algo.torch_compile=none: Unsloth itself decides what is compiled."),
        (["algo.deterministic=true"], "algo.deterministic can't be promised for Unsloth's kernels."),
        (["model.add_tokens=[x]"], "model.add_tokens and the options beside it are not for algo.backend=unsloth."),
        (["algo.train_embeddings=true"], "algo.train_embeddings is not for algo.backend=unsloth."),
        (["algo.init=pissa"], "algo.init=pissa is not for algo.backend=unsloth. Allowed: default, gaussian, orthogonal."),
        (
            ["algo.init=orthogonal", "algo.load_in_4bit=true"],
            "algo.init=orthogonal: Unsloth does not support it for",
        ),
        (["task=verify"], "algo.backend=unsloth can't be verified: its kernels do not run in float32."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_it_cannot_do_is_refused_with_the_way_out(options, beginning):
    # Another interpreter: what is installed here does not matter.
    cfg = compose(*RUN, *options, "algo.backend=unsloth", f"launch.python={sys.executable}")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of one line or several
        prepare(cfg)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(beginning)]
    assert len(lines) == 1
    assert lines[0].endswith("algo.backend=native")


def test_what_it_can_do_passes():
    for options in (["algo=qlora_sft", "algo.use_rslora=true", "algo.bias=all"], ["launch.strategy=ddp", "algo.init=gaussian"]):
        cfg = compose(*RUN, *options, "algo.backend=unsloth", f"launch.python={sys.executable}")
        assert prepare(cfg).backend.name == "unsloth"


def test_nothing_heavy_is_imported_to_list_and_to_check(tmp_path):
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text("raise SystemExit('unsloth was imported')")
    (tmp_path / "unsloth_zoo").mkdir()
    (tmp_path / "unsloth_zoo" / "__init__.py").write_text("raise SystemExit('unsloth_zoo was imported')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from hub.cli.main import main\n"
        "assert main(['plugins']) == 0\n"
        "assert main('algo=lora_sft model=tiny data=tiny algo.backend=unsloth'.split()) == 2\n"
        "assert not {'torch', 'transformers', 'peft', 'unsloth', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"can't run here: it needs unsloth{RANGE}, and unsloth is not installed" in done.stderr


def test_weights_of_tokens_are_refused_and_not_ignored():
    weighted = replace(pack([Sample(np.arange(4, dtype=np.int32), np.ones(4, dtype=bool), "")]), weights=torch.ones(3))
    with pytest.raises(ModelError, match=r"takes no weights of tokens.*Type algo.backend=native"):
        summed_loss(torch.nn.Identity(), weighted)
