"""A second stage: an adapter is trained further from its own numbers."""

import json

import pytest
from safetensors.torch import load_file

from hub import ConfigError, compose
from hub.launch.launcher import launch
from hub.launch.preflight import prepare

OPTIONS = ["algo=lora_sft", "launch=inline", "data=tiny", "model.dtype=float32", "algo.learning_rate=1e-2"]
OF_FIRST = ["model=tiny", "algo.lora_r=4", "algo.lora_alpha=12", "algo.target_modules=[q_proj,up_proj]", "algo.use_rslora=true"]


def test_an_adapter_is_trained_further_with_its_rank_scale_and_layers(tmp_path):
    options = [*OPTIONS, f"output_dir={tmp_path}", "algo.max_steps=2"]
    first = launch(compose(*options, *OF_FIRST, "run_name=first"))
    second = launch(compose(*options, f"model.path={tmp_path}/first"))
    assert second.eval_loss_before == first.eval_loss > second.eval_loss
    before, after = (json.loads((one.model_path / "adapter_config.json").read_text()) for one in (first, second))
    same = ("r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path")
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    shapes = [
        {name: tensor.shape for name, tensor in load_file(one.model_path / "adapter_model.safetensors").items()}
        for one in (first, second)
    ]
    assert shapes[0] == shapes[1]
    plan = json.loads((second.run_path / "plan.json").read_text())
    assert (plan["adapter"], plan["adapter_because"][:10]) == (str(first.model_path), "model.path")
    with pytest.raises(ConfigError, match=r"so algo\.lora_r=8 \(it has 4\), algo\.init=pissa can't be set\. Leave that out"):
        prepare(compose(*options, f"model.path={first.model_path}", "algo.lora_r=8", "algo.init=pissa"))
