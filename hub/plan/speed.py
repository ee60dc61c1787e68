"""Tokens per second of a run, from the operations and bytes of a token. No torch.

A token takes the time of its matrix products, of attention over its sample, of what lies between the products, and its part of
what each micro-batch and each step costs. Each is its least time (operations over the GPU's peak, bytes over its bandwidth)
over a share that was fitted to the measured rows of docs/performance.md; tests/plan/test_speed.py holds these rows. Where
Python can't start kernels as fast as the GPU runs them, that decides instead.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from hub.system.known_gpus import Gpu

Kind = Literal["adapters", "part", "full"]
"""What trains: something small on frozen weights; a part of each weight (coordinates of it); all of it."""

PRODUCTS = {"adapters": 0.645, "part": 0.85, "full": 0.725}
"""Share of the bfloat16 peak in matrix products, those with thin adapters among them."""

PRODUCTS_FP8 = {"adapters": 1.06, "full": 0.97}
"""Share of the bfloat16 peak in fp8 products. In full fine-tuning one of three products stays in bfloat16."""

ATTENTION = {"flash4": (0.62, 1300.0), "hopper": (0.40, 1600.0), "other": (0.55, 1000.0)}
"""Share of the peak in attention of very long samples, and the length at which half of that is reached. flash4: flash-attn-4.
hopper: torch's kernel (FlashAttention 2) on Hopper and later, whose newer instructions it does not use. other: the same
kernel on older GPUs (arXiv 2307.08691, figure 4)."""

BETWEEN, BETWEEN_FP8 = 0.48, 0.36
"""Share of the bandwidth in what compiled layers do between products. fp8: rounding included."""

UNPACKING, OPTIMIZER = 0.5, 0.5
EAGER_BYTES, EAGER_PRODUCTS = 2.5, 0.9
"""Layers that are not compiled: bytes between products, and speed of products, over those of compiled ones."""

WAIT_SECONDS = 0.02
"""Time of a micro-batch in which no kernel runs."""

LAYER_SECONDS = {("adapters", False): 0.0056, ("adapters", True): 0.002, ("full", False): 0.004, ("full", True): 0.0015}
"""(What trains, compiled) -> time in which Python starts the kernels of one layer's pass. The first is measured (59,091
tokens/s with 24 layers, steps of 16,130 tokens). The others are upper bounds, from runs that the GPU limited."""

GATHER_SECONDS = 25e-12
"""Time in which a weight in float32 is gathered and its gradient scattered, at 900 GB/s, as far as products don't hide it."""

NVLINK, PCI_EXPRESS = 900e9, 50e9
LONG_ROWS = 4096
"""From that length on a checkpointed layer keeps attention's result (hub/train/kernels/compiled.py)."""

CHECKPOINTED = 0.75
"""Part of a layer's forward pass that a checkpointed, compiled layer computes again."""

