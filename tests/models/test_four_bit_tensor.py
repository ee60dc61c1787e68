"""Experts in 4 bits: their numbers are those of bitsandbytes and of transformers, and loading holds one tensor in full."""

import copy
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from zoo.mxfp4 import in_mxfp4_on_disk
from zoo.zoo import zoo_model

from hub.config.schema import ModelConfig
from hub.models import four_bit_loading
from hub.models.four_bit_tensor import FourBitTensor, as_parameter, bytes_of, in_mxfp4, in_nf4
from hub.models.load import load_causal_lm

functional = pytest.importorskip("bitsandbytes").functional


def nf4(dtype=torch.float32):
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


@pytest.mark.parametrize("shape", [(4, 96, 64), (4, 64, 32), (3, 5, 7), (4, 100, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_that_of_bitsandbytes_as_a_whole_and_matrix_by_matrix(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    # bitsandbytes' kernel for CPUs is wrong for rows of 32, half a block. The blocks follow each other whatever the rows are.
    rows = weight.view(-1, 64) if weight.numel() % 64 == 0 else weight
    packed_rows = functional.quantize_4bit(rows, blocksize=64, compress_statistics=True, quant_type="nf4")
    expected = functional.dequantize_4bit(*packed_rows).view(shape)
    packed = in_nf4(weight)
    assert torch.equal(packed.dequantized(), expected)
    assert all(torch.equal(packed[expert], expected[expert]) for expert in range(len(weight)))
    assert torch.equal(packed.mT @ weight, expected.mT @ weight)


def test_mxfp4_is_that_of_transformers():
    blocks = torch.randint(0, 256, (4, 6, 2, 16), dtype=torch.uint8)
    scales = torch.randint(1, 250, (4, 6, 2), dtype=torch.uint8)
    for dtype in (torch.bfloat16, torch.float32):
        packed, expected = in_mxfp4(blocks, scales, dtype), convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        assert packed.shape == expected.shape == (4, 64, 6)
        assert torch.equal(packed.dequantized(), expected)
        assert torch.equal(packed[2], expected[2])


def test_it_is_a_frozen_parameter_that_moves_and_is_copied_and_never_changes_in_place():
    weight = as_parameter(in_nf4(torch.randn(4, 96, 64)))
    module = torch.nn.Module()
    module.weight = weight
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((4, 96, 64), torch.float32, False)
    assert bytes_of(weight) == 4 * 96 * 64 // 2 + 4 * 96 + 4 * (16 + 256 + 2 + 1)
    assert torch.equal(copy.deepcopy(module).weight.dequantized(), weight.dequantized())
    wide = copy.deepcopy(module).to(torch.bfloat16).weight
    assert torch.equal(wide.dequantized(), weight.dequantized().bfloat16())
    assert module.to("meta").weight.device.type == "meta"
    with pytest.raises(NotImplementedError, match="can't be changed in place"):
        weight.add_(1)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_model_is_loaded_with_its_experts_in_4_bits_and_one_tensor_in_full(monkeypatch, family):
    in_full, quantize = [], four_bit_loading.in_nf4

    def watched(weight):
        assert not [1 for other in in_full if other() is not None]
        in_full.append(weakref.ref(weight))
        return quantize(weight)

    monkeypatch.setattr(four_bit_loading, "in_nf4", watched)
    path, ids = zoo_model(family), torch.arange(40, 60)[None]
    model = load_causal_lm(ModelConfig(path=str(path)), path, "cpu", torch.float32, nf4()).eval()
    assert len(in_full) == 4
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if isinstance(parameter, FourBitTensor):
                assert torch.equal(in_nf4(weights[name]).dequantized(), parameter.dequantized())
                weights[name].copy_(parameter.dequantized())
            elif (state := getattr(parameter, "quant_state", None)) is not None:
                weights[name].copy_(functional.dequantize_4bit(parameter.data, state))
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_in_mxfp4_are_kept_code_by_code_or_dequantized(tmp_path, dtype):
    folder = in_mxfp4_on_disk(tmp_path / "model")
    cfg = ModelConfig(path=str(folder))
    kept, full = (load_causal_lm(cfg, folder, "cpu", dtype, how) for how in (nf4(dtype), None))
    for ours, theirs in zip(kept.model.layers, full.model.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            one, other = getattr(ours.mlp.experts, name), getattr(theirs.mlp.experts, name)
            assert isinstance(one, FourBitTensor)
            assert (one.format, other.dtype) == ("mxfp4", dtype)
            assert torch.equal(one.dequantized(), other)
        assert type(ours.self_attn.q_proj).__name__ == "Linear4bit"
