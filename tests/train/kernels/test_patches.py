"""The owner of a model's patches: undone in any legal order, the model is as it was, to the same objects and the same bits."""

import random

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hub.data.prepare import Sample
from hub.models.patches import Edits, ModelPatches, Patch, PatchOrderError, patches_of
from hub.models.structure import layers_of
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels import attention
from hub.train.kernels.attention import VarlenAttention, uses_varlen
from hub.train.kernels.checkpointing import Checkpointing, num_checkpointed
from hub.train.kernels.compiled import CompiledForward, CompiledLayers
from hub.train.kernels.head import FusedHead, fused_head
from hub.train.kernels.hidden_states import HiddenStatesIn
from hub.train.kernels.host_embedding import EmbeddingOnHost
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.tiles import TiledMlp
from hub.train.kernels.unpack import UnpackByKernel

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")

CPU = torch.device("cpu")
BUILT_ON = {CompiledLayers: {Checkpointing}, UnpackByKernel: {Checkpointing}}
"""Kind of patch -> kinds of later ones that must be undone before it."""


@pytest.fixture
def model(monkeypatch, plain_unpacking):
    """Two layers, the second with a 4-bit MLP. The model has run once: some modules set attributes in their first pass."""
    real = torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", lambda query, key, value, *bounds, **options: query * 0.5)
    attention.torch_kernel.cache_clear()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32, num_hidden_layers=2).train()
    model.get_input_embeddings().requires_grad_(False)
    mlp = layers_of(model)[1].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        plain = getattr(mlp, name)
        part = bitsandbytes.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32)
        part.load_state_dict(plain.state_dict())
        setattr(mlp, name, part.to("cpu").requires_grad_(False))
    loss_and_gradient(model)
    yield model
    attention.torch_kernel.cache_clear()


def loss_and_gradient(model) -> list[torch.Tensor]:
    from hub.train.losses.causal_lm import causal_lm_loss

    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in (30, 7, 19)]
    model.zero_grad()
    loss = causal_lm_loss(model, pack(samples))
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [loss.detach(), *gradients]


def all_patches(model) -> list[Patch]:
    """Make every patch that a CPU can take, in the order of a run."""
    first, second = layers_of(model)
    weight = model.get_input_embeddings().weight
    return [
        VarlenAttention(model),
        FusedHead(model.get_output_embeddings()),
        HiddenStatesIn(model, torch.float32),
        UnpackByKernel([module for module in second.mlp.modules() if type(module) is bitsandbytes.nn.Linear4bit]),
        CompiledLayers([first, second]),
        EmbeddingOnHost(weight, weight.detach().clone()),
        Checkpointing([first]),
        Checkpointing([second], ActivationOffload(CPU, 1, tiles_from=16)),
    ]


class State:
    """Everything about a model that a patch could change: equal if all objects are the same ones and all numbers are equal."""

    def __init__(self, model, patches: list[Patch]) -> None:
        self.objects: dict[str, object] = {}
        self.numbers = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        mapped = [patch._mapped.data_ptr() for patch in patches if isinstance(patch, EmbeddingOnHost)]
        self.is_offloaded = model.get_input_embeddings().weight.data_ptr() in mapped
        for name, module in model.named_modules():
            self._add(name, vars(module))
            self._add(f"{name}.config", vars(getattr(module, "config", object)))
        self.objects.pop("._hub_patches", None)  # there as long as one patch is on

    def _add(self, path: str, values) -> None:
        for key, value in values.items():
            if isinstance(value, CompiledForward):
                self._add(f"{path}.{key}", vars(value))
            if isinstance(value, dict):
                self._add(f"{path}.{key}", value)
            else:
                self.objects[f"{path}.{key}"] = value

    def __eq__(self, other) -> bool:
        same_objects = self.objects.keys() == other.objects.keys() and all(
            value is other.objects[path] or (isinstance(value, str | int | float) and value == other.objects[path])
            for path, value in self.objects.items()
        )
        same_numbers = self.numbers.keys() == other.numbers.keys() and all(
            torch.equal(value, other.numbers[name]) for name, value in self.numbers.items()
        )
        return same_objects and same_numbers and self.is_offloaded == other.is_offloaded


def all_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_undone_in_any_legal_order_the_model_is_as_it_was(model, seed):
    expected, patches, order = loss_and_gradient(model), patches_of(model), all_patches(model)
    before = State(model, order)
    for patch in order:
        state = State(model, order)
        patches.apply(patch)
        assert State(model, order) != state, f"{type(patch).__name__} changes nothing"
    assert patches_of(model) is patches
    assert patches.applied == order
    assert (uses_varlen(model), fused_head(model), num_checkpointed(patches)) == (True, order[1], 2)
    assert not all_equal(loss_and_gradient(model), expected)
    random.Random(seed).shuffle(order)
    while order:
        patch = order.pop(0)
        later = patches.applied[patches.applied.index(patch) + 1 :]
        if any(isinstance(one, tuple(BUILT_ON.get(type(patch), ()))) for one in later if touches(one, patch)):
            state = State(model, later)
            with pytest.raises(PatchOrderError, match="undo it first"):
                patches.undo(patch)
            assert State(model, later) == state
            order.append(patch)
        else:
            patches.undo(patch)
    assert not patches.applied
    assert State(model, all_patches(model)) == before
    assert "_hub_patches" not in vars(model)
    assert (uses_varlen(model), fused_head(model), num_checkpointed(patches)) == (False, None, 0)
    assert all_equal(loss_and_gradient(model), expected)


