"""Adapters on experts, computed in groups: against a loop over tokens and experts in float64, written without PEFT."""

from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.models.four_bit_tensor import as_parameter, in_mxfp4, in_nf4
from hub.models.patches import patches_of
from hub.models.structure import expert_stacks, layers_of
from hub.train.kernels import expert_adapters, experts
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.compiled import CompiledLayers, num_compiled
from hub.train.kernels.expert_adapters import ExpertAdapters, GroupedExperts, outermost, wrappers
from hub.train.kernels.experts import Factors
from hub.train.kernels.grouped import group_ends, grouped_product
from hub.train.kernels.half_experts import HalfExperts
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.packed_experts import FrozenExperts, PackedExperts, packed_experts

EXPERTS, R, ALPHA = 4, 3, 5.0
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2", "nemotron_h")
CHOSEN = torch.tensor([[0, 1], [3, 0], [1, 3], [0, 3], [3, 1], [1, 0], [0, 1]])
"""The experts of 7 tokens. Expert 2 gets none."""


def model_with_adapters(family, dtype=torch.float64, target="experts", **config):
    settings = AutoConfig.from_pretrained(zoo_model(family), **config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)  # biases, routers
    named = [".".join(tensor) for tensor in expert_stacks(model) if target == "experts"]
    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], target_parameters=named, r=R, lora_alpha=ALPHA))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.2)
    return adapted


def by_hand(wrapper, x, weights, factors):
    """The result for each token and expert, by the shapes of A and B alone. `factors`: (A, B) by the tensor's name."""
    module = wrapper.get_base_layer()
    kind, result = type(module).__name__, []

    def product(name, row, expert):
        a, b = factors[name]
        matrix, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
        matrix = matrix if kind == "GptOssExperts" else matrix.T  # (in, out)
        # PEFT 0.19.1 and later: A has the experts outside, (experts * r, in), and B inside, (out, r * experts).
        own_a, own_b = a[R * expert : R * (expert + 1)], b[:, expert::EXPERTS]
        return row @ matrix + ALPHA / R * (own_b @ (own_a @ row)) + (0 if bias is None else bias[expert])

    for token, row in enumerate(x):
        total = 0
        for place, expert in enumerate(CHOSEN[token].tolist()):
            inner = product("up_proj" if kind == "NemotronHExperts" else "gate_up_proj", row, expert)
            if kind == "NemotronHExperts":
                inner = torch.relu(inner) ** 2
            elif kind == "GptOssExperts":  # arXiv 2508.10925: gate and up alternate, both are bounded
                gate, up = inner[::2].clamp(max=7.0), inner[1::2].clamp(-7.0, 7.0)
                inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            else:
                gate, up = inner.chunk(2)
                inner = torch.nn.functional.silu(gate) * up
            total = total + weights[token, place] * product("down_proj", inner, expert)
        result.append(total)
    return torch.stack(result)


