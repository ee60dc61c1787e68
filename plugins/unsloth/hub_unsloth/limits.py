"""Options that the native backend supports and this one does not. They are refused before the run starts, one line each."""

from collections.abc import Iterator

from hub import RunConfig
from hub.config.option import AUTO

NATIVE = "or algo.backend=native"
INITS = ("default", "gaussian", "orthogonal")
"""Adapter initializations that do not change the frozen weights. With the others, Unsloth restores the frozen weights in its
own way when it loads an adapter, so plain PEFT would load a different model."""


def problems(cfg: RunConfig) -> Iterator[str]:
    """A message for each option that Unsloth does not support, with what to type."""
    algo, launch = cfg.algo, cfg.launch
    if cfg.chosen_task.compares_gradients:
        yield "algo.backend=unsloth can't be verified: its kernels do not run in float32. Type algo.backend=native"
    elif cfg.model.dtype == "float32":
        yield f"model.dtype=float32: Unsloth's kernels are for bfloat16. Type model.dtype=bfloat16 {NATIVE}"
    if launch.strategy not in (AUTO, "ddp"):
        yield f"launch.strategy={launch.strategy} is not for algo.backend=unsloth. Type launch.strategy=ddp {NATIVE}"
    if cfg.model.adapter is not None:
        yield f"model.adapter={cfg.model.adapter}: Unsloth begins adapters anew. To train this one further {NATIVE}"
    if launch.cpu_offload:
        yield f"launch.cpu_offload is not for algo.backend=unsloth. Leave it out, {NATIVE}"
    if algo.torch_compile != AUTO:
        yield (
            f"algo.torch_compile={algo.torch_compile}: Unsloth itself decides what is compiled. "
            f"Type algo.torch_compile=auto {NATIVE}"
        )
    if algo.activation_offload != AUTO:
        yield (
            f"algo.activation_offload={algo.activation_offload}: Unsloth offloads activations itself. "
            f"Type algo.activation_offload=auto {NATIVE}"
        )
    if (precision := getattr(algo, "precision", AUTO)) != AUTO:
        yield f"algo.precision={precision} is not for algo.backend=unsloth. Type algo.precision=auto {NATIVE}"
    if algo.deterministic:
        yield f"algo.deterministic can't be promised for Unsloth's kernels. Type algo.deterministic=false {NATIVE}"
    if cfg.model.changes_vocab:
        yield f"model.add_tokens and the options beside it are not for algo.backend=unsloth. Leave them out, {NATIVE}"
    for name in ("train_embeddings", "modules_to_save", "protect"):
        if getattr(algo, name, None):
            yield f"algo.{name} is not for algo.backend=unsloth. Leave it out, {NATIVE}"
    init = getattr(algo, "init", "default")
    quantized = cfg.model.quantization or getattr(algo, "load_in_4bit", False) or getattr(algo, "load_in_8bit", False)
    if init not in INITS:
        yield f"algo.init={init} is not for algo.backend=unsloth. Allowed: {', '.join(INITS)}. Type algo.init=default {NATIVE}"
    elif init == "orthogonal" and quantized:
        yield f"algo.init=orthogonal: Unsloth does not support it for quantized weights. Type algo.init=default {NATIVE}"
