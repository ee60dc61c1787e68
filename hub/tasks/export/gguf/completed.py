"""What llama.cpp reads and its converter leaves out, so that llama.cpp guesses: said in the file.

Only what llama.cpp would guess wrong is written. Real models need it seldom; those that were trained anew, or cut, do.
"""

import math
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub.tasks.export.gguf.container import Container, Tensor, boolean, float32, pack_container, read_container, uint32
from hub.tasks.export.gguf.kinds import TensorType

_SPACE = "tokenizer.ggml.add_space_prefix"
_GUESSED_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}
"""Architecture -> every which layer attends to all tokens, if the file does not say (src/models/*.cpp: `swa_period`)."""

_LAYERS_OF_LITE = (26, 27)


def completed(file: Path, config: Mapping[str, Any], adds_space: bool | None) -> Path:
    """The file, or another one beside it with more metadata.

    Args:
        file: as the converter wrote it.
        config: of the model, as in config.json.
        adds_space: whether a text gets a space before its first word, in vocabularies of SentencePiece. None: not known.
    """
    container = read_container(file)
    more = _space(container, adds_space) | _period(container, config) | _query_rank(container)
    factors = _long_rope(container, config)
    if factors:
        more |= _scale_of_long_rope(container, config)
    if not more:
        return file
    target, alignment = file.with_suffix(".completed"), container.alignment
    tensors = [*container.tensors, *(Tensor(name, (len(numbers),), TensorType.F32) for name, numbers in factors.items())]
    with target.open("wb") as written, file.open("rb") as made:
        head = pack_container(container.metadata | more, tensors, alignment)
        written.write(head)
        made.seek(container.data_start)
        shutil.copyfileobj(made, written, 1 << 24)
        at = len(head) + sum(one.num_bytes + -one.num_bytes % alignment for one in container.tensors)
        for numbers in factors.values():
            written.seek(at)
            written.write(struct.pack(f"<{len(numbers)}f", *numbers) + bytes(-4 * len(numbers) % alignment))
            at = written.tell()
    return target


def _space(container: Container, adds_space: bool | None) -> dict[str, bytes]:
    """llama.cpp puts a space before texts of a SentencePiece vocabulary. The converter does not say otherwise for Phi-3."""
    if adds_space is not False or container.value("tokenizer.ggml.model") != "llama" or _SPACE in container.metadata:
        return {}
    return {_SPACE: boolean(False)}


def _period(container: Container, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Which layers have a sliding window: llama.cpp guesses it by the architecture."""
    guessed = _GUESSED_PERIODS.get(container.architecture)
    key = f"{container.architecture}.attention.sliding_window_pattern"
    layers = (config.get("text_config") or config).get("layer_types")
    if guessed is None or not layers or key in container.metadata:
        return {}
    sliding = [layer == "sliding_attention" for layer in layers]
    if sliding == _layers(guessed, len(sliding)):
        return {}
    found = next((period for period in range(1, len(sliding) + 2) if sliding == _layers(period, len(sliding))), None)
    return {} if found is None else {key: uint32(found)}


def _query_rank(container: Container) -> dict[str, bytes]:
    """DeepSeek without low-rank queries: llama.cpp knows it by the number of layers of V2 Lite, else it asks for a rank."""
    key = "deepseek2.attention.q_lora_rank"
    if container.architecture != "deepseek2" or key in container.metadata:
        return {}
    return {} if container.value("deepseek2.block_count") in _LAYERS_OF_LITE else {key: uint32(0)}


def _long_rope(container: Container, config: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Factors of a rope for long texts. llama.cpp reads them for Llama too; the converter writes them for Phi-3 and MiniCPM."""
    rope = _rope(config)
    if container.architecture != "llama" or rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return {}
    names = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
    if any(tensor.name in names for tensor in container.tensors) or not _original(config):
        return {}
    return {name: rope[key] for name, key in names.items() if rope.get(key)}


def _scale_of_long_rope(container: Container, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The length up to which the short factors hold, and what attention is scaled by (`_compute_longrope_parameters`)."""
    rope, original = _rope(config), _original(config)
    factor = rope.get("factor") or config.get("max_position_embeddings", original) / original
    scale = rope.get("attention_factor") or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
    prefix = f"{container.architecture}.rope.scaling"
    return {f"{prefix}.original_context_length": uint32(original), f"{prefix}.attn_factor": float32(scale)}


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _original(config: Mapping[str, Any]) -> int:
    found = _rope(config).get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or 0
    return int(found)


def _layers(period: int, count: int) -> Sequence[bool]:
    """Whether each layer has a window, as `llama_hparams::set_swa_pattern` has it."""
    return [number % period < period - 1 for number in range(count)]
