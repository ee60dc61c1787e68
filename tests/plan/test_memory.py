"""Memory of a run by tracing: what a traced pass says is what a pass takes, and the layout is the run's own."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from zoo.mxfp4 import in_mxfp4_on_disk
from zoo.zoo import zoo_model

from hub.compose.compose import compose
from hub.config.schema import ModelConfig
from hub.errors import HubError
from hub.launch.planning import plan
from hub.models.four_bit_tensor import FourBitTensor
from hub.models.load import load_causal_lm, load_config
from hub.models.patches import Edits
from hub.models.weights import local_tokenizer
from hub.plan.build import model_without_data, tensors_without_data, without_data
from hub.plan.graphs import compiled
from hub.plan.live import Live
from hub.plan.memory import Planner
from hub.plan.passes import row
from hub.plan.scratch import scratch_of_call
from hub.plan.sizes import ROUNDING, TOKENS, Size
from hub.plan.static import weights_parts
from hub.plugins.registry import resolve
from hub.system.known_gpus import known_gpus
from hub.train.kernels import hidden_states
from hub.train.kernels.assumed import as_on_gpu
from hub.train.kernels.attention import Kernel, varlen_attention
from hub.train.kernels.tiles import TiledMlp
from hub.train.layout.memory_budget import Line, PassMemory, choose_max_tokens


def planner(*words: str, dtype: torch.dtype = torch.bfloat16) -> Planner:
    resolved = resolve(compose(*words, "model=tiny"), check_needs=False)
    return Planner(resolved, Path(local_tokenizer(resolved.config.model, print)), dtype)


def test_sizes_of_tensors_grow_with_the_tokens_as_their_shapes_say() -> None:
    assert Size.of(TOKENS * 64) == Size(per_token=64)
    assert Size.of(TOKENS**2 * 2) == Size(per_pair=2)
    assert Size.of(1000) == Size(fixed=1024)
    assert (Size(per_token=64) + Size(fixed=512)).at(10) == 1152


def test_live_tensors_are_counted_alike_with_data_and_without() -> None:
    def peak() -> tuple[int, int]:
        layer, x = torch.nn.Linear(32, 64, bias=False), torch.zeros(TOKENS, 32, requires_grad=True)
        live = Live()
        live.known([layer.weight, x])
        with live:
            y = torch.nn.functional.silu(layer(x))
            kept = live.num_bytes
            y.sum().backward()
        return kept, live.most_bytes

    with FakeTensorMode():
        without_data = peak()
    assert without_data == peak()
    # The product and its activation are kept, 64 numbers of 4 bytes each; backward adds their gradients.
    assert without_data[0] == 2 * TOKENS * 64 * 4


@pytest.mark.slow
def test_a_model_with_soft_caps_and_windows_takes_memory_in_line_with_the_tokens() -> None:
    folder = zoo_model("gemma2")
    words = ("algo=lora_sft", f"model.path={folder}", "data.path=rows.jsonl", "algo.torch_compile=none")
    planned = Planner(resolve(compose(*words), check_needs=False), folder, torch.bfloat16)
    assert planned.variable_length
    assert planned.lines == []
    least, more, most = (planned.passes(compiled=False).run(tokens, num_checkpointed=0).peak for tokens in (1024, 2048, 4096))
    assert most - more == pytest.approx(2 * (more - least), rel=0.01)


@pytest.mark.parametrize("words", [("algo=lora_sft",), pytest.param(("algo=sft",), marks=pytest.mark.slow)])
def test_layers_that_stand_in_take_what_real_layers_take(words: tuple[str, ...]) -> None:
    planned = planner(*words, "algo.torch_compile=none")
    passes, tokens = planned.passes(compiled=False), 256
    for num_loss in (tokens, tokens // 8):
        predicted = passes.run(tokens, num_checkpointed=0, with_gradients=False, loss_share=num_loss / tokens)
        live = Live(rounds=True)
        with tensors_without_data(planned.planned.mode):
            live.known([*planned.model.parameters(), *planned.model.buffers()])
            with live:
                with passes.autocast():
                    loss = planned.loss(planned.model, row(tokens, True, num_loss))
                after_forward = live.num_bytes
                loss.backward()
            for parameter in planned.model.parameters():
                parameter.grad = None
        assert predicted.after_forward == pytest.approx(after_forward, rel=0.01)
        assert predicted.peak == pytest.approx(live.most_bytes, rel=0.005)


def test_compiled_layers_keep_what_their_products_need() -> None:
    with FakeTensorMode():
        first, second = torch.zeros(64, 16), torch.zeros(16, 64)
        x = torch.zeros(TOKENS, 16, requires_grad=True)

        def function(first: torch.Tensor, second: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (torch.nn.functional.silu(x @ first.t()) @ second.t(),)

        found = compiled(function, [first, second, x], 2)
        plain, checkpointed = found.plain, found.checkpointed
    # With frozen weights the gradient needs the input of the activation alone, 64 numbers of 4 bytes.
    assert plain.saved == Size(per_token=256)
    assert plain.output == Size(per_token=64)
    assert checkpointed.saved == Size()
    assert checkpointed.backward.peak(1000) >= plain.saved.at(1000)


def test_a_tiled_mlp_holds_the_inner_numbers_of_one_tile() -> None:
    class Mlp(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj, self.down_proj = torch.nn.Linear(16, 64, bias=False), torch.nn.Linear(64, 16, bias=False)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.down_proj(torch.nn.functional.silu(self.up_proj(hidden)))

    def backward_bytes(tiled: bool) -> float:
        with FakeTensorMode():
            layer = torch.nn.ModuleDict({"mlp": Mlp()})
            if tiled:
                TiledMlp(layer, min_tokens=0).apply(Edits())

            def function(first: torch.Tensor, second: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
                weights = {"up_proj.weight": first, "down_proj.weight": second}
                return (torch.func.functional_call(layer["mlp"], weights, x),)

            inputs = [*(weight.detach() for weight in layer.parameters()), torch.zeros(1, TOKENS, 16, requires_grad=True)]
            found = compiled(function, inputs, 2).checkpointed
        return found.backward.peak(1000) / 1000

    # Twice 64 numbers of 4 bytes. Of tiles a quarter of it, beside 16 numbers of the gradients of three tiles before.
    assert backward_bytes(tiled=False) == 512
    assert backward_bytes(tiled=True) == 512 / 4 + 64 * 3 / 4


def test_a_plan_keeps_keys_of_their_own_heads_as_kernels_of_gpus_do() -> None:
    heads: list[tuple[int, int]] = []

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *lengths: object, **options: object
    ) -> torch.Tensor:
        heads.append((key.shape[1], value.shape[1]))
        return query

    # Like torch 2.11's, which has no keyword for fewer keys than queries: a run tries it, and a plan can't.
    kernel = Kernel(attend, frozenset({"window_size"}))
    query, key = torch.zeros(1, 8, 3, 16), torch.zeros(1, 2, 3, 16)
    varlen_attention(kernel, torch.nn.Module(), query, key, key, None)
    with as_on_gpu():
        varlen_attention(kernel, torch.nn.Module(), query, key, key, None)
    assert heads == [(8, 8), (2, 2)]


@pytest.mark.slow
def test_plan_chooses_the_layout_that_a_run_would_choose() -> None:
    planned, gpu = planner("algo=lora_sft"), known_gpus()["rtx3060"]
    cfg = compose("algo=lora_sft", "model=tiny", "launch.gpu_memory_gb=0.56")
    found = planned.plan(cfg, gpu, 1, 300, [9000.0])
    memory = PassMemory(Line(*found.plain), Line(*found.checkpointed), found.num_layers)
    assert (found.max_tokens, found.num_checkpointed) == choose_max_tokens(memory, found.room_bytes, 300)
    assert found.peak_bytes == sum(part.num_bytes for part in found.parts)
    assert found.fits
    assert found.peak_bytes <= 0.56 * 2**30
    least = planned.plan(compose("algo=lora_sft", "model=tiny", "launch.gpu_memory_gb=0.526"), gpu, 1, 300, [9000.0])
    without = choose_max_tokens(memory, least.room_bytes, 300)
    assert without is not None
    assert (least.num_checkpointed, least.max_tokens >= without[0], least.fits) == (found.num_layers, True, True)
    assert least.peak_bytes <= 0.526 * 2**30
    several = planned.plan(cfg, gpu, 2, 300, [9000.0])
    assert several.world == 2


@pytest.mark.slow
def test_full_fine_tuning_counts_weights_gradients_and_moments() -> None:
    planned = planner("algo=sft")
    found = planned.plan(compose("algo=sft", "model=tiny"), known_gpus()["h100"], 1, 128, [1000.0])
    sizes = {part.name: part.num_bytes for part in found.parts}
    assert sizes["optimizer"] == 2 * sizes["trained weights"]
    assert sizes["gradients"] == sizes["trained weights"]
    sharded = planned.plan(compose("algo=sft", "model=tiny", "launch.strategy=fsdp"), known_gpus()["h100"], 2, 128, [1000.0])
    assert {part.name: part.num_bytes for part in sharded.parts}["optimizer"] == pytest.approx(sizes["optimizer"] / 2, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("algo=osft",),
        ("algo=osft", "algo.subspace=weights"),
        ("algo=lora_sft", "algo.init=pissa"),
        ("algo=lora_sft", "algo.protect=self", "algo.protect_strength=56"),
    ],
)
def test_backends_that_read_weights_are_planned_from_shapes(words: tuple[str, ...]) -> None:
    found = planner(*words).plan(compose(*words, "model=tiny"), known_gpus()["h100"], 1, 128, [1000.0])
    assert found.fits
    assert found.num_trained < found.num_parameters


@pytest.mark.slow
def test_page_and_json_of_a_plan() -> None:
    found = plan(["algo=lora_sft", "model=tiny", "data=tiny", "plan.gpu=rtx3060", "plan.learn=false"])
    assert "fits" in repr(found)
    assert "GiB" in repr(found)
    values = found.as_json()
    assert values["memory"]["peak_bytes"] == found.chosen.memory.peak_bytes
    assert values["work"]["num_steps"] == found.work.num_steps


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model=tiny"], "hub plan: no algorithm is named"),
        (["algo=sft", "model=tiny", "plan.gpu=rtx4900"], "plan.gpu=rtx4900"),
        (["algo=sft", "model=tiny", "plan.gpus=0"], "plan.gpus=0 is not allowed"),
        (["algo=sft", "model.path=./nowhere"], "model.path="),
        (["algo=sft", "model=tiny", "data=tiny", "data.max_seq_len=100000"], "data.max_seq_len=100000"),
        (["algo=sft", "model=tiny", "data.max_seq_len=100000"], "more than the 512 tokens that the model can hold"),
        (["algo=sft", "model=tiny", "plan.gpu=h100", "plan.measure=true"], "plan.measure=true measures on this machine"),
    ],
)
def test_mistakes_in_a_plan_are_said_in_one_line(words: list[str], line: str) -> None:
    with pytest.raises(HubError) as refused:
        plan(words)
    assert line in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_compiled_layers_with_adapters_save_attentions_output_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def saved() -> float:
        passes = planner("algo=lora_sft", "algo.torch_compile=layers").passes(compiled=True)
        (kind,) = passes.memories().kinds.values()
        return kind.plain.saved.per_token

    found = saved()
    monkeypatch.setattr(hidden_states, "_adapted_layers", lambda model: [])
    assert saved() - found == 64 * 2  # hidden numbers of two bytes


@pytest.mark.parametrize("stored", ["in full", "mxfp4"])
def test_experts_in_4_bits_are_counted_as_they_are_loaded(tmp_path: Path, stored: str) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    folder = zoo_model("qwen3_moe") if stored == "in full" else in_mxfp4_on_disk(tmp_path / "model")
    cfg = ModelConfig(path=str(folder))
    loaded = load_causal_lm(cfg, folder, "cpu", torch.bfloat16, how)
    planned = model_without_data(cfg, load_config(cfg, folder), torch.bfloat16, how)
    with FakeTensorMode():
        without_data(planned)
    found, expected = (
        {
            (part.name, part.num_bytes, part.because)
            for part in weights_parts(model)
            if "4 bits" in part.because or "4-bit" in part.name
        }
        for model in (planned, loaded)
    )
    assert found == expected
    packed = [weight for weight in loaded.parameters() if isinstance(weight, FourBitTensor)]
    layers = [weight for weight in loaded.parameters() if getattr(weight, "quant_state", None) is not None]
    numbers = sum(weight.numel() for weight in packed) + 2 * sum(weight.numel() for weight in layers)
    (in_4_bits,) = (part for part in found if part[2] == f"{numbers:,} numbers, 4 bits")
    assert 0 <= in_4_bits[1] - numbers // 2 <= ROUNDING * (len(packed) + len(layers))
    experts = packed[0]
    arguments = [torch.empty(5, 64, dtype=torch.bfloat16), torch.empty(4), True, *experts.parts]
    assert scratch_of_call("hub::grouped_product_4bit.default", arguments) == 2 * experts.numel()
