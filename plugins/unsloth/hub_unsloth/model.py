"""Load a model with Unsloth, and add its adapters."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.targets import target_names
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hub import ConfigError, ModelError, Run
from hub.errors import first_line
from hub.models.check_loaded import check_loaded
from hub.models.load import load_config, renamed_weights, trainable_in_float32
from hub.models.structure import expert_tensors, linear_layers
from hub.train.setup.setup import Setup
from hub_unsloth.first import FastLanguageModel, quiet

FAILURES = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError)
"""Exceptions that Unsloth raises for unsupported models and options."""


def load(setup: Setup, checkpointing: str | bool) -> PreTrainedModel:
    """The base model, loaded and patched by Unsloth, in training mode.

    Args:
        setup: config, processes, local folder, tokenizer.
        checkpointing: `unsloth` or False.

    Raises:
        ModelError: Unsloth can't load the model or loads other weights, or the model has experts.
    """
    cfg, algo = setup.cfg, setup.cfg.algo
    assert isinstance(algo, LoraSftConfig)
    if renamed_weights(cfg.model, setup.base_path):
        raise ModelError(f"model.path={cfg.model.path}: Unsloth reads weights under plain names only. Type algo.backend=native")
    config = load_config(cfg.model, setup.base_path).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    with TemporaryDirectory() as folder:
        bare_tokenizer(setup.tokenizer, config, Path(folder))
        model: PreTrainedModel
        with _failures_in_one_line(f"model.path={cfg.model.path}: Unsloth can't load it"):
            model, _ = FastLanguageModel.from_pretrained(
                str(setup.base_path),
                tokenizer_name=folder,
                max_seq_length=positions or max(setup.data.longest, 2048),
                dtype=setup.session.compute_dtype,
                load_in_4bit=algo.load_in_4bit or cfg.model.quantization == "bnb-4bit",
                load_in_8bit=algo.load_in_8bit or cfg.model.quantization == "bnb-8bit",
                device_map={"": str(setup.session.device)},
                use_gradient_checkpointing=checkpointing,
                trust_remote_code=cfg.model.trust_remote_code,
                use_exact_model_name=True,
                local_files_only=True,
                use_safetensors=True,
                fix_tokenizer=False,
                offload_embedding=False,
            )
    try:
        check_loaded(model, setup.base_path)
    except ModelError as error:
        raise ModelError(f"model.path={cfg.model.path}: Unsloth: {error}. Type algo.backend=native") from None
    if expert_tensors(model):
        raise ModelError(
            f"model.path={cfg.model.path}: Unsloth adds adapters to the experts, which the hub does not support. "
            "Type algo.backend=native"
        )
    model.config.use_cache = False
    model.train()
    return model


def bare_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: Path) -> None:
    """Write a copy of the tokenizer that Unsloth does not try to fix: no chat template, and a separate padding token.

    Unsloth renders templates, adds a padding token if there is none, and sets the padding token's embedding to zero. The hub's
    samples are already tokenized, and the weights must not change.

    Args:
        tokenizer: the run's tokenizer; it is not changed.
        config: the model's config.
        folder: receives the files.
    """
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    taken = {*ends, config.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    words = sorted(bare.get_vocab().items(), key=lambda pair: pair[1])
    bare.pad_token = next(word for word, number in words if number not in taken)
    bare.save_pretrained(folder)


def add_adapters(setup: Setup, model: PreTrainedModel, checkpointing: str | bool) -> PeftModel:
    """The model with Unsloth's fused adapters, in float32. Nothing else trains except the biases that `algo.bias` names.

    Raises:
        ConfigError: no linear layer has one of the names, or Unsloth would adapt other layers than requested.
    """
    algo, run = setup.cfg.algo, setup.run
    assert isinstance(algo, LoraSftConfig)
    names = target_names(algo.target_modules, model)
    options: dict[str, bool] = {"use_dora": True} if algo.use_dora else {}
    with _failures_in_one_line("Unsloth can't add these adapters"):
        adapted: PeftModel = FastLanguageModel.get_peft_model(
            model,
            r=algo.lora_r,
            lora_alpha=algo.lora_alpha,
            lora_dropout=algo.lora_dropout,
            target_modules=_as_leaves(names, model),
            bias=algo.bias,
            use_rslora=algo.use_rslora,
            init_lora_weights=True if algo.init == "default" else algo.init,
            use_gradient_checkpointing=checkpointing,
            random_state=algo.seed,
            **options,
        )
    _check_targets(names, adapted, run)
    # Unsloth stores its patched class here, which plain PEFT does not need.
    adapted.peft_config["default"].auto_mapping = None
    trainable_in_float32(adapted)
    return adapted


def _as_leaves(names: list[str], model: PreTrainedModel) -> list[str]:
    """The last parts of the names, which Unsloth supports, if they select the same layers; otherwise the full names."""
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    same = [name for name in linear_layers(model) if name.rsplit(".", 1)[-1] in leaves] == names
    return sorted(leaves) if same else names


def _check_targets(names: list[str], adapted: PeftModel, run: Run) -> None:
    prefix = "base_model.model."
    layers = {name.removeprefix(prefix) for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    if layers != set(names):
        other = sorted(layers ^ set(names))
        raise ConfigError(
            f"algo.target_modules: Unsloth adapts {len(layers)} layers instead of {len(names)} ({other[0]}, ...). "
            "Type algo.backend=native"
        )
    run.write_plan(target_modules=sorted({name.rsplit(".", 1)[-1] for name in names}), num_adapters=len(names))


@contextmanager
def _failures_in_one_line(what: str) -> Iterator[None]:
    with quiet():
        try:
            yield
        except FAILURES as error:
            raise ModelError(f"{what}: {first_line(error)}. Type algo.backend=native") from error
