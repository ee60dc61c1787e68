"""GGUF files of made-up models: the names and numbers of real architectures, random weights in rows of the asked length."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

DENSE = {"attn_q": 2, "attn_k": 2, "attn_v": 2, "attn_output": 2, "ffn_gate": 2, "ffn_up": 2, "ffn_down": 2, "attn_norm": 0}
"""Matrices of a layer, with their number of dimensions. 0: a vector in float32."""

EXPERTS = {
    **{name: 2 for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp")},
    **{name: 3 for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")},
    "ffn_norm": 0,
}
FUSED = {"attn_qkv": 2, "attn_output": 2, "ffn_up": 2, "ffn_down": 2, "attn_norm": 0}


def write(
    file: Path,
    architecture: str = "llama",
    layers: int = 16,
    width: int = 256,
    heads: tuple[int, int] = (8, 8),
    experts: int = 0,
    matrices: Mapping[str, int] = DENSE,
    tied: bool = False,
    outer: tuple[str, ...] = (),
    dtype: type = np.float16,
    seed: int = 0,
    **numbers: float,
) -> dict[str, np.ndarray]:
    """Write a file. Returns an importance matrix for all of its layers."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("made up")
    writer.add_uint32("general.file_type", 1)
    writer.add_array("made.up", ["a", "bc", ""])
    common = {"block_count": layers, "context_length": 64, "embedding_length": width, "feed_forward_length": width}
    common |= {"attention.head_count": heads[0], "attention.head_count_kv": heads[1]}
    if experts:
        common |= {"expert_count": experts, "expert_used_count": 2}
    for key, value in (common | {name.replace("__", "."): value for name, value in numbers.items()}).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{architecture}.{key}", value)
    importance: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape) * random.gamma(2, size=shape[-1:])
        writer.add_tensor(name, values.astype(np.float32 if len(shape) == 1 else dtype))
        if name.startswith("blk.") and len(shape) > 1:
            importance[name] = random.gamma(1, size=(shape[0] if len(shape) == 3 else 1) * width).astype(np.float32)

    writer.add_bool("made.up.too", True)
    for layer in reversed(range(layers)):  # not in llama.cpp's order
        for name, dims in matrices.items():
            shape = {0: (width,), 2: (4, width), 3: (experts, 4, width)}[dims]
            add(f"blk.{layer}.{name}.weight", *shape)
    add("token_embd.weight", 6, width)
    add("output_norm.weight", width)
    for name in (*outer, *(() if tied else ("output.weight",))):
        add(name, 6, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return importance
