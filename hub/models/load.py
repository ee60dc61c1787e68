"""Load a tokenizer and a causal language model for training, and bring its weights into the types that training needs."""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hub.config.schema import ModelConfig
from hub.errors import ModelError, first_line
from hub.models.safety import choose_kernels_ourselves


def load_tokenizer(cfg: ModelConfig, path: Path) -> Any:
    """The model's tokenizer, with its own chat template.

    Raises:
        ModelError: the folder has no tokenizer that transformers can read.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(_refusal(cfg, error, "no tokenizer can be read from it: ")) from None


def load_config(cfg: ModelConfig, path: Path) -> Any:
    """The model's config.

    Raises:
        ModelError: it can't be read, or needs code of its own that is not allowed.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_refusal(cfg, error)) from None
    return choose_kernels_ourselves(config)


def load_causal_lm(
    cfg: ModelConfig, path: Path, device: torch.device | str, dtype: torch.dtype, quantization: Any = None
) -> Any:
    """A causal language model without key-value cache, in training mode.

    Args:
        cfg: what was asked for; for messages and `trust_remote_code`.
        path: local folder. Only safetensors are read.
        device: where the weights go; `balanced` spreads the layers over the GPUs of this process.
        dtype: type of the weights.
        quantization: a transformers quantisation config, or None.

    Raises:
        ModelError: transformers can't load it.
    """
    config = load_config(cfg, path)
    options: dict[str, Any] = {}
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    if method == "mxfp4":
        from transformers import Mxfp4Config

        quantization = Mxfp4Config(dequantize=True)
    if quantization is not None:
        options["quantization_config"] = quantization
    if getattr(config, "attn_logit_softcapping", None) is not None:
        options["attn_implementation"] = "eager"  # the other kernels leave the soft cap out
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=cfg.trust_remote_code,
            device_map=device if isinstance(device, str) else {"": device},
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise ModelError(_refusal(cfg, error)) from None
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # After a pass in evaluation mode bitsandbytes would go on with a kernel that has no backward pass.
            layer.support_avx512bf16_for_cpu = False
    model.config.use_cache = False
    model.train()
    return model


def trainable_in_float32(model: torch.nn.Module) -> None:
    """Keep every weight that trains in float32.

    In bfloat16 a step below half a unit in the last place (0.4 % of a weight) rounds away to nothing; autocast still does
    the arithmetic in the compute type.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def train_only(model: torch.nn.Module, names: Collection[str]) -> None:
    """Let these parameters train, in float32, and freeze all others.

    Args:
        model: a freshly loaded one.
        names: full names of parameters.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    trainable_in_float32(model)


def linear_layers(model: Any) -> list[str]:
    """Names of the linear layers (quantised ones and GPT-2's Conv1D too), the output layer left out."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not head]


def num_parameters(cfg: ModelConfig, path: Path) -> int:
    """Parameters of a model, counted without loading it."""
    config = load_config(cfg, path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=cfg.trust_remote_code)
    return sum(p.numel() for p in model.parameters())


def save_whole_model(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype, weights: dict[str, torch.Tensor]) -> None:
    """Write a dense model that transformers loads: config, safetensors in `dtype`, tokenizer.

    Args:
        model: for its config and its kind.
        tokenizer: written beside it.
        folder: receives the files.
        dtype: type of the stored weights.
        weights: whole weights by name, as `fit` hands them out.
    """
    cast: dict[int, torch.Tensor] = {}

    def stored(tensor: torch.Tensor) -> torch.Tensor:
        # Tied weights share memory and must go on sharing it, or they would be written twice.
        if tensor.data_ptr() not in cast:
            cast[tensor.data_ptr()] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        return cast[tensor.data_ptr()]

    state = {name: stored(tensor) for name, tensor in weights.items()}
    # The same model with a config of its own: transformers writes into the config, and the model may be training meanwhile.
    twin = object.__new__(type(model))
    twin.__dict__.update(model.__dict__, config=copy.deepcopy(model.config))
    twin.config.dtype, twin.config.use_cache = dtype, True
    twin.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def _refusal(cfg: ModelConfig, error: Exception, what: str = "") -> str:
    line = what + first_line(error)
    if "trust_remote_code" in str(error):
        line = (
            "it needs Python code of its own, which is not run. Type model.trust_remote_code=true only if you trust that code"
        )
    return f"model.path={cfg.path}: {line}"
