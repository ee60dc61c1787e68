"""CPU offload of checkpointed layers' inputs: the same gradients, and no tensor is leaked. tests/gpu measures memory."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hub import compose
from hub.data.prepare import Sample
from hub.launch.launcher import launch
from hub.models.patches import ModelPatches
from hub.models.structure import layers_of
from hub.parallel.strategy import Replicated
from hub.system import memory as host
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels import host_embedding, offload, tiles
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.host_embedding import offload_embedding
from hub.train.kernels.offload import ActivationOffload
from hub.train.layout import activations
from hub.train.layout.memory_budget import Line, PassMemory
from hub.train.losses.causal_lm import causal_lm_loss

CPU = torch.device("cpu")


def batch(seed: int = 0):
    rng = np.random.default_rng(seed)
    return pack([Sample(rng.integers(3, 512, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in (30, 7, 19)])


def load():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model_path("llama"), dtype=torch.float32, num_hidden_layers=4, attention_dropout=0.1
    )
    return model.train()


def checkpoint(model, inputs: ActivationOffload | None, num: int = 4) -> None:
    ModelPatches(model).apply(Checkpointing(layers_of(model)[:num], inputs))


def gradients(num: int, inputs: ActivationOffload | None) -> list[torch.Tensor]:
    model = load()
    checkpoint(model, inputs, num)
    for seed in range(3):
        torch.manual_seed(seed)
        causal_lm_loss(model, batch(seed)).backward()
    return [p.grad for p in model.parameters()]


def test_a_tensor_comes_back_as_it_lay_in_memory():
    inputs = ActivationOffload(CPU, min_bytes=1)
    for tensor in (torch.randn(1, 5, 3, 7), torch.randn(2, 5, 3, 7).transpose(1, 2), torch.randn(6, 4).T):
        back = inputs._fetch(inputs._offload(tensor, offload._Group(None)))
        assert torch.equal(back, tensor)
        assert back.stride() == tensor.stride()


@pytest.mark.parametrize("num", [1, 4])
def test_gradients_are_bit_equal(num, monkeypatch):
    monkeypatch.setattr(offload, "PIECE_BYTES", 1000)
    inputs = ActivationOffload(CPU, min_bytes=1)
    offloaded = []
    inputs._offload = lambda tensor, group, plain=inputs._offload: offloaded.append(tensor) or plain(tensor, group)
    found = gradients(num, inputs)
    assert sum(tensor.ndim == 3 for tensor in offloaded) == 3 * num
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(0, None), strict=True))


def test_the_next_one_comes_back_ahead_and_each_only_once(monkeypatch):
    inputs = ActivationOffload(CPU, min_bytes=1)
    brought: list[int] = []
    asked: list[int] = []
    bring, fetch = inputs._bring_back, inputs._fetch

    def record(tensor):
        if tensor.back is None:
            brought.append(id(tensor))
        bring(tensor)

    monkeypatch.setattr(inputs, "_bring_back", record)

    def watch(held):
        if isinstance(held, offload._Offloaded):
            asked.append(len(brought))
        return fetch(held)

    monkeypatch.setattr(inputs, "_fetch", watch)
    model = load()
    checkpoint(model, inputs)
    causal_lm_loss(model, batch()).backward()
    assert len(brought) == len(set(brought)) == 4
    assert asked == [0, 2, 3, 4]  # how many were on their way when each was asked for: the last layer's is the only late one


def test_of_what_is_offloaded_nothing_stays_while_the_graph_waits():
    model = load()
    checkpoint(model, ActivationOffload(CPU, min_bytes=1))
    seen = []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda module, args: seen.append(weakref.ref(args[0])))
    loss = causal_lm_loss(model, batch())
    assert [one() for one in seen] == [None] * 4
    loss.backward()


class TwoSaved(torch.nn.Module):
    """Saves its input and one more tensor."""

    def forward(self, hidden, factor):
        return hidden * torch.tanh(hidden) * factor


def test_what_else_a_layer_saves_comes_back_with_its_input_and_arguments_of_all_layers_stay(monkeypatch):
    inputs = ActivationOffload(CPU, min_bytes=1)
    brought, asked, bring, fetch = [], [], inputs._bring_back, inputs._fetch

    def record(tensor):
        if tensor.back is None:
            brought.append(tensor)
        bring(tensor)

    def watch(held):
        if isinstance(held, offload._Offloaded):
            asked.append((held in brought, len(brought)))
        return fetch(held)

    monkeypatch.setattr(inputs, "_bring_back", record)
    monkeypatch.setattr(inputs, "_fetch", watch)
    layers, factor = [TwoSaved() for _ in range(4)], torch.full((2, 5, 3), 0.7)
    start = torch.randn(2, 5, 3, requires_grad=True)
    hidden, plain = start, start
    for layer in layers:
        with inputs.around(layer, (hidden,), {"factor": factor}):
            hidden = layer(hidden, factor)
        plain = layer(plain, factor)
    (found,) = torch.autograd.grad(hidden.sum(), start)
    (expected,) = torch.autograd.grad(plain.sum(), start)
    assert torch.equal(found, expected)
    num_offloaded = len(brought)
    assert num_offloaded == len(set(map(id, brought)))  # each only once
    per_layer = num_offloaded // 4
    assert per_layer > 1
    # What the last layer saves is late. For all others everything is on its way when the first of it is fetched.
    assert all(under_way for under_way, _ in asked[per_layer:])
    assert [count for _, count in asked[::per_layer]] == [0, 2 * per_layer, 3 * per_layer, 4 * per_layer]
    assert not any((one.pieces[0] == factor.flatten()).all() for one in brought)


def test_nothing_is_held_after_the_backward_pass_or_after_one_that_failed():
    inputs = ActivationOffload(CPU, min_bytes=1)
    model = load()
    checkpoint(model, inputs)
    causal_lm_loss(model, batch()).backward()
    loss = causal_lm_loss(model, batch())
    del loss
    gc.collect()
    assert inputs._last() is None


def test_small_tensors_and_evaluation_are_left_alone(monkeypatch):
    offloaded, begin = [], offload._Offloaded.__init__
    monkeypatch.setattr(offload._Offloaded, "__init__", lambda self, *args: offloaded.append(self) or begin(self, *args))
    inputs = ActivationOffload(CPU)
    model = load()
    checkpoint(model, inputs)
    causal_lm_loss(model, batch()).backward()
    model.eval()
    inputs._min_bytes = 1
    causal_lm_loss(model, batch())
    assert not offloaded
    model.train()
    causal_lm_loss(model, batch())
    assert offloaded


def test_it_needs_checkpointed_layers():
    options = ["algo=sft", "model=tiny", "data=tiny", "algo.activation_offload=all", "algo.gradient_checkpointing=none"]
    (line,) = compose(*options).problems()
    assert line.endswith("Type algo.gradient_checkpointing=all")


def test_on_a_cpu_it_is_logged_that_it_changes_nothing(tmp_path, capsys):
    options = ["algo=sft", "model=tiny", "data=tiny", "launch=inline", "algo.max_steps=1", f"output_dir={tmp_path}"]
    launch(compose(*options, "algo.activation_offload=all", "algo.gradient_checkpointing=all"))
    assert "algo.activation_offload=all changes nothing: there is no GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "room", "offloads"),
    [
        ("auto", 1e6, False),  # the longest sample fits with all layers checkpointed
        ("auto", 1e5, True),
        ("none", 1e5, False),
        ("all", 1e9, True),
    ],
)
def test_auto_is_for_samples_that_fit_no_other_way(monkeypatch, option, room, offloads):
    monkeypatch.setattr(activations, "ActivationOffload", lambda device, **options: "offload")
    monkeypatch.setattr(activations, "room_for_activations", lambda *args: room)
    monkeypatch.setattr(activations.Activations, "_measure", lambda self, *_: PassMemory(Line(1000.0), Line(120.0), 10))
    measured = SimpleNamespace(line=lambda most, room: Line(15.0), shortage=lambda samples: None)
    monkeypatch.setattr(activations, "MeasuredPasses", lambda *_: measured)
    cfg = compose("algo=sft", "model=tiny", "data=tiny", f"algo.activation_offload={option}")
    session = SimpleNamespace(
        device=torch.device("cuda"), strategy=Replicated(), group=SimpleNamespace(world=1), compute_dtype=torch.bfloat16
    )
    said = []
    setup = SimpleNamespace(
        cfg=cfg,
        session=session,
        data=SimpleNamespace(longest=5000, train=[Sample(np.zeros(9, np.int32), np.ones(9, dtype=bool), "")]),
        run=SimpleNamespace(say=said.append, write_plan=lambda **_: None),
    )
    model, layers = load(), [torch.nn.Module() for _ in range(10)]
    patches = ModelPatches(model)
    memory = activations.Activations(setup, model, patches, layers, None, True, True, None)
    max_tokens, num, _ = memory.choose()
    (patch,) = patches.all(Checkpointing)
    assert (patch.layers, patch.offload) == (layers[:num], "offload" if offloads else None)
    assert (max_tokens, num) == (5000, 10) if room == 1e5 else max_tokens >= 5000
    assert bool(said) == (option == "auto" and offloads)
    assert (memory.offload is not None) == offloads


@pytest.mark.parametrize("problem", ["", "it is trained"])
@pytest.mark.parametrize(("processes", "free", "saves"), [(1, 1.5, True), (1, 1.4, False), (2, 2.9, True), (2, 2.8, False)])
def test_what_cpu_memory_has_room_for_is_offloaded_and_what_that_frees_is_used(monkeypatch, processes, free, saves, problem):
    model, layers, longest = load(), [torch.nn.Module()] * 10, 5000
    inputs_and_attention = 2 * 10 * longest * model.config.hidden_size * 2
    monkeypatch.setattr(activations, "ActivationOffload", lambda device, **options: options)
    monkeypatch.setattr(host, "free_host_memory", lambda: int(free * inputs_and_attention))
    weight = model.get_input_embeddings().weight
    monkeypatch.setattr(host_embedding, "_mapped_weight", lambda base: problem or weight.detach().clone())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    cfg = compose("algo=sft", "model=tiny", "data=tiny", "algo.activation_offload=all")
    strategy, patches = SimpleNamespace(shards_weights=False), ModelPatches(model)
    session = SimpleNamespace(device=torch.device("cuda"), compute_dtype=torch.bfloat16, strategy=strategy)
    setup = SimpleNamespace(cfg=cfg, session=session, run=None, data=SimpleNamespace(longest=longest))
    memory = activations.Activations(setup, model, patches, layers, None, True, True, None)
    # If the embedding has left the GPU, MLPs need not be tiled for few tokens: as many as it had room for.
    wide, freed = 3 * 2 * model.config.intermediate_size, model.get_input_embeddings().weight.nbytes
    tiled = tiles.MIN_TOKENS if problem else max(tiles.MIN_TOKENS, int(freed / (0.75 * wide)))
    assert memory.offload == {"saves_attention": saves, "tiles_from": tiled}
    assert patches.plan() == {
        "embedding_on_host": not problem,
        "embedding_on_host_because": problem or "inputs of layers are offloaded too",
    }


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "width", "tokens"),
    [
        (128256, 4096, 14336, 8192),
        (32000, 4096, 14336, 4063),
        (32000, 4096, 11008, 5291),
        (500, 64, 128, 1024),
    ],
)
def test_mlps_are_tiled_from_as_many_tokens_as_the_embedding_made_room_for(vocabulary, hidden, width, tokens):
    assert tiles.tiles_from(2 * vocabulary * hidden, width, 2) == tokens


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_processes_together_take_no_more_cpu_memory_than_there_is(monkeypatch, processes):
    left = 400

    def take(number: int) -> bool:
        nonlocal left
        taken = inputs[number]._has_room(1)
        left -= taken
        return taken

    monkeypatch.setattr(host, "free_host_memory", lambda: left)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    inputs = [ActivationOffload(CPU) for _ in range(processes)]
    while any([take(number) for number in range(processes)]):
        assert left >= 0
    assert left < 4 * processes


def test_an_embedding_that_is_trained_or_tied_to_the_output_layer_stays_where_it_is():
    model = load()
    patches = ModelPatches(model)
    assert offload_embedding(patches, model) == "it is trained, or is of another kind"
    model.requires_grad_(False)
    embedding = model.get_input_embeddings().weight
    model.get_output_embeddings().weight = embedding
    assert offload_embedding(patches, model) == "it is tied to the output layer, or there is no output layer"
    assert not patches.applied
    assert model.get_input_embeddings().weight is embedding
