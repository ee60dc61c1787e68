"""Load a tokenizer and a causal language model for training."""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from hub.config.schema import ModelConfig
from hub.errors import ModelError, first_line
from hub.models.config_check import check_config
from hub.models.loading_report import Fit, fit_of, fit_when_loaded, stored_tensors
from hub.models.multimodal import auto_class
from hub.models.reading import Read, reading
from hub.models.safety import choose_kernels_ourselves
from hub.models.storage import stored_as
from hub.models.structure import expert_stacks, outside_text
from hub.models.wrapped_names import candidates, words_of

GENERATION = "generation_config.json"

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds to import, which processes that only tokenize can do without
    from transformers.core_model_loading import WeightTransform
    from transformers.utils.quantization_config import QuantizationConfigMixin


def load_tokenizer(cfg: ModelConfig, path: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with its own chat template.

    Raises:
        ModelError: the folder has no tokenizer that transformers can read.
    """

    def read(folder: Path) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=cfg.trust_remote_code)
        _try_out(tokenizer)
        return tokenizer

    trial = None if cfg.trust_remote_code else read
    return reading(read, path, f"model.path={cfg.path}: it has no readable tokenizer", "tokenizer.json", _known, trial)


def load_config(cfg: ModelConfig, path: Path) -> PretrainedConfig:
    """The model's config.

    Raises:
        ModelError: it can't be read, or needs Python code of its own, which is not allowed.
    """

    def read(folder: Path) -> PretrainedConfig:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=cfg.trust_remote_code)
        config.get_text_config()
        return config

    trial = None if cfg.trust_remote_code else read
    return choose_kernels_ourselves(reading(read, path, f"model.path={cfg.path}", known=_known, trial=trial))


def check_weights(cfg: ModelConfig, path: Path) -> list[str]:
    """Check that names and shapes in the headers of the weights fit the model of config.json. No weight is read.

    Args:
        cfg: for messages and `trust_remote_code`.
        path: local folder.

    Returns:
        Lines for the user: which names are read without their wrapper, which parts are left out.

    Raises:
        ModelError: tensors are missing, have no place in the model, or have another shape.
    """
    name = f"model.path={cfg.path}"
    check_config(path, name, stored_tensors(path))
    if (path / GENERATION).is_file():
        reading(GenerationConfig.from_pretrained, path, name, GENERATION, trial=GenerationConfig.from_pretrained)
    fit = _fit(cfg, path)
    if fit is None:
        if (trial := _trial(cfg)) is not None and stored_as(path) is None:
            reading(trial, path, name, known=_known, trial=trial)
        return []
    if fit.refusal:
        raise ModelError(f"{name}: {fit.refusal}")
    lines = []
    if fit.renamed:
        lines.append(
            f"the names of the weights have a wrapper's {words_of(fit.renamed)}: they are read without it, and all fit. "
            f"transformers and peft load random weights from this folder unless they get key_mapping={fit.renamed}"
        )
    if fit.left_out:
        parts = sorted({name.split(".")[0] for name in fit.left_out})
        lines.append(f"{fit.name} is the language model alone: the weights of {', '.join(parts)} are not loaded")
    return lines


def renamed_weights(cfg: ModelConfig, path: Path) -> dict[str, str]:
    """How to undo a wrapper's names in a folder of weights, as `key_mapping` of `from_pretrained`. Empty: there is none."""
    fit = _fit(cfg, path) if any(candidates(stored_tensors(path))) else None
    return fit.renamed if fit is not None else {}


def load_causal_lm(
    cfg: ModelConfig,
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    quantization: "QuantizationConfigMixin | None" = None,
) -> "PreTrainedModel":
    """A causal language model in training mode, without key-value cache. What no text passes through is frozen.

    Args:
        cfg: for messages and `trust_remote_code`.
        path: local folder. Only safetensors are read.
        device: device of the weights. `balanced` distributes the layers over the GPUs of this process.
        dtype: dtype of the weights.
        quantization: how to quantize the weights. None: as they are stored.

    Raises:
        ModelError: transformers can't load it, or the weights do not fit the model.
    """
    config = load_config(cfg, path)
    renamed = renamed_weights(cfg, path)
    options: dict[str, object] = {}
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    if quantization is not None:
        from hub.models.four_bit_loading import with_experts

        quantization = with_experts(quantization, from_mxfp4=method == "mxfp4")
    if method == "mxfp4" and quantization is not None:
        config = copy.deepcopy(config)
        del config.quantization_config  # transformers takes no second one beside it
    elif method == "mxfp4":
        from transformers.utils.quantization_config import Mxfp4Config

        quantization = Mxfp4Config(dequantize=True)
    if quantization is not None:
        options["quantization_config"] = quantization
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        options["attn_implementation"] = "eager"  # the other kernels ignore the soft cap

    def read(folder: Path) -> Any:
        return auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=cfg.trust_remote_code,
            device_map=device if isinstance(device, str) else {"": device},
            key_mapping=renamed or None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
            **options,
        )

    model: PreTrainedModel
    model, info = reading(read, path, f"model.path={cfg.path}", known=_known, trial=_trial(cfg))
    if refusal := fit_when_loaded(config, path, model, info, renamed).refusal:
        raise ModelError(f"model.path={cfg.path}: {refusal}")
    if renamed:
        # Otherwise `save_pretrained` would write the wrapper's names again.
        rules: list[WeightTransform] = getattr(model, "_weight_conversions", None) or []
        vars(model)["_weight_conversions"] = [rule for rule in rules if not _is_ours(rule, renamed)]
    if method == "mxfp4":
        for module, name in expert_stacks(model):
            weight = getattr(model.get_submodule(module), name)
            if weight.dtype != dtype:  # transformers 5.17 dequantizes to bfloat16 whatever is asked
                weight.data = weight.data.to(dtype)
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # Otherwise bitsandbytes uses a kernel without backward pass after a pass in evaluation mode.
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010 - torch types a module's attributes as tensors
    for parameter in outside_text(model):
        parameter.requires_grad_(False)
    model.config.use_cache = False
    model.train()
    return model