def pack(model, stored):
    """Put the experts' tensors into 4 bits. `by_hand` then reads matrix by matrix what their own dequantization gives."""
    for module in model.modules():
        if experts.is_known(module):
            for name in experts.wide_and_narrow(module):
                full = getattr(module, name).detach().float()
                if stored == "mxfp4":
                    size, inputs, outputs = full.shape
                    blocks = torch.randint(0, 256, (size, outputs, inputs // 32, 16), dtype=torch.uint8)
                    packed = in_mxfp4(blocks, torch.randint(118, 126, blocks.shape[:3], dtype=torch.uint8), torch.float64)
                else:
                    packed = in_nf4(full).to(torch.float64)
                setattr(module, name, as_parameter(packed))


def difference(family, break_it=None, stored="in full", held=False):
    """The largest relative difference of the result, and of the gradients of x, the weights, and each A and B."""
    model = model_with_adapters(family)
    if stored != "in full":
        pack(model, stored)
    patches_of(model).apply(ExpertAdapters(model))
    if held:
        patches_of(model).apply(PackedExperts(model, by_kernel=False))
    wrapper = outermost(model)[0][1]
    assert type(wrapper) is GroupedExperts
    x = torch.randn(len(CHOSEN), 64, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(CHOSEN.shape, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(len(CHOSEN), 64, dtype=torch.float64)
    factors = {one.parameter_name: (one.lora_A["default"].weight, one.lora_B["default"].weight) for one in wrappers(wrapper)}
    assert len(factors) == 2
    inputs = [x, weights, *(factor for pair in factors.values() for factor in pair)]
    expected = by_hand(wrapper, x, weights, factors)
    wanted = [expected, *torch.autograd.grad(expected, inputs, seed)]
    if break_it is not None:
        break_it(wrapper)
    result = wrapper(x, CHOSEN, weights)
    found = [result, *torch.autograd.grad(result, inputs, seed, allow_unused=True)]
    off = [
        1.0 if one is None else float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, wanted, strict=True)
    ]
    return max(off)


@pytest.mark.parametrize("family", FAMILIES)
def test_results_and_gradients_are_those_of_a_loop_over_experts(family):
    assert difference(family) < 1e-12


@pytest.mark.parametrize(("family", "stored"), [("qwen3_moe", "nf4"), ("gpt_oss", "nf4"), ("gpt_oss", "mxfp4")])
def test_in_4_bits_they_are_those_of_the_dequantized_matrices(family, stored):
    for held in (False, True):
        assert difference(family, stored=stored, held=held) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_in_float32_compute_in_the_type_of_the_arithmetic(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(zoo_model(family)), dtype=torch.float32)
    module = next(module for module in model.modules() if experts.is_known(module))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, weights = torch.randn(len(CHOSEN), 64, requires_grad=True), torch.rand(CHOSEN.shape)
    inputs, seed = [x, *module.parameters()], torch.randn(len(CHOSEN), 64)
    plain = module(x, CHOSEN, weights)
    wanted = [plain, *torch.autograd.grad(plain, inputs, seed)]
    patches_of(model).apply(HalfExperts(model))
    products = []
    with torch.autocast("cpu", torch.bfloat16), mock.patch.object(experts, "grouped_product", wraps=grouped_product) as product:
        result = module(x, CHOSEN, weights)
        products += [call.args[0].dtype for call in product.mock_calls]
    assert products == [torch.bfloat16] * 2
    found = [result, *torch.autograd.grad(result, inputs, seed)]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert 1e-6 < (one - other).norm() / other.norm() < 2e-2


@pytest.mark.parametrize("target", ["experts", "o_proj"])
def test_in_4_bits_no_matrix_is_saved_in_full(target):
    model = model_with_adapters("mixtral", torch.float32, target)
    pack(model, "nf4")
    model = model.float()
    patches_of(model).apply(FrozenExperts(model))
    patches_of(model).apply(ExpertAdapters(model))
    size, saved = min(module.down_proj[0].numel() for module in packed_experts(model)), []
    shapes = {tuple(module.down_proj.shape[-2:]) for module in packed_experts(model)}
    shapes |= {tuple(module.gate_up_proj.shape[-2:]) for module in packed_experts(model)}
    shapes |= {shape[::-1] for shape in shapes}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (saved.append(tensor), tensor)[1], lambda tensor: tensor):
        model(input_ids=torch.arange(40, 43)[None], use_cache=False)
    assert any(tensor.dtype == torch.uint8 for tensor in saved)
    assert not [tensor for tensor in saved if tensor.numel() >= size and tuple(tensor.shape[-2:]) in shapes]


def test_what_is_compared_notices_mistakes(monkeypatch):
    plain, product = expert_adapters.factors, grouped_product

    def without_alpha(*given):
        return plain(*given)._replace(scaling=1.0)

    def of_other_experts(*given):
        first, second, scaling = plain(*given)
        return Factors(first, second.roll(1, 0), scaling)

    def experts_inside(wrapper, adapter, is_transposed):
        a = wrapper.lora_A[adapter].weight
        first = a.reshape(-1, wrapper.num_experts, a.shape[-1]).permute(1, 2, 0)
        return plain(wrapper, adapter, is_transposed)._replace(first=first)

    def without_one(rows, matrices, ends):
        keep = torch.arange(len(matrices))[:, None, None] != 3
        return product(rows, matrices * keep if matrices.shape[-1] == R else matrices, ends)

    for mistake in (without_alpha, of_other_experts, experts_inside):
        monkeypatch.setattr(expert_adapters, "factors", mistake)
        assert difference("mixtral") > 1e-3
    monkeypatch.setattr(expert_adapters, "factors", plain)
    monkeypatch.setattr(experts, "grouped_product", without_one)
    assert difference("mixtral") > 1e-3


def test_merged_disabled_and_undone_it_is_the_same_model():
    model = model_with_adapters("gpt_oss", torch.float32).eval()
    ids, patches = torch.arange(40, 60)[None], patches_of(model)

    def logits():
        return model(input_ids=ids, use_cache=False).logits.detach()

    theirs = logits()
    with model.disable_adapter():
        base = logits()
    patch = patches.apply(ExpertAdapters(model))
    assert patch.others == []
    assert (logits() - theirs).abs().max() < 1e-4 < 0.1 < (base - theirs).abs().max()
    with model.disable_adapter():
        assert torch.equal(logits(), base)
    model.merge_adapter()
    assert (logits() - theirs).abs().max() < 1e-4
    model.unmerge_adapter()
    patches.undo(patch)
    assert not any(isinstance(module, GroupedExperts) for module in model.modules())


def test_experts_of_a_kind_that_is_not_known_keep_pefts_way():
    for family in ("jetmoe", "llama4_text"):
        model = model_with_adapters(family, torch.float32)
        assert len(patches_of(model).apply(ExpertAdapters(model)).others) == len(outermost(model))


def test_in_4_bits_experts_stay_where_they_are_when_what_a_layer_saves_is_offloaded():
    layer = torch.nn.Module()
    layer.down_proj = as_parameter(in_nf4(torch.randn(4, 6, 64)))
    rows = torch.randn(4, 5, 64, requires_grad=True)
    offload = ActivationOffload(torch.device("cpu"), min_bytes=1)
    with offload.around(layer, (rows,), {}):
        result = torch.bmm(rows * 2, layer.down_proj.mT)
    expected = torch.bmm(rows * 2, layer.down_proj.dequantized().mT)
    assert torch.equal(result, expected)
    seed = torch.randn_like(result)
    (found,), (wanted,) = (torch.autograd.grad(one, rows, seed) for one in (result, expected))
    assert torch.equal(found, wanted)


@pytest.mark.slow
def test_one_graph_serves_all_layers_of_any_length_with_checkpointing_in_4_bits(monkeypatch):
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: plain(function, backend="aot_eager"))
    model = model_with_adapters("mixtral", torch.float32, num_hidden_layers=3).train()
    pack(model, "nf4")
    model = model.float()
    patches, trained = patches_of(model), [p for p in model.parameters() if p.requires_grad]
    patches.apply(ExpertAdapters(model))
    patches.apply(PackedExperts(model, by_kernel=False))

    def gradients(length):
        logits = model(input_ids=torch.arange(30, 30 + 2 * length).view(2, length), use_cache=False).logits
        return torch.autograd.grad(logits.square().mean(), trained)

    expected = [gradients(20), gradients(33)]
    patches.apply(CompiledLayers(layers_of(model)))
    patches.apply(Checkpointing(layers_of(model)))
    before = num_compiled()
    found = [gradients(20), gradients(33)]
    assert num_compiled() - before == 1
    for ours, others in zip(found, expected, strict=True):
        assert all((one - other).abs().max() < 1e-5 for one, other in zip(ours, others, strict=True))


def test_frozen_matrices_need_no_saved_rows():
    rows = torch.randn(6, 5, requires_grad=True)
    ends = group_ends(torch.tensor([0, 0, 2, 2, 2, 3]), EXPERTS)
    assert ends.tolist() == [2, 2, 5, 6]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (saved.append(tensor.shape), tensor)[1], lambda tensor: tensor
    ):
        grouped_product(rows, torch.randn(EXPERTS, 5, 7), ends)
        grouped_product(rows, torch.randn(EXPERTS, 5, 7, requires_grad=True), ends)
    assert [shape == rows.shape for shape in saved] == [False, False, True, False, False]


def test_factors_of_any_rank_are_padded_to_what_the_kernel_takes(monkeypatch):
    monkeypatch.setattr(experts, "is_native", lambda rows, sizes: all(size % 8 == 0 for size in sizes))
    first, second = experts._of_kernel_size(torch.zeros(2, 8), torch.ones(EXPERTS, 8, 3), torch.ones(EXPERTS, 3, 16))
    assert (first.shape, second.shape) == ((EXPERTS, 8, 8), (EXPERTS, 8, 16))
    assert torch.equal(first @ second, torch.full((EXPERTS, 8, 16), 3.0))
