"""What is saved is what transformers itself would save: the same names, dtypes and bits."""

import pytest
import torch
from zoo.saved import differences, tensors

from hub import compose
from hub.launch.launcher import launch
from hub.testing import tokenizer


# float32 by `_keep_in_fp32_modules_strict`; of weights that train, too; by the class itself. And a tied one.
@pytest.mark.parametrize("name", ["glm4_moe", "ernie4_5_moe", "zamba", "llama_tied"])
def test_an_untrained_model_is_saved_as_transformers_saves_it(tmp_path, name):
    assert differences(name, tmp_path) == []


@pytest.mark.parametrize("algo", ["algo=sft algo.master_weights=false", "algo=osft"])
def test_what_transformers_keeps_in_float32_trains_and_is_saved_in_it(tmp_path, algo):
    assert differences("ernie4_5_moe", tmp_path, torch.bfloat16) == []
    tokenizer().save_pretrained(tmp_path / "base")
    cfg = compose(
        *algo.split(), f"model.path={tmp_path / 'base'}", "model.dtype=bfloat16", "data=tiny", "launch=inline",
        f"output_dir={tmp_path / 'runs'}", "algo.max_steps=2", "algo.save_every_steps=1", "algo.effective_batch_size=4",
    )  # fmt: skip
    result = launch(cfg)
    base, saved = tensors(tmp_path / "base"), tensors(result.model_path)
    kept = {name for name, tensor in base.items() if tensor.dtype == torch.float32}
    assert kept == {f"model.layers.1.mlp.{name}" for name in ("gate.weight", "moe_statics.e_score_correction_bias")}
    for model in (saved, tensors(result.run_path / "checkpoints/step-00000001/model")):
        assert {name: tensor.dtype for name, tensor in model.items()} == {name: tensor.dtype for name, tensor in base.items()}
    name = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    assert torch.equal(saved[name], base[name])
