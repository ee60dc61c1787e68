"""A model whose library brings kernels and checkpointing: the hub adds none, and verifies the library's isolation."""

import json
from functools import partial

import hub_sft.recipe
import pytest

from hub import compose
from hub.launch.launcher import launch
from hub.train.kernels.external import ExternalKernels
from hub.train.layout import activations, layout
from hub.train.losses.causal_lm import causal_lm_loss, model_inputs
from hub.train.recipe import Recipe

OPTIONS = ["algo=sft", "model=tiny", "data=tiny", "launch=inline", "model.dtype=float32", "algo.learning_rate=1e-3",
           "algo.effective_batch_size=16", "algo.max_steps=3"]  # fmt: skip


def without_bounds(model, batch):
    """Return inputs without positions that restart: the model takes the packed row for one text."""
    inputs = model_inputs(model, batch)
    if batch.packed:
        del inputs["position_ids"]
    return inputs


def own_loss(model, batch):
    return causal_lm_loss(model, batch)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return launch(compose(*OPTIONS, f"output_dir={tmp_path_factory.mktemp('runs')}"))


@pytest.mark.parametrize("inputs", [model_inputs, without_bounds])
def test_the_hub_patches_nothing_and_tries_the_librarys_packing(tmp_path, monkeypatch, expected, inputs):
    external = ExternalKernels(library="Spade", attention="spade", inputs=inputs, checkpoints=True)
    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, loss=own_loss, kernels=external))
    monkeypatch.setattr(activations, "Checkpointing", None)  # called, they would end the run
    for name in ("CompiledLayers", "choose_attention", "choose_head", "HiddenStatesIn"):
        monkeypatch.setattr(layout, name, None)
    found = launch(compose(*OPTIONS, f"output_dir={tmp_path}", "algo.gradient_checkpointing=all", "algo.torch_compile=layers"))
    plan = json.loads((found.run_path / "plan.json").read_text())
    assert plan["packed"] == (inputs is model_inputs)
    assert (plan["attention"], plan["compiled"], plan["layers_recomputed"]) == ("spade", False, 2)
    assert plan["compiled_because"] == "Spade compiles what it wants to"
    for mine, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
