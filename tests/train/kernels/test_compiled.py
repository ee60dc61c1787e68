"""Compiled layers: one graph for all layers of a kind and for rows of any length. tests/gpu has the real kernels."""

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from transformers import AutoConfig, AutoModelForCausalLM

from hub.data.prepare import Sample
from hub.models.patches import ModelPatches, patches_of
from hub.models.structure import layers_of
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack, pad
from hub.train.kernels import attention, compiled, tiles
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.compiled import CompiledLayers, num_compiled
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.unpack import UnpackByKernel
from hub.train.losses.causal_lm import causal_lm_loss

pytestmark = pytest.mark.slow

LENGTHS = [(30, 7, 19), (100, 3), (64,), (5,) * 20, (2,), (1,), (300, 20, 200), (128, 128), (3, 1), (16, 16), (600,)]
"""Among them: one sample, one token, as many tokens as the model has features (64) or a head has (16), a power of two."""


@torch.library.custom_op("hub_tests::attend", mutates_args=())
def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
    """Stands in for torch's kernel, which runs on a GPU only: opaque to the compiler in the same way."""
    assert longest >= int(starts.diff().max())
    return query + key.repeat_interleave(query.shape[1] // key.shape[1], 1) * value.mean((1, 2), keepdim=True)


@attend.register_fake
def _(query, key, value, starts, longest):
    return torch.empty_like(query)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:3])


def backward(ctx, gradient):
    key, value = ctx.saved_tensors
    return gradient, torch.zeros_like(key), torch.zeros_like(value), None, None


attend.register_autograd(backward, setup_context=save)


def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    return attend(query.contiguous(), key.contiguous(), value.contiguous(), cu_seq_q, max_q)


@pytest.fixture
def adapted(monkeypatch):
    """Makes models with adapters."""
    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="aot_eager"))
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", stand_in)
    attention.torch_kernel.cache_clear()

    def make(dropout: float = 0.0):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32, num_hidden_layers=3).train()
        return get_peft_model(
            model, LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False, lora_dropout=dropout)
        )

    yield make
    attention.torch_kernel.cache_clear()


@pytest.fixture
def model(adapted):
    return adapted()


def gradients(model, form, rows=None) -> tuple[list[torch.Tensor], list[int]]:
    """Of micro-batches of all those lengths, and how many graphs there were after each."""
    rng = np.random.default_rng(0)
    found, counts, before = [], [], num_compiled()
    for lengths in rows or LENGTHS:
        samples = [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]
        model.zero_grad()
        causal_lm_loss(model, form(samples)).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
        counts.append(num_compiled() - before)
    return found, counts


ALL = len(LENGTHS)


@pytest.mark.usefixtures("adapted")
def test_layers_of_one_kind_share_a_version_where_the_config_lists_their_kinds():
    kinds = ["full_attention"] * 6
    config = AutoConfig.from_pretrained(tiny_model_path("qwen3"), num_hidden_layers=6, layer_types=kinds)
    model = AutoModelForCausalLM.from_config(config)
    patches = patches_of(model)
    patches.apply(attention.VarlenAttention(model))
    patches.apply(CompiledLayers(layers_of(model)))
    assert gradients(model, pack, [(30, 7), (100, 3)])[1] == [1, 1]


@pytest.mark.parametrize(
    ("checkpointed", "offload", "versions"),
    [
        (0, None, [1] * ALL),
        (2, None, [2] * ALL),  # checkpointed layers have one of their own
        (3, None, [1] * ALL),
        # So have micro-batches of too few tokens for tiles, and long rows, whose attention is saved.
        (3, ActivationOffload(torch.device("cpu"), 1, tiles_from=16), [1] * 4 + [2] * 2 + [3] * (ALL - 6)),
    ],
)
def test_one_version_serves_all_layers_and_lengths_and_gives_the_same(model, monkeypatch, checkpointed, offload, versions):
    monkeypatch.setattr(compiled, "LONG_ROWS", 256)
    patches = patches_of(model)
    patches.apply(attention.VarlenAttention(model))
    expected, _ = gradients(model, pack)
    patches.apply(CompiledLayers(layers_of(model)))
    patches.apply(Checkpointing(layers_of(model)[:checkpointed], offload))
    found, counts = gradients(model, pack)
    assert counts == versions
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Products:
    """A compiler that counts the products of each graph, forward and backward, and what forward ones save."""

    def __init__(self) -> None:
        self.forward: list[int] = []
        self.backward: list[int] = []
        self.kept: list[int] = []
        self.unpacked: list[int] = []

    def __call__(self, graph, inputs):
        return aot_autograd(
            fw_compiler=self._first, bw_compiler=self._second, partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )(graph, inputs)  # fmt: skip

    def _first(self, graph, inputs):
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        made = [node for node in output.args[0] if isinstance(node, torch.fx.Node) and node.op == "call_function"]
        self.kept.append(sum(isinstance(node.meta["val"], torch.Tensor) for node in made))
        self.forward.append(self._count(graph))
        return make_boxed_func(graph.forward)

    def _second(self, graph, inputs):
        self.backward.append(self._count(graph))
        return make_boxed_func(graph.forward)

    def _count(self, graph) -> int:
        names = [str(node.target) for node in graph.graph.nodes]
        self.unpacked.append(sum(name.startswith(("bitsandbytes.dequantize_4bit", "hub.unpack_4bit")) for name in names))
        return sum(name.startswith(("aten.mm", "bitsandbytes.gemm_4bit", "hub.product_4bit")) for name in names)


