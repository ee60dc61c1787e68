"""CPU offload of checkpointed layers' inputs: less GPU memory, and the same bits."""

import json
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from hub import compose
from hub.launch.launcher import launch
from hub.models.patches import ModelPatches
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.host_embedding import offload_embedding
from hub.train.kernels.offload import ActivationOffload
from hub.train.layout import activations

TOKENS, HIDDEN, LAYERS = 16384, 1024, 12


def passed(offload: ActivationOffload | None) -> tuple[list[torch.Tensor], float]:
    """Return gradients after two passes, and the peak of the second over what was there before it, in bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=1024, num_hidden_layers=LAYERS, num_attention_heads=8,
                         num_key_value_heads=2, vocab_size=512, attn_implementation="sdpa")  # fmt: skip
    with torch.device("cuda"):
        model = LlamaModel(config).to(torch.bfloat16).train()
    ModelPatches(model).apply(Checkpointing(list(model.layers), offload))
    for seed in range(2):
        torch.manual_seed(seed)
        ids = torch.randint(0, 512, (1, TOKENS), device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = model(input_ids=ids, use_cache=False).last_hidden_state
        output.backward(torch.randn_like(output) * 1e-3)
    torch.cuda.synchronize()
    return [p.grad for p in model.parameters()], torch.cuda.max_memory_allocated() - before


def test_gradients_are_bit_equal_and_all_but_a_few_inputs_leave_the_gpu():
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        torch.use_deterministic_algorithms(True)
        try:
            plain, peak = passed(None)
            offloaded, peak_offloaded = passed(ActivationOffload(torch.device("cuda")))
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(plain, offloaded, strict=True))
    assert peak - peak_offloaded > (LAYERS - 4) * TOKENS * HIDDEN * 2


@pytest.mark.parametrize("compiled", ["none", "layers"])
def test_a_run_gives_the_same_losses_with_it(tmp_path, monkeypatch, compiled):
    monkeypatch.setattr(activations, "ActivationOffload", partial(ActivationOffload, min_bytes=1))
    options = ["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", "algo.max_steps=6", "algo.max_tokens_per_gpu=2000"]
    options += ["algo.gradient_checkpointing=all", f"algo.torch_compile={compiled}", f"output_dir={tmp_path}"]

    def losses(offload: str) -> list[float]:
        result = launch(compose(*options, f"algo.activation_offload={offload}"))
        plan = json.loads((result.run_path / "plan.json").read_text())
        assert plan["activation_offload"] == (offload == "all")
        return [line["loss"] for line in result.metrics]

    assert losses("all") == pytest.approx(losses("none"), rel=1e-3)


def test_an_offloaded_embedding_gives_the_same_and_takes_no_gpu_memory():
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=50_000, tie_word_embeddings=False)  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
        ids = torch.randint(0, 50_000, (1, 3000))
    norm = model.model.layers[0].input_layernorm.weight.requires_grad_()

    def results() -> list[torch.Tensor]:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        return [loss, *torch.autograd.grad(loss, norm)]

    weight = model.get_input_embeddings().weight
    expected, known, before = results(), weight.cpu(), torch.cuda.memory_allocated()
    patches = ModelPatches(model)
    assert offload_embedding(patches, model) == ""
    assert torch.cuda.memory_allocated() <= before - weight.nbytes
    assert all(torch.equal(one, other) for one, other in zip(results(), expected, strict=True))
    assert weight.is_cuda
    assert torch.equal(weight.cpu(), known)
    for patch in reversed(patches.applied):
        patches.undo(patch)
    assert torch.cuda.memory_allocated() >= before
    assert all(torch.equal(one, other) for one, other in zip(results(), expected, strict=True))
    assert torch.equal(weight.cpu(), known)
