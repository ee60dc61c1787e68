import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from zoo.zoo import zoo_model

from hub import ModelError
from hub.models.structure import expert_tensors, linear_layers
from hub.testing import tiny_model_path
from hub.train.setup.layers import NOT_A_PRODUCT, READ, SHARED, UNREACHED, in_words, unsuited

CPU = torch.device("cpu")


def llama() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"))


def found(model: PreTrainedModel, device: torch.device = CPU, lines: list[str] | None = None) -> dict[str, str]:
    weights = [(name, "weight") for name in linear_layers(model)]
    reasons = unsuited(model, weights, device, (lines if lines is not None else []).append)
    return {name: reason for (name, _), reason in reasons.items()}


@pytest.mark.parametrize(
    ("family", "leaf", "reason"),
    [("mamba", "dt_proj", READ), ("phimoe", "router", NOT_A_PRODUCT), ("gemma3", "vision_tower", UNREACHED)],
)
def test_layers_that_can_not_train_are_found_and_no_others(family, leaf, reason):
    model = AutoModelForCausalLM.from_pretrained(zoo_model(family))
    assert found(model) == {name: reason for name in linear_layers(model) if leaf in name}


def test_weights_that_several_layers_hold_are_shared_and_a_shared_block_is_not():
    model = AutoModelForCausalLM.from_pretrained(zoo_model("zamba"))
    shared = {name for name in linear_layers(model) if ".shared_transf." in name}
    assert shared
    assert found(model) == dict.fromkeys(shared, SHARED)
    model = llama()
    model.model.layers[1] = model.model.layers[0]
    assert found(model) == {}
    model = llama()
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.gate_proj
    assert found(model) == {"model.layers.0.mlp.gate_proj": SHARED}


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Same(nn.Linear):
    pass


class OneOf(nn.Module):
    """Experts as separate layers, of which the first gets all tokens."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(layer.in_features, layer.out_features) for _ in range(3))
        self.never = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[0](x)


def test_a_layer_is_judged_by_what_it_returns_and_an_expert_without_tokens_by_the_others():
    model = llama()
    mlp = model.model.layers[0].mlp
    sizes = mlp.gate_proj.in_features, mlp.gate_proj.out_features
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = Doubled(*sizes), Same(*sizes), OneOf(mlp.down_proj)
    name = "model.layers.0.mlp"
    assert found(model) == {f"{name}.gate_proj": NOT_A_PRODUCT, f"{name}.down_proj.never": UNREACHED}


def test_the_model_and_the_random_numbers_stay_as_they_are():
    model = AutoModelForCausalLM.from_pretrained(zoo_model("phimoe")).train()
    model.model.norm.weight.requires_grad_(False)
    model.config.router_jitter_noise = 0.1
    before = {name: p.requires_grad for name, p in model.named_parameters()}, torch.random.get_rng_state()
    found(model)
    after = {name: p.requires_grad for name, p in model.named_parameters()}, torch.random.get_rng_state()
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(p.grad is not None for p in model.parameters())


def test_a_model_that_can_not_run_is_one_line_and_one_that_waits_for_its_gpu_is_not_judged():
    model = llama()
    model.model.layers[0].mlp.act_fn = nn.Linear(3, 3)
    with pytest.raises(ModelError, match=r"it fails in a pass over 8 tokens\. \(RuntimeError: mat1 and mat2"):
        found(model)
    lines: list[str] = []
    assert found(model, torch.device("cuda"), lines) == {}
    assert "is not tried: a pass over 8 tokens on the CPU fails (mat1 and mat2" in lines[0]


@pytest.mark.parametrize(
    ("family", "number", "shape"),
    [("mamba2", 0, ()), ("rwkv", 0, ()), ("recurrent_gemma", 0, ()), ("jetmoe", 8, (4, 256, 64)), ("dbrx", 6, (256, 64))],
)
def test_experts_are_recognized_and_convolutions_are_none(family, number, shape):
    model = AutoModelForCausalLM.from_pretrained(zoo_model(family))
    tensors = expert_tensors(model)
    assert len(tensors) == number
    if tensors:
        assert getattr(model.get_submodule(tensors[0][0]), tensors[0][1]).shape == shape


def test_what_is_left_out_is_named_by_kind():
    names = [(f"model.layers.{i}.mixer.dt_proj", READ) for i in range(3)] + [("vision.tower.layers.0.q", UNREACHED)]
    assert in_words(names) == (
        "3 x mixer.dt_proj (the model reads the weight without calling the layer); "
        "1 x vision.tower (a pass over text does not call it)"
    )
    many = in_words((f"layers.{i}.block.p{i}", SHARED) for i in range(6))
    assert many == "1 x block.p0, 1 x block.p1, 1 x block.p2, 1 x block.p3, 2 others (several layers share the weight)"
