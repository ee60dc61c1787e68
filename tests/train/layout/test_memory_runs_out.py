"""Memory that is too small before the first step: passes begin small and ease, or one line says what is missing."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.out_of_memory import Runs, failing
from hub import ModelError, compose
from hub.data.prepare import Sample
from hub.errors import NoMemoryError
from hub.launch.launcher import launch
from hub.models.patches import patches_of
from hub.models.structure import layers_of
from hub.system.memory import GIB, Shortage, bound_for_torch, is_out_of_memory, shortage_of
from hub.testing import tiny_model_path
from hub.train.attempts import twice
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.layout import activations
from hub.train.layout.isolation import Trial, can_pack
from hub.train.layout.measured_passes import MeasuredPasses
from hub.train.layout.memory_budget import Line, choose_offloaded, wants_offload
from hub.train.setup import setup as set_up
from hub.train.setup.less_memory import instead
from tests.simulated_memory import SimulatedMemory

CPU = torch.device("cpu")
OUT = torch.OutOfMemoryError
BY_TORCH = (
    "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 60.50 GiB is free. "
    "Process 1 has 18.61 GiB memory in use. 15.50 GiB allowed; Of the allocated memory 12.00 GiB is allocated by PyTorch, and "
    "1.50 GiB is reserved by PyTorch but unallocated."
)
FREE_BY_TORCH = BY_TORCH.replace("15.50 GiB allowed; ", "").replace("60.50", "1.25")


def samples(*lengths: int) -> list[Sample]:
    return [Sample(np.zeros(length, np.int32), np.ones(length, dtype=bool), "") for length in lengths]


class Passes:
    """Passes that take 1,000 bytes of fake memory for each token and 5,000 more, and 200,000 for gradients that stay."""

    def __init__(self, most_tokens: int, lengths: tuple[int, ...] = (40, 100, 60, 150, 250, 400)) -> None:
        self.most_tokens, self.samples, self.ran = most_tokens, samples(*lengths), []
        self.now = self.most = 0
        self.weight = torch.nn.Parameter(torch.zeros(50_000))

    def run(self, chosen):
        tokens = sum(map(len, chosen))
        self.ran.append(tokens)
        if tokens > self.most_tokens:
            raise OUT("no room")
        self.now += 200_000 if self.weight.grad is None else 0
        self.weight.grad = torch.zeros(50_000)
        self.most = max(self.most, self.now + 1000 * tokens + 5000)
        return tokens

    def choose(self, most):
        chosen = []
        for sample in self.samples:
            if len(sample) <= most - sum(map(len, chosen)):
                chosen.append(sample)
        return chosen or [min(self.samples, key=len)]

    def measured(self, recovers: bool = True) -> MeasuredPasses:
        memory = SimpleNamespace(
            allocated=lambda: self.now, peak=lambda: self.most, release=lambda: None,
            reset_peak=lambda: setattr(self, "most", self.now),
        )  # fmt: skip
        return MeasuredPasses(memory, CPU, self.run, self.choose, [self.weight], recovers, 100, "Type less")


def test_passes_begin_small_and_take_fewer_tokens_until_they_fit():
    roomy = Passes(most_tokens=10_000)
    line = roomy.measured().line(1000, room=1e9)
    assert (line.per_token, line.fixed) == (1000, 5000)
    assert roomy.ran == [200, 1000, 350, 1000]  # the first one is small; the gradients that it leaves are not counted
    assert roomy.weight.grad is None
    narrow = Passes(most_tokens=600)
    line = narrow.measured().line(1000, room=1e9)
    assert (line.per_token, line.fixed) == (1000, 5000)
    assert narrow.ran == [200, 1000, 350, 140, 350]
    known = Passes(most_tokens=600)
    assert known.measured().line(1000, room=600e3).per_token == 1000
    assert max(known.ran) <= 600  # what the first pass took tells that more would not fit
    assert Passes(most_tokens=30).measured().line(1000, room=1e9) is None
    only_first = Passes(most_tokens=220)
    assert only_first.measured().line(1000, room=1e9).tokens(205e3) == 200
    assert Passes(most_tokens=30).measured().shortage(samples(40)) == Shortage()
    assert Passes(most_tokens=40).measured().shortage(samples(40)) is None


def test_where_ranks_wait_for_each_other_the_run_begins_again_in_smaller_pieces_or_ends_in_a_line():
    with pytest.raises(NoMemoryError, match="a pass over 1,000 tokens does not fit, with the weights sharded") as again:
        Passes(most_tokens=600).measured(recovers=False).line(1000, room=1e9)
    assert again.value.smaller_bound == 500
    with pytest.raises(ModelError, match=r"a pass over 40 tokens.*Type less") as ended:
        Passes(most_tokens=30, lengths=(40,)).measured(recovers=False).line(1000, room=1e9)
    assert not isinstance(ended.value, NoMemoryError)


def test_an_error_tells_how_much_is_missing_within_the_limit_of_the_process():
    assert shortage_of(OUT(BY_TORCH)) == Shortage(3.0 * GIB, 2.0 * GIB)
    assert str(shortage_of(OUT(BY_TORCH))) == "3.0 GiB were asked for and 2.0 GiB were free: at least 1.0 GiB are missing"
    assert shortage_of(OUT(FREE_BY_TORCH)).missing == 1.75 * GIB
    assert str(shortage_of(OUT("no room"))) == "how much is missing, the library does not say"
    wrapped = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})("it failed")
    wrapped.__context__ = OUT("no room")
    other = ValueError("x")
    other.__context__ = OUT("no room")
    errors = (OUT(""), MemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), wrapped, other, KeyError("x"))
    assert [is_out_of_memory(error) for error in errors] == [True, True, True, True, False, False]


def test_the_limit_of_a_process_counts_what_the_driver_takes():
    assert bound_for_torch(80 * GIB, None, 1) == 80 * GIB
    assert bound_for_torch(80 * GIB, 16, 1) == 15.5 * GIB
    assert bound_for_torch(80 * GIB, 16, 2) == 15 * GIB
    assert bound_for_torch(80 * GIB, 0.4, 1) == 0


def test_offload_is_tried_where_nothing_fits_or_a_gpu_would_not_be_busy():
    def steps(*loads):
        return lambda: loads

    assert wants_offload(None, 100, 16384, None, steps())
    assert wants_offload(None, 100, 16384, 8192, steps())
    assert wants_offload((1024, 32), 100, 16384, None, steps(9000.0))
    assert not wants_offload((4096, 32), 100, 16384, None, steps(9000.0))
    assert not wants_offload((1024, 32), 100, 16384, None, steps(800.0))  # a step has no more
    assert not wants_offload((1024, 32), 100, 16384, 1024, steps(9000.0))  # as many as the user asked for
    line = Line(100.0, 1000.0)
    assert choose_offloaded(line, 1e6, 100, 16384) == 4096
    assert choose_offloaded(line, 1e6, 5000, 16384) == 5000
    assert choose_offloaded(line, 200e3, 100, 16384) == 1792
    assert choose_offloaded(line, 200e3, 2000, 16384) is None
    assert choose_offloaded(line, 1e6, 100, 16384, requested=9000) == 9000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["algo=osft"],
            "algo.unfreeze_rank_ratio=0.25, algo=qlora_sft, launch.strategy=fsdp on several GPUs, or a smaller model",
        ),
        (["algo=lora_sft"], "algo.load_in_4bit=true, launch.strategy=fsdp on several GPUs, or a smaller model"),
        (
            ["algo=sft", "launch.gpu_memory_gb=8", "algo.gradient_checkpointing=none"],
            "algo.gradient_checkpointing=auto, data.max_seq_len=640, a larger launch.gpu_memory_gb, or "
            "algo.master_weights=false",
        ),
    ],
)
def test_what_to_type_is_what_the_options_leave(words, line):
    fits = 700 if "algo=sft" in words else 0
    assert instead(compose(*words, "model=tiny", "data=tiny"), fits=fits).startswith(f"Type {line}. The verb `plan`")


def test_a_trial_that_memory_is_too_small_for_pads_and_one_failure_changes_nothing(monkeypatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32)
    real, calls = Trial._run, []

    def fails_at(*numbers):
        def run(self, batch, row):
            calls.append(row)
            if len(calls) in numbers:
                raise OUT("no room")
            return real(self, batch, row)

        calls.clear()
        monkeypatch.setattr(Trial, "_run", run)

    for number in (2, 6):
        fails_at(number)
        assert can_pack(model, 512, CPU, torch.float32)[0]
    fails_at(*range(6, 99))
    packed, because = can_pack(model, 512, CPU, torch.float32)
    assert not packed
    assert "out of memory in a pass over 82 tokens" in because
    model.lm_head.weight.placements = ()  # as sharded weights have
    fails_at(2)
    with pytest.raises(OUT):
        can_pack(model, 512, CPU, torch.float32)
    with pytest.raises(ValueError, match="broken"):
        twice(model, partial(int, "broken"))


def test_weights_that_do_not_fit_are_said_in_one_line(tmp_path, monkeypatch):
    def load(*args, **named):
        raise OUT(BY_TORCH)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load)
    monkeypatch.setattr(set_up, "memory_of", lambda device: SimpleNamespace(free=lambda: 1000.0))
    with pytest.raises(ModelError) as ended:
        launch(compose("algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", f"output_dir={tmp_path}"))
    line = str(ended.value)
    assert line.startswith("out of memory: the weights do not fit: 139,584 numbers, in ")
    assert "are missing). Type algo.load_in_4bit=true" in line
    assert "\n" not in line


@pytest.mark.slow
def test_no_layer_is_checkpointed_against_the_users_word(tmp_path):
    found = Runs("lora_sft", tmp_path, "algo.gradient_checkpointing=none").once(SimulatedMemory(limit=2.5e6))
    assert (found.plan["layers_recomputed"], found.plan["max_tokens_per_gpu"]) == (0, 110)
    with pytest.raises(ModelError, match=r"a sample of 110 tokens.*without activation.*gradient_checkpointing=auto"):
        Runs("lora_sft", tmp_path / "again", "algo.gradient_checkpointing=none").once(SimulatedMemory(limit=8e5))


@pytest.mark.slow
def test_a_run_in_little_memory_checkpoints_offloads_and_takes_fewer_tokens(tmp_path):
    found = Runs("lora_sft", tmp_path).once(SimulatedMemory(limit=1e6))
    assert found.plan["layers_recomputed"] == found.plan["num_layers"]
    assert found.plan["max_tokens_per_gpu"] <= 110
    assert found.losses == pytest.approx([6.53262, 6.61211], rel=1e-5)  # with all memory


def test_offload_is_the_last_that_a_step_tries(monkeypatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32)
    said = []
    setup = SimpleNamespace(
        cfg=compose("algo=sft", "model=tiny", "data=tiny"),
        session=SimpleNamespace(device=CPU, strategy=SimpleNamespace(shards_weights=True), compute_dtype=torch.float32),
        data=SimpleNamespace(longest=100),
        run=SimpleNamespace(say=said.append, write_plan=lambda **values: said.append(values)),
    )
    monkeypatch.setattr(activations, "memory_of", lambda device: SimulatedMemory())
    patches, layers = patches_of(model), layers_of(model)
    memory = activations.Activations(setup, model, patches, layers, None, True, True, None)
    while memory.checkpoint_more() is not None:
        pass
    assert memory.offload_more()
    (patch,) = patches.all(Checkpointing)
    assert (patch.layers, patch.offload) == (layers, memory.offload)
    assert said[-1]["activation_offload"]
    assert not memory.offload_more()  # it is on


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "every"), [("lora_sft", 4000), ("osft", 7000), ("sft", 3000), ("dpo", 5000)])
def test_a_run_ends_well_or_in_one_line_whichever_allocation_fails(tmp_path, algo, every):
    """`python -m benchmarks.out_of_memory` tries them all."""
    runs, memory = Runs(algo, tmp_path), SimulatedMemory()
    expected = runs.once(memory)
    endings = []
    for number in range(40, memory.num_allocations, every):
        endings.append(runs.verdict(str(number), SimulatedMemory(fails=failing(number)), expected))
    for limit in (1.5e5, 1.5e6, 6e6):
        endings.append(runs.verdict(str(limit), SimulatedMemory(limit), expected))
    assert [verdict for verdict in endings if not verdict.good] == []
    assert any(verdict.ending.startswith("the same losses") for verdict in endings)
    assert any(verdict.ending.startswith("one line") for verdict in endings)