def touches(later: Patch, earlier: Patch) -> bool:
    """Whether a checkpointing patch builds on an earlier patch: it tiles 4-bit MLPs only if it offloads."""
    return not isinstance(earlier, UnpackByKernel) or later.offload is not None if isinstance(later, Checkpointing) else False


class Forgetful(Edits):
    """A mutant that forgets to undo one change."""

    def forget(self, number: int) -> None:
        self.forgotten = self._edits.pop(number)


def test_a_mutant_that_forgets_one_change_is_noticed(model, monkeypatch):
    monkeypatch.setattr("hub.models.patches.Edits", Forgetful)
    patches, order, num_forgotten = ModelPatches(model), all_patches(model), 0
    states = []
    for patch in order:
        states.append(State(model, order))
        patches.apply(patch)
    for number in reversed(range(len(order))):
        edits = patches._applied[number][1]
        for place in range(len(edits._edits)):
            edits.forget(place)
            patches.undo(order[number])
            assert State(model, order) != states[number], f"{type(order[number]).__name__}, change {place}"
            edits.forgotten.undo()
            assert State(model, order) == states[number]
            num_forgotten += 1
            patches.apply(order[number])
            edits = patches._applied[number][1]
        patches.undo(order[number])
    assert num_forgotten >= 20


def test_a_forward_pass_that_other_code_replaced_is_not_overwritten(model):
    patches, (layer, _) = patches_of(model), layers_of(model)
    patch = patches.apply(Checkpointing([layer]))
    patched = layer.forward
    layer.forward = foreign = lambda *args, **named: patched(*args, **named)
    with pytest.raises(PatchOrderError, match="code outside the hub has changed what Checkpointing changed"):
        patches.undo(patch)
    assert layer.forward is foreign
    layer.forward = patched
    patches.undo(patch)
    assert "forward" not in vars(layer)


class Fails(Patch):
    def __init__(self, layer) -> None:
        self._layer = layer

    def apply(self, edits: Edits) -> None:
        TiledMlp(self._layer, 16).apply(edits)
        raise RuntimeError("no kernel")


def test_a_patch_that_fails_or_is_tried_only_leaves_nothing_behind(model):
    patches, before = patches_of(model), State(model, [])
    with pytest.raises(RuntimeError, match="no kernel"):
        patches.apply(Fails(layers_of(model)[1]))
    assert State(model, []) == before
    with pytest.raises(RuntimeError, match="no pass"), patches.temporarily(Checkpointing(layers_of(model))):
        raise RuntimeError("no pass")
    assert State(model, []) == before
    assert "_hub_patches" not in vars(model)


def test_a_model_has_one_owner_and_a_patch_is_applied_once(model):
    patches = patches_of(model)
    patch = patches.apply(HiddenStatesIn(model, torch.float32))
    with pytest.raises(ValueError, match="is on already"):
        patches.apply(patch)
    with pytest.raises(ValueError, match="another ModelPatches owns this model"):
        ModelPatches(model).apply(HiddenStatesIn(model, torch.float32))
    patches.undo(patch)
    with pytest.raises(ValueError, match="is not on"):
        patches.undo(patch)


def test_the_plan_says_what_is_on(model):
    patches = patches_of(model)
    for key, without in {"attention": "sdpa", "fused_head": False, "compiled": False, "unpacking": "bitsandbytes",
                         "activation_offload": False, "embedding_on_host": False}.items():  # fmt: skip
        patches.decide(key, without, "a reason")
    patches.decide("layers_recomputed", 0)
    off = patches.plan()
    assert off["attention_because"] == "a reason"
    assert "layers_recomputed_because" not in off
    for patch in all_patches(model):
        patches.apply(patch)
    on = {key: value for key, value in patches.plan().items() if not key.endswith("_because")}
    assert on == {
        "attention": "variable-length", "fused_head": True, "compiled": True, "unpacking": "the hub's kernel",
        "activation_offload": True, "embedding_on_host": True, "layers_recomputed": 2,
    }  # fmt: skip
    for patch in reversed(patches.applied):
        patches.undo(patch)
    assert patches.plan() == off


def test_adapters_take_hidden_states_as_they_are_and_give_the_same():
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.bfloat16).train()
    adapted = get_peft_model(plain, LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False))
    adapters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in adapters} == {torch.float32}

    def measured() -> tuple[list[torch.Tensor], int]:
        """Return the loss and the gradients, and the bytes that were saved for these."""
        kept: dict[int, torch.UntypedStorage] = {}

        def save(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            return loss_and_gradient(adapted), sum(storage.nbytes() for storage in kept.values())

    patches = patches_of(adapted)
    (expected, before), patch = measured(), HiddenStatesIn(adapted, torch.bfloat16)
    with patches.temporarily(patch):
        found, after = measured()
        layer = layers_of(adapted)[0].self_attn.q_proj
        assert layer(torch.zeros(1, 1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16  # without autocast PEFT casts
    assert all_equal(found, expected)
    assert "_cast_input_dtype" not in vars(layer)
    # Of 56 tokens each layer saves 4 x 64 numbers less: one input of queries, keys and values in place of three, one of gate
    # and up in place of two, and attention's output once, not again for the adapter behind it.
    assert before - after == 2 * 56 * 2 * (4 * 64)
