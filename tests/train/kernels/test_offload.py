"""Inputs of recomputed layers on the host: the same gradients, and nothing kept behind. tests/gpu has the memory."""

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
from hub.parallel.strategy import Replicated
from hub.system import memory as host
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels import offload, tiles
from hub.train.kernels.host_embedding import hold_on_host
from hub.train.kernels.offload import HostInputs
from hub.train.kernels.recompute import layers_of, recompute
from hub.train.layout import activations
from hub.train.layout.memory_budget import Line, Need
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


def gradients(num: int, inputs: HostInputs | None) -> list[torch.Tensor]:
    model = load()
    recompute(layers_of(model)[:num], inputs)
    for seed in range(3):
        torch.manual_seed(seed)
        causal_lm_loss(model, batch(seed)).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("num", [1, 4])
def test_gradients_are_bit_equal(num, monkeypatch):
    monkeypatch.setattr(offload, "PIECE_BYTES", 1000)
    inputs = HostInputs(CPU, least_bytes=1)
    parked = []
    inputs._park = lambda tensor, group, park=inputs._park: parked.append(tensor) or park(tensor, group)
    found = gradients(num, inputs)
    assert sum(tensor.ndim == 3 for tensor in parked) == 3 * num
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(0, None), strict=True))


def test_the_next_one_comes_back_ahead_and_each_only_once(monkeypatch):
    inputs = HostInputs(CPU, least_bytes=1)
    brought: list[int] = []
    asked: list[int] = []
    bring, fetch = inputs._bring, inputs._fetch

    def record(parked):
        if parked.back is None:
            brought.append(id(parked))
        bring(parked)

    monkeypatch.setattr(inputs, "_bring", record)

    def watch(held):
        if isinstance(held, offload._Parked):
            asked.append(len(brought))
        return fetch(held)

    monkeypatch.setattr(inputs, "_fetch", watch)
    model = load()
    recompute(layers_of(model), inputs)
    causal_lm_loss(model, batch()).backward()
    assert len(brought) == len(set(brought)) == 4
    assert asked == [0, 2, 3, 4]  # how many were on their way when each was asked for: the last layer's is the only late one


def test_of_what_is_parked_nothing_stays_while_the_graph_waits():
    model = load()
    recompute(layers_of(model), HostInputs(CPU, least_bytes=1))
    seen = []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda module, args: seen.append(weakref.ref(args[0])))
    loss = causal_lm_loss(model, batch())
    assert [one() for one in seen] == [None] * 4
    loss.backward()


class TwoKept(torch.nn.Module):
    """Keeps its input and one more tensor."""

    def forward(self, hidden, factor):
        return hidden * torch.tanh(hidden) * factor


def test_what_else_a_layer_keeps_comes_back_with_its_input_and_arguments_of_all_layers_stay(monkeypatch):
    inputs = HostInputs(CPU, least_bytes=1)
    brought, asked, bring, fetch = [], [], inputs._bring, inputs._fetch

    def record(parked):
        if parked.back is None:
            brought.append(parked)
        bring(parked)

    def watch(held):
        if isinstance(held, offload._Parked):
            asked.append((held in brought, len(brought)))
        return fetch(held)

    monkeypatch.setattr(inputs, "_bring", record)
    monkeypatch.setattr(inputs, "_fetch", watch)
    layers, factor = [TwoKept() for _ in range(4)], torch.full((2, 5, 3), 0.7)
    start = torch.randn(2, 5, 3, requires_grad=True)
    hidden, plain = start, start
    for layer in layers:
        with inputs.around(layer, (hidden,), {"factor": factor}):
            hidden = layer(hidden, factor)
        plain = layer(plain, factor)
    (found,) = torch.autograd.grad(hidden.sum(), start)
    (expected,) = torch.autograd.grad(plain.sum(), start)
    assert torch.equal(found, expected)
    parked = len(brought)
    assert parked == len(set(map(id, brought)))  # each only once
    per_layer = parked // 4
    assert per_layer > 1
    # What the last layer keeps is late; of all others everything is on its way when the first of it is asked for.
    assert all(under_way for under_way, _ in asked[per_layer:])
    assert [count for _, count in asked[::per_layer]] == [0, 2 * per_layer, 3 * per_layer, 4 * per_layer]
    assert not any((one.pieces[0] == factor.flatten()).all() for one in brought)


def test_nothing_is_held_after_the_backward_pass_or_after_one_that_failed():
    inputs = HostInputs(CPU, least_bytes=1)
    model = load()
    recompute(layers_of(model), inputs)
    causal_lm_loss(model, batch()).backward()
    loss = causal_lm_loss(model, batch())
    del loss
    gc.collect()
    assert inputs._last() is None


def test_small_tensors_and_evaluation_are_left_alone(monkeypatch):
    parked, begin = [], offload._Parked.__init__
    monkeypatch.setattr(offload._Parked, "__init__", lambda self, *args: parked.append(self) or begin(self, *args))
    inputs = HostInputs(CPU)
    model = load()
    recompute(layers_of(model), inputs)
    causal_lm_loss(model, batch()).backward()
    model.eval()
    inputs._least_bytes = 1
    causal_lm_loss(model, batch())
    assert not parked
    model.train()
    causal_lm_loss(model, batch())
    assert parked


def test_it_goes_with_recomputed_layers_only():
    options = ["algo=sft", "model=tiny", "data=tiny", "algo.activation_offload=all", "algo.gradient_checkpointing=none"]
    (line,) = compose(*options).problems()
    assert line.endswith("Type algo.gradient_checkpointing=all")


