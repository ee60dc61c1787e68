"""How the weights of a folder are stored: in full, or quantized. Read from config.json, without torch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hub.config.schema import QUANTIZATIONS, RunConfig
from hub.errors import ConfigError, ModelError
from hub.models.safety import read_json
from hub.plugins.registry import registry

DEQUANTIZED = ("mxfp4",)
"""Methods whose weights are dequantized when a model is loaded (`load_causal_lm`), so every algorithm can train them."""

BITSANDBYTES = "bitsandbytes"


def stored_as(folder: Path) -> str | None:
    """How the weights are quantized: `bnb-4bit`, `bnb-8bit`, or the name that transformers has for another method.

    None if they are stored in full, or are dequantized when they are loaded.
    """
    try:
        config = read_json(folder / "config.json", "")
    except ModelError:
        return None  # said when the folder is checked
    text = config.get("text_config")
    values = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not values or not isinstance(values, dict):
        return None
    in_8bit, in_4bit = (values.get(f"load_in_{bits}bit") or values.get(f"_load_in_{bits}bit") for bits in (8, 4))
    method = str(values.get("quant_method") or (BITSANDBYTES if in_8bit or in_4bit else "an unknown method"))
    if method == BITSANDBYTES:
        return "bnb-8bit" if in_8bit else "bnb-4bit"
    return None if method in DEQUANTIZED else method


def with_storage(cfg: RunConfig, folder: Path) -> RunConfig:
    """With `model.quantization` as the folder has it, so that rules between options apply to a path as to a preset.

    Args:
        cfg: the config.
        folder: of the base weights.

    Raises:
        ConfigError: `model.quantization` says something else, or no installed algorithm can train such weights.
    """
    stored, asked, path = stored_as(folder), cfg.model.quantization, cfg.model.path
    if asked and stored != asked:
        is_stored = f"stored as {stored}" if stored else "not quantized"
        raise ConfigError(f"model.quantization={asked}, but the weights of model.path={path} are {is_stored}. Leave it out")
    if stored and stored not in QUANTIZATIONS:
        raise ConfigError(
            f"model.path={path} is stored as {stored}, which can't be trained here. "
            "Type model.path=FOLDER_OR_HUB_ID of the same model stored in bfloat16"
        )
    return replace(cfg, model=replace(cfg.model, quantization=stored))


def storage_problems(cfg: RunConfig, algorithm: str) -> Iterator[str]:
    """A line if the algorithm can't train a base that is quantized as `model.quantization` says.

    Args:
        cfg: with the quantization of the folder, if that is known yet.
        algorithm: its name.
    """
    stored = cfg.model.quantization
    if not stored or stored in type(cfg.algo).quantized_bases:
        return
    others = [f"algo={name}" for name, other in registry().algorithms.items() if stored in other.config.quantized_bases]
    instead = f"{' or '.join(others)}, or " if others else ""
    yield (
        f"algo={algorithm} can't train the {stored} weights of model.path={cfg.model.path}: quantized weights take no "
        f"gradient. Type {instead}model.path=FOLDER_OR_HUB_ID of the same model stored in bfloat16 (of a preset: model=NAME "
        "without _bnb_4bit)"
    )