def frozen(quantized: bool, kernel: bool = False):
    """Return a model of which only the last norm is trained, so that all products of its layers are those of the passes."""
    if quantized:
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.bfloat16).train()
    for layer in layers_of(model) if quantized else ():
        for name, plain in [(name, part) for name, part in layer.named_modules() if type(part) is torch.nn.Linear]:
            part = bitsandbytes.nn.Linear4bit(
                plain.in_features, plain.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            part.load_state_dict(plain.state_dict())
            parent, _, last = name.rpartition(".")
            setattr(layer.get_submodule(parent), last, part.to("cpu"))
            if kernel:
                patches_of(model).apply(UnpackByKernel([part]))
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    return model


ATTENTION_PRODUCTS, MLP_PRODUCTS, LAST = 4, 3, 1


@pytest.mark.parametrize(("quantized", "kernel"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("offload", "long", "tiles", "attention_again"),
    [(False, 9999, 1, ATTENTION_PRODUCTS), (True, 9999, tiles.NUM_TILES, ATTENTION_PRODUCTS), (True, 1, tiles.NUM_TILES, 1)],
)
def test_a_checkpointed_layer_saves_its_input_and_computes_again_only_what_the_backward_pass_needs(
    monkeypatch, plain_unpacking, quantized, kernel, offload, long, tiles, attention_again
):
    products, real = Products(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=products))
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", stand_in)
    monkeypatch.setattr(compiled, "ATTENTION", ("hub_tests.",))
    monkeypatch.setattr(compiled, "LONG_ROWS", long)
    attention.torch_kernel.cache_clear()
    model = frozen(quantized, kernel)
    patches = patches_of(model)
    patches.apply(CompiledLayers(layers_of(model)))
    offloading = ActivationOffload(torch.device("cpu"), 1, tiles_from=16) if offload else None
    patches.apply(Checkpointing(layers_of(model), offloading))
    patches.apply(attention.VarlenAttention(model))
    gradients(model, pack, [(30, 20), (40,)])
    attention.torch_kernel.cache_clear()
    forward = ATTENTION_PRODUCTS + MLP_PRODUCTS * tiles
    assert products.forward == [forward]
    # Of a layer's products all but the MLP's last are needed again; if attention is saved, its output's alone, since the
    # stand-in's backward pass does without queries, keys and values.
    assert products.backward == [forward + attention_again + (MLP_PRODUCTS - LAST) * tiles]
    assert products.kept == [1 + (long == 1)]  # the output itself; and what attention gave
    assert products.unpacked == ([MLP_PRODUCTS if offload else 0, ATTENTION_PRODUCTS + MLP_PRODUCTS] if quantized else [0, 0])


def test_a_dequantized_weight_is_not_saved(monkeypatch, plain_unpacking):
    products, real = Products(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=products))
    model = frozen(quantized=True, kernel=True)
    patches_of(model).apply(CompiledLayers(layers_of(model)))
    gradients(model, lambda samples: pad(samples, 0), [(30, 20)])
    assert products.unpacked == [0, ATTENTION_PRODUCTS + MLP_PRODUCTS]
    assert products.forward == [ATTENTION_PRODUCTS + MLP_PRODUCTS]


def test_what_dropout_drops_is_dropped_again(adapted):
    model = adapted(dropout=0.5)
    patches = ModelPatches(model)
    patches.apply(CompiledLayers(layers_of(model)))
    found = []
    for seed, again in ((0, False), (1, False), (0, True)):
        with patches.temporarily(Checkpointing(layers_of(model)[: 3 * again])):
            torch.manual_seed(seed)
            found.append(gradients(model, pack, [(30, 7, 19)])[0][0])
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()


def test_padded_rows_take_few_versions(model):
    patches_of(model).apply(CompiledLayers(layers_of(model)))
    _, counts = gradients(model, lambda samples: pad(samples, 0))
    assert counts[:2] == [1, 1]
    assert counts[3:] == [3] * (len(LENGTHS) - 3)  # and one for a single row, and one without a mask


def test_evaluation_is_not_compiled(model):
    patches_of(model).apply(CompiledLayers(layers_of(model)))
    before = num_compiled()
    model.eval()(input_ids=torch.arange(9)[None], use_cache=False)
    assert num_compiled() == before
