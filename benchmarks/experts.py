"""Measure adapters on the experts of one layer: computed in groups as here, and as PEFT does. On a GPU, in a minute.

python -m benchmarks.experts [--tokens 16384] [--rank 16] [--shape qwen3_30b_a3b gpt_oss_20b mixtral_8x7b]

For each shape: milliseconds of a forward and a backward pass (the median of 10), the most memory of a pass beside weights and
inputs, and the relative difference of the gradients of all A and B and of the inputs. All numbers and routes are random, in
bfloat16 on a GPU, and in float32 on a CPU (there with `--tokens 64 --small`, to try it).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.table import line
from hub.models.patches import patches_of
from hub.models.structure import expert_stacks
from hub.train.kernels.expert_adapters import ExpertAdapters, outermost

SHAPES = {
    "qwen3_30b_a3b": ("qwen3_moe", {"hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128}, 8),
    "gpt_oss_20b": ("gpt_oss", {"hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32}, 4),
    "mixtral_8x7b": ("mixtral", {"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8}, 2),
}
"""The family, its sizes, and the experts of a token."""

SMALL = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 32, "num_experts": 8, "num_local_experts": 8}
REPEATS = 10


def adapted_experts(family: str, sizes: dict[str, int], rank: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a model of one layer with adapters on its experts, of random numbers."""
    config = AutoConfig.for_model(family, **sizes, num_hidden_layers=1, vocab_size=32, num_attention_heads=1, head_dim=8)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    stacks = [".".join(tensor) for tensor in expert_stacks(model)]
    adapted = get_peft_model(model, LoraConfig(target_modules=[], target_parameters=stacks, r=rank, lora_alpha=2 * rank))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.02 * torch.randn_like(parameter, dtype=torch.float32)
    return adapted


def measure(run: Callable[[], Sequence[torch.Tensor]], device: torch.device) -> tuple[float, float, Sequence[torch.Tensor]]:
    """Return milliseconds, GiB beside what was there, and the gradients of a pass."""
    found = run()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, times = torch.cuda.memory_allocated() if on_gpu else 0, []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    return 1000 * statistics.median(times), peak / 2**30, found


def rows_of(shape: str, tokens: int, rank: int, small: bool, device: torch.device) -> list[tuple[str, ...]]:
    """Measure PEFT's way and the grouped one, and return a row for each."""
    family, sizes, used = SHAPES[shape]
    sizes = {name: SMALL[name] if small else size for name, size in sizes.items()}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = adapted_experts(family, sizes, rank, device, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    (_, wrapper), number = outermost(model)[0], max(sizes.get("num_experts", 0), sizes.get("num_local_experts", 0))
    hidden = torch.randn(tokens, sizes["hidden_size"], device=device, dtype=dtype, requires_grad=True)
    weights, chosen = torch.rand(tokens, number, device=device).softmax(-1).to(dtype).topk(used)

    def gradients() -> Sequence[torch.Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = wrapper(hidden, chosen, weights)
        return torch.autograd.grad(result.float().square().mean(), [*trained, hidden])

    theirs = measure(gradients, device)
    with patches_of(model).temporarily(ExpertAdapters(model)):
        ours = measure(gradients, device)
    off = max(float((one - other).norm() / other.norm()) for one, other in zip(ours[2], theirs[2], strict=True))
    return [
        (shape, "PEFT", f"{theirs[0]:.1f}", f"{theirs[1]:.2f}", ""),
        (shape, "grouped", f"{ours[0]:.1f}", f"{ours[1]:.2f}", f"{off:.1e}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--small", action="store_true", help="experts of 64 x 32 numbers")
    parser.add_argument("--shape", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = ("experts", "way", "ms", "GiB of a pass", "difference of gradients")
    print(line(head), line(["---"] * len(head)), sep="\n")
    for shape in asked.shape:
        for row in rows_of(shape, asked.tokens, asked.rank, asked.small, device):
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
