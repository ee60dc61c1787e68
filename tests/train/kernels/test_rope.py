"""Rope that depends on a text's length: each sample has that of its own, as alone in a model that was just loaded."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from zoo.zoo import zoo_model

from hub import compose
from hub.compose import runfile
from hub.data.prepare import Sample, prepare
from hub.errors import ModelError
from hub.launch.launcher import launch
from hub.models.patches import patches_of
from hub.models.structure import max_positions
from hub.train.batch.collate import pack, pad
from hub.train.kernels.rope import use_own_rope
from hub.train.losses.causal_lm import model_inputs

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.0, 1.0, 1.0, 1.0, 1.5],
    "long_factor": [1.0, 1.1, 1.3, 1.8, 3.0, 8.0, 20.0, 40.0],
    "original_max_position_embeddings": 48,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
MODELS = {
    "phi3_longrope": {},
    "llama_dynamic": {},
    # With a scale of cosines and sines for either kind of text.
    "phimoe": {
        "original_max_position_embeddings": 48,
        "rope_parameters": LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3},
    },
}
if Version(transformers.__version__) > Version("5.17.0"):  # that one can't run two long texts by such a model
    MODELS["gemma3_text"] = {
        # Both kinds in one module.
        "max_position_embeddings": 64,
        "rope_parameters": {"sliding_attention": DYNAMIC, "full_attention": LONGROPE},
    }


def load(name: str):
    config = AutoConfig.from_pretrained(zoo_model(name), **MODELS.get(name, {}))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_each_sample_has_the_rope_that_it_has_alone_in_a_new_model(name):
    rng = np.random.default_rng(7)
    lengths = (31, 48, 49, 64, 90, 65, 1, 23)  # the borders are 48 and 64
    samples = [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]
    alone = [load(name)(input_ids=torch.from_numpy(sample.input_ids.astype(np.int64))[None]).logits[0] for sample in samples]
    model = load(name)

    def apart(order) -> float:
        """The greatest difference of a logit, in a packed row, and in padded rows."""
        chosen = [samples[i] for i in order]
        packed, padded = (model(**model_inputs(model, batch)).logits for batch in (pack(chosen), pad(chosen, 0)))
        found = [*packed[0].split(list(map(len, chosen))), *(row[: len(s)] for row, s in zip(padded, chosen, strict=True))]
        return max(float((one - alone[i]).abs().max()) for one, i in zip(found, [*order, *order], strict=True))

    assert apart(range(8)) > 0.1
    assert "each sample has the rope of its own length" in use_own_rope(patches_of(model), model, 90)
    # After long samples come short ones alone, and one of the length from which on `dynamic` differs.
    for order in (range(8), (0, 7), (3,), (5, 4), (5,)):
        assert apart(order) < 1e-5, order
    for patch in reversed(patches_of(model).applied):
        patches_of(model).undo(patch)
    assert "forward" not in vars(model.model.rotary_emb)


def test_it_is_left_alone_where_all_samples_have_the_same():
    for name, longest in (("phi3_longrope", 48), ("llama_dynamic", 64), ("qwen2_yarn", 10**6)):
        model = load(name)
        assert use_own_rope(patches_of(model), model, longest) == ""
        assert not patches_of(model).applied


def test_rope_that_can_not_be_mended_is_refused_in_one_line():
    model = load("phi3_longrope")
    why = "rope \\(longrope\\) is another one for texts above 48 tokens, and "
    with pytest.raises(ModelError, match=f"{why}Unsloth would .* data.max_seq_len=48, or algo.backend=native$"):
        use_own_rope(patches_of(model), model, 49, "Unsloth")
    del model.model.rotary_emb.rope_type  # a model's own code has its own ways
    with pytest.raises(ModelError, match=f"{why}this model's code would .* data.max_seq_len=48$"):
        use_own_rope(patches_of(model), model, 49)


def test_a_run_evaluates_as_a_plain_loop_does(tmp_path):
    folder = zoo_model("phi3_longrope")
    options = ("algo=sft", f"model.path={folder}", "model.dtype=float32", "data=tiny", "algo.max_steps=1", "launch=inline")
    result = launch(compose(*options, f"output_dir={tmp_path}"))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["packed"], plan["rope"]) == (True, "of each sample's own length")
    cfg = runfile.read(result.run_path / "run.yaml")
    samples = prepare(cfg, AutoTokenizer.from_pretrained(folder), 512).evaluation
    assert min(map(len, samples)) < 48 < max(map(len, samples))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        targets = torch.where(torch.from_numpy(sample.loss_mask), ids[0], -100)[1:]
        with torch.no_grad():
            total += float(F.cross_entropy(model(input_ids=ids).logits[0, :-1], targets, reduction="sum"))
    expected = total / sum(int(sample.loss_mask[1:].sum()) for sample in samples)
    assert result.eval_loss_before == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "tokens"),
    [
        ("llama_dynamic", {}, 256),
        ("llama_dynamic", {"rope_parameters": DYNAMIC | {"alpha": 1000.0}}, 64),  # as Hunyuan has it
        ("phi3_longrope", {}, 512),
        ("mpt", {}, 512),
        ("bloom", {}, None),
    ],
)
def test_the_longest_text_that_a_model_can_hold(name, options, tokens):
    assert max_positions(AutoConfig.from_pretrained(zoo_model(name), **options)) == tokens