def test_on_a_cpu_it_is_said_to_change_nothing(tmp_path, capsys):
    options = ["algo=sft", "model=tiny", "data=tiny", "launch=inline", "algo.max_steps=1", f"output_dir={tmp_path}"]
    launch(compose(*options, "algo.activation_offload=all", "algo.gradient_checkpointing=all"))
    assert "algo.activation_offload=all changes nothing: there is no GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "room", "offloads"),
    [
        ("auto", 1e6, False),  # the longest sample fits with all layers recomputed
        ("auto", 1e5, True),
        ("none", 1e5, False),
        ("all", 1e9, True),
    ],
)
def test_auto_is_for_samples_that_fit_no_other_way(monkeypatch, option, room, offloads):
    calls = []
    monkeypatch.setattr(activations, "HostInputs", lambda device, **said: "host")
    monkeypatch.setattr(activations, "recompute", lambda layers, offload: calls.append((len(layers), offload)))
    monkeypatch.setattr(activations, "room_for_activations", lambda *args: room)
    monkeypatch.setattr(activations.Activations, "_measure", lambda self, room, is_enough: Need(Line(1000.0), Line(120.0), 10))
    cfg = compose("algo=sft", "model=tiny", "data=tiny", f"algo.activation_offload={option}")
    session = SimpleNamespace(
        device=torch.device("cuda"), strategy=Replicated(), group=SimpleNamespace(world=1), compute_dtype=torch.bfloat16
    )
    said = []
    setup = SimpleNamespace(
        cfg=cfg,
        session=session,
        data=SimpleNamespace(longest=5000),
        run=SimpleNamespace(say=said.append, write_plan=lambda **_: None),
    )
    memory = activations.Activations(setup, load(), [torch.nn.Module()] * 10, None, True, True, None)
    bound, num, _ = memory.choose()
    assert calls == [(num, "host" if offloads else None)]
    assert (bound, num) == (5000, 10) if room == 1e5 else bound >= 5000
    assert bool(said) == (option == "auto" and offloads)
    assert (memory.offload is not None) == offloads


@pytest.mark.parametrize("problem", ["", "it learns"])
@pytest.mark.parametrize(("processes", "free", "keeps"), [(1, 1.5, True), (1, 1.4, False), (2, 2.9, True), (2, 2.8, False)])
def test_what_the_host_has_room_for_goes_there_and_what_that_frees_is_used(monkeypatch, processes, free, keeps, problem):
    model, layers, longest = load(), [torch.nn.Module()] * 10, 5000
    inputs_and_attention = 2 * 10 * longest * model.config.hidden_size * 2
    monkeypatch.setattr(activations, "HostInputs", lambda device, **said: said)
    monkeypatch.setattr(host, "free_host_memory", lambda: int(free * inputs_and_attention))
    monkeypatch.setattr(activations, "hold_on_host", lambda base: problem)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    cfg = compose("algo=sft", "model=tiny", "data=tiny", "algo.activation_offload=all")
    strategy, said = SimpleNamespace(shares_weights=False), {}
    session = SimpleNamespace(device=torch.device("cuda"), compute_dtype=torch.bfloat16, strategy=strategy)
    run = SimpleNamespace(write_plan=said.update)
    setup = SimpleNamespace(cfg=cfg, session=session, run=run, data=SimpleNamespace(longest=longest))
    memory = activations.Activations(setup, model, layers, None, True, True, None)
    # Where the embedding has left the GPU, few tokens need not go through the MLPs in parts: as many as it had room for.
    wide, freed = 3 * 2 * model.config.intermediate_size, model.get_input_embeddings().weight.nbytes
    least = tiles.LEAST_TOKENS if problem else max(tiles.LEAST_TOKENS, int(freed / (0.75 * wide)))
    assert memory.offload == {"keeps_attention": keeps, "divides_from": least}
    assert said == {"embedding_on_host": not problem, "embedding_on_host_because": problem or "inputs of layers go there too"}


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "width", "tokens"),
    [
        (128256, 4096, 14336, 8192),
        (32000, 4096, 14336, 4063),
        (32000, 4096, 11008, 5291),
        (500, 64, 128, 1024),
    ],
)
def test_few_tokens_go_through_mlps_at_once_as_far_as_the_embedding_made_room(vocabulary, hidden, width, tokens):
    assert tiles.divides_from(2 * vocabulary * hidden, width, 2) == tokens


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_processes_together_take_no_more_of_the_host_than_there_is(monkeypatch, processes):
    left = 400

    def take(number: int) -> bool:
        nonlocal left
        taken = inputs[number]._has_room(1)
        left -= taken
        return taken

    monkeypatch.setattr(host, "free_host_memory", lambda: left)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    inputs = [HostInputs(CPU) for _ in range(processes)]
    while any([take(number) for number in range(processes)]):
        assert left >= 0
    assert left < 4 * processes


def test_an_embedding_that_learns_or_is_the_output_layer_too_stays_where_it_is():
    model = load()
    assert hold_on_host(model) == "it learns, or is of another kind"
    model.requires_grad_(False)
    embedding = model.get_input_embeddings().weight
    model.get_output_embeddings().weight = embedding
    assert hold_on_host(model) == "it is the output layer too, or there is none"
    assert model.get_input_embeddings().weight is embedding