MEASURED_ON = ("h100", "h200")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The text part of a model, as far as its time depends on it."""

    num_layers: int
    hidden: int
    attention: int
    """Width of all heads together."""

    keys: int
    """Width of keys, and of values."""

    intermediate: float
    """Width of the MLP; of a mixture, of the experts that a token uses."""

    in_layers: float
    """Weights of all layers that a token is multiplied with."""

    in_head: float
    """Weights of the output layer."""

    num_parameters: float
    is_mixture: bool = False

    @property
    def multiplied(self) -> float:
        """Weights that a token is multiplied with."""
        return self.in_layers + self.in_head


def shape_of(config: Any, num_multiplied: float, num_parameters: float) -> Shape:
    """The shape of a model.

    Args:
        config: the model's config in transformers.
        num_multiplied: weights that a token is multiplied with (`hub.train.layout.flops.num_multiplied`).
        num_parameters: all weights of the model.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    heads = int(getattr(text, "num_attention_heads", None) or max(1, hidden // 64))
    head_size = int(getattr(text, "head_dim", None) or hidden // heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads) * head_size
    in_head = min(float(hidden * text.vocab_size), num_multiplied)
    in_layers = num_multiplied - in_head
    per_layer = in_layers / layers - 2 * hidden * (heads * head_size + keys)
    return Shape(
        num_layers=layers,
        hidden=hidden,
        attention=heads * head_size,
        keys=keys,
        intermediate=max(0.0, per_layer / (3 * hidden)),
        in_layers=in_layers,
        in_head=in_head,
        num_parameters=num_parameters,
        is_mixture=num_multiplied < 0.7 * num_parameters - in_head,
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a run computes."""

    num_trained: float
    max_tokens: int
    """Tokens of a micro-batch of one process."""

    trained_of_token: float | None = None
    """Trained weights that a token meets: of a mixture's experts those of the ones it uses. None: all."""

    checkpointed: float = 0.0
    """Share of the layers with activation checkpointing."""

    world: int = 1
    strategy: str = "ddp"
    dtype: str = "bf16"
    """Type of the arithmetic: bf16 or fp32."""

    fp8: bool = False
    compiled: bool = True
    flash4: bool = False
    weight_bytes: float = 2.0
    """Bytes of a frozen weight as it is stored: 2, 1 or about 0.5."""

    state_bytes: float = 16.0
    """Bytes of a trained weight with gradient and moments: 16 in float32, 8 in bfloat16."""

    offload: bool = False

    def kind(self, shape: Shape) -> Kind:
        """What trains, by its size."""
        share = self.num_trained / max(1.0, shape.num_parameters)
        return "adapters" if share < 0.12 else "full" if share > 0.75 else "part"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens per second of all GPUs together."""

    low: float
    middle: float
    high: float
    limit: str
    """What takes the most time: products, attention, bandwidth, launches, link."""

    measured: bool
    """Whether this way was measured on this GPU: the range is +-10 %."""

    flops_per_token: float
    """Matrix products and attention, with what checkpointing computes again."""

    share_of_peak: float
    """As `mfu` in metrics.jsonl counts it: 4 operations for each weight, 2 more for each that trains."""

    because: str

    def scaled(self, middle: float, spread: float, because: str) -> "Speed":
        """This speed moved to the one that an earlier run measured."""
        return replace(
            self,
            low=middle * (1 - spread),
            middle=middle,
            high=middle * (1 + spread),
            share_of_peak=self.share_of_peak * middle / self.middle,
            measured=True,
            because=because,
        )


def speed_of(shape: Shape, way: Way, gpu: Gpu, mean_square: float, tokens_per_step: float) -> Speed | None:
    """Predict the tokens per second of a run's steps.

    Args:
        shape: of the model.
        way: how the run computes.
        gpu: each of the GPUs.
        mean_square: mean of a sample's squared tokens over its mean tokens.
        tokens_per_step: of all processes.

    Returns:
        None if the GPU's peak in the run's type is not known.
    """
    peak = gpu.peak.get(way.dtype)
    if peak is None:
        return None
    seconds, flops = _seconds(shape, way, gpu, peak, mean_square, tokens_per_step / way.world)
    launches = seconds.pop("launches")
    busy = sum(seconds.values())
    per_token = max(busy, launches)
    limit = "launches" if launches > busy else max(seconds, key=lambda name: seconds[name])
    middle = way.world / per_token
    low, high, measured, because = _range(shape, way, gpu, limit)
    trained = way.num_trained if way.trained_of_token is None else way.trained_of_token
    counted = 4 * shape.multiplied + 2 * min(trained, shape.multiplied)
    return Speed(
        low=low * middle,
        middle=middle,
        high=high * middle,
        limit=limit,
        measured=measured,
        flops_per_token=flops,
        share_of_peak=counted / per_token / peak,
        because=because,
    )


def _seconds(
    shape: Shape, way: Way, gpu: Gpu, peak: float, mean_square: float, tokens_per_step: float
) -> tuple[dict[str, float], float]:
    """Seconds of a token on one GPU by what they are for, and its operations."""
    kind, layers, again = way.kind(shape), shape.num_layers, way.checkpointed * CHECKPOINTED
    tokens = max(1.0, min(float(way.max_tokens), tokens_per_step))
    trained = {"adapters": 4.0, "part": 6.0, "full": 6.0}[kind]
    in_head = 6.0 if kind == "full" else 4.0
    products = trained * shape.in_layers + in_head * shape.in_head + 2 * again * shape.in_layers
    # Two products of half a square each forward, five backward; each has two operations per number.
    recomputed = 0.0 if mean_square >= LONG_ROWS / 2 else 2 * way.checkpointed
    attention = (7 + recomputed) * mean_square * shape.attention * layers
    # Forward: two norms, rotation, the gate's product, two sums. Backward twice as much. Two bytes a number.
    numbers = 9 * shape.hidden + 2 * (shape.attention + shape.keys) + 3 * shape.intermediate
    between = (3 + way.checkpointed) * layers * 2 * numbers * (1 if way.compiled else EAGER_BYTES)
    passes = 2 + way.checkpointed
    share = (PRODUCTS_FP8 if way.fp8 else PRODUCTS).get(kind, PRODUCTS["part"]) * (1 if way.compiled else EAGER_PRODUCTS)
    most, half = ATTENTION["flash4" if way.flash4 else "hopper" if gpu.compute_capability >= (9, 0) else "other"]
    # A short micro-batch has to wait for the weights themselves.
    read = passes * way.weight_bytes * shape.in_layers / gpu.bandwidth / tokens
    seconds = {
        "products": max(products / (peak * share), read),
        "attention": attention / (peak * most * mean_square / (mean_square + half)),
        "bandwidth": between / (gpu.bandwidth * (BETWEEN_FP8 if way.fp8 else BETWEEN)) * (2 if way.dtype == "fp32" else 1),
        "link": _link(shape, way, gpu, kind, tokens, tokens_per_step),
        "launches": _launches(way, kind, layers) * passes / tokens,
    }
    if way.weight_bytes < 1:  # unpacked in each pass: read, and written in 16 bits
        seconds["bandwidth"] += passes * (2 + way.weight_bytes) * shape.in_layers / (gpu.bandwidth * UNPACKING * tokens)
    shards = way.world if way.strategy not in ("ddp", "split") else 1
    step = 1.75 * way.state_bytes * way.num_trained / (gpu.bandwidth * OPTIMIZER * shards)
    seconds["bandwidth"] += step / max(1.0, tokens_per_step)
    seconds["products"] += WAIT_SECONDS / tokens
    return seconds, products + attention


def _launches(way: Way, kind: Kind, layers: int) -> float:
    """Seconds in which Python starts the kernels of one pass."""
    each = LAYER_SECONDS["adapters" if kind == "adapters" else "full", way.compiled]
    return layers * each * (1.5 if way.offload else 1)


def _link(shape: Shape, way: Way, gpu: Gpu, kind: Kind, tokens: float, tokens_per_step: float) -> float:
    """Seconds of a token in which processes exchange weights or gradients."""
    if way.world == 1:
        return 0.0
    slower = NVLINK / (gpu.link or PCI_EXPRESS)
    if way.strategy in ("fsdp", "zero3"):
        frozen = 0.35 if kind == "adapters" else 1.0  # two gathers in 16 bits, no gradient
        return GATHER_SECONDS * shape.num_parameters * frozen * slower / tokens
    return GATHER_SECONDS * way.num_trained * slower / max(1.0, tokens_per_step)


def _range(shape: Shape, way: Way, gpu: Gpu, limit: str) -> tuple[float, float, bool, str]:
    """Factors on the speed between which the truth is expected, whether it was measured, and why."""
    low, high, why = 0.9, 1.1, []
    if gpu.name not in MEASURED_ON:
        is_large = gpu.name.startswith(("a100", "h100", "h200", "b200", "gb200"))
        low, high = (0.7, 1.15) if is_large else (0.55, 1.15)
        why.append(f"no run was measured on {gpu.name}")
    if limit == "launches":
        low, high = low * 0.7, high * 1.3
        why.append("Python starts kernels more slowly than the GPU runs them, so the machine's CPU decides")
    if not way.compiled:
        low, high = low * 0.8, high * 1.15
        why.append("layers are not compiled")
    if shape.is_mixture:
        low *= 0.4
        why.append("products of experts were not measured")
    if way.kind(shape) == "part":
        low, high = low * 0.97, high * 1.05
    if way.dtype != "bf16":
        low *= 0.7
        why.append(f"arithmetic in {way.dtype} was not measured")
    if way.world > 1 and (gpu.link is None or way.world > 2):
        low *= 0.6 if gpu.link is None else 0.9
        why.append(f"{way.world} GPUs were not measured" + ("" if gpu.link else ", and PCI Express differs between machines"))
    measured = not why
    text = "measured on this GPU and in this way: +-10 %" if measured else f"an estimate: {'; '.join(why)}"
    return low, high, measured, text
