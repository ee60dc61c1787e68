"""LoRA on one page: set up, load (in 4 or 8 bit or fp8 where asked for), add the adapters, fit."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from hub import ConfigError, Outcome, Run, RunConfig
from hub.errors import did_you_mean
from hub.models.load import linear_layers, trainable_in_float32
from hub.parallel.session import Session
from hub.train.kernels.float8 import check_gpu, tell
from hub.train.loop import fit
from hub.train.setup.setup import set_up
from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.float8 import hold_in_fp8


def train(cfg: RunConfig, run: Run) -> Outcome:
    """Train adapters on frozen weights. The result is an adapter folder that peft loads onto the same base."""
    in_fp8 = cfg.algo.precision == "fp8"
    if in_fp8:
        check_gpu()
    setup = set_up(cfg, run)
    quantised, whole = quantization(cfg.algo, setup.session), "algo.precision=fp8" if in_fp8 else None
    model = setup.load_model(setup.session.compute_dtype, quantised, frozen=True, whole=whole)
    model = add_adapters(cfg.algo, model, run)
    if in_fp8:
        tell(run, *hold_in_fp8(model))

    def save(trained: Any, folder: Path, weights: dict[str, Any]) -> None:
        trained.save_pretrained(folder, state_dict=weights)
        setup.tokenizer.save_pretrained(folder)

    return fit(setup, model, save)


def quantization(algo: LoraSftConfig, session: Session) -> Any:
    """How the frozen weights are quantised while they are loaded; None for not at all."""
    if not (algo.load_in_4bit or algo.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig

    if algo.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=session.compute_dtype,
    )


def add_adapters(algo: LoraSftConfig, model: Any, run: Run) -> Any:
    """The model with adapters in float32; nothing else trains but the biases that `algo.bias` names."""
    targets = target_names(algo.target_modules, model)
    if any(parameter.ndim == 3 for parameter in model.parameters()):
        run.say("the experts' weights lie in fused tensors, which get no adapter: they stay as they are")
    options: dict[str, Any] = {}
    if algo.init == "loftq":
        from peft import LoftQConfig

        options["loftq_config"] = LoftQConfig(loftq_bits=4)
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=algo.lora_r,
            lora_alpha=algo.lora_alpha,
            lora_dropout=algo.lora_dropout,
            target_modules=targets,
            bias=algo.bias,
            use_rslora=algo.use_rslora,
            use_dora=algo.use_dora,
            fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
            init_lora_weights=True if algo.init == "default" else algo.init,
            **options,
        ),
    )
    trainable_in_float32(adapted)
    run.write_plan(target_modules=sorted({name.rsplit(".", 1)[-1] for name in targets}), num_adapters=len(targets))
    return adapted


def target_names(asked: str | list[str], model: Any) -> list[str]:
    """Full names of the layers that get an adapter.

    Args:
        asked: auto, all-linear, attention, mlp, or the last parts of module names.
        model: the model without adapters.

    Raises:
        ConfigError: a name that no linear layer has.
    """
    layers = linear_layers(model)
    if asked in ("auto", "all-linear"):
        return layers
    if isinstance(asked, str):
        in_attention = [name for name in layers if any("attn" in part or "attention" in part for part in name.split("."))]
        return in_attention if asked == "attention" else [name for name in layers if name not in in_attention]
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    for word in asked:
        if not any(name == word or name.endswith(f".{word}") for name in layers):
            raise ConfigError(
                f"algo.target_modules: no linear layer is called {word}. Allowed: {', '.join(known)}."
                + did_you_mean(word, known)
            )
    return [name for name in layers if any(name == word or name.endswith(f".{word}") for word in asked)]