def _fit(cfg: ModelConfig, path: Path) -> Fit | None:
    config = load_config(cfg, path)
    if cfg.trust_remote_code and getattr(config, "auto_map", None):
        return None  # the model is built by code of its own, once
    return fit_of(config, path)


def _is_ours(rule: "WeightTransform", renamed: dict[str, str]) -> bool:
    return any(pattern in renamed for pattern in rule._original_source_patterns)


def trainable_in_float32(model: torch.nn.Module) -> None:
    """Convert every trained weight to float32.

    In bfloat16 a step below half a unit in the last place (0.4 % of a weight) is rounded away. With autocast the arithmetic
    still runs in the compute dtype.
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


def num_parameters(cfg: ModelConfig, path: Path) -> int:
    """Number of parameters of a model, without loading it."""
    config = load_config(cfg, path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config).from_config(config, trust_remote_code=cfg.trust_remote_code)
    return sum(p.numel() for p in model.parameters())


def _trial(cfg: ModelConfig) -> Read[None] | None:
    """What fails if a model can't be built from its files, without their data. None: it takes code of its own."""
    if cfg.trust_remote_code:
        return None

    def build(folder: Path) -> None:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config)
        if (folder / GENERATION).is_file():
            type(model.generation_config).from_pretrained(folder)

    return build


def _try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use a tokenizer as data does, so that what is wrong with its files shows now."""
    ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    tokenizer.decode(ids)
    template = tokenizer.chat_template
    for text in template.values() if isinstance(template, dict) else [template]:
        if text is not None and not isinstance(text, str):
            raise TypeError(f"the chat template is no text, but {type(text).__name__}")


def _known(error: BaseException) -> str:
    """What to say of an error of transformers whose cause is known."""
    if "instantiate the backend tokenizer" in str(error):
        return (
            "none of the files that it could be read from lies in the folder, such as tokenizer.json or tokenizer.model. Add it"
        )
    if "automatic conversion" in str(error):
        return (
            "its tensors can't be converted to those of the model, such as experts of different shapes. Copy or download the "
            "model again, so that config.json and the weights are of one model"
        )
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code of its own, which is not run. Type model.trust_remote_code=true only if you trust that code"
        )
    return "" if not isinstance(error, ImportError) else first_line(error)
