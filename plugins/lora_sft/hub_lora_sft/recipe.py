"""LoRA on one page: load the model (in 4 or 8 bits or fp8 if set), add the adapters."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hub import Outcome, Run
from hub.models.load import trainable_in_float32
from hub.models.structure import expert_tensors, linear_layers, outside_text
from hub.models.tokens import Vocabulary
from hub.parallel.session import Session
from hub.recipe import Recipe, Setup
from hub.train.kernels.float8 import report_layers
from hub_lora_sft.config import BIASES, LoraSftConfig, from_weights
from hub_lora_sft.embeddings import check_tied, describe, extra_options, is_tied
from hub_lora_sft.float8 import hold_in_fp8
from hub_lora_sft.further import train_further
from hub_lora_sft.inits import LOFTQ_BITS, check_init, forget_factors, reduce_base, save_adapter, scale_loftq
from hub_lora_sft.parameters import compute_beside, say_how_experts_are_kept, targets_of
from hub_lora_sft.protected import Protected, planned
from hub_lora_sft.targets import left_out_layers, refusals_in_one_line, report


def build(setup: Setup) -> Recipe:
    """Build the recipe: adapters train on frozen weights. The result is an adapter folder that peft loads onto the base."""
    return _build(setup)


def _build(setup: Setup, is_plan: bool = False) -> Recipe:
    algo, run = setup.cfg.algo, setup.run
    assert isinstance(algo, LoraSftConfig)
    in_fp8 = algo.precision == "fp8"
    base = setup.load_model(
        quantization=quantization(algo, setup.session), frozen=True, whole="algo.precision=fp8" if in_fp8 else None
    )
    if algo.load_in_4bit or algo.load_in_8bit:
        say_how_experts_are_kept(base, setup.run)
    left_out, layers = left_out_layers(setup, base), set(linear_layers(base))
    protected = None
    if algo.protect is not None and not is_plan:
        protected = Protected(setup, base, targets_of(algo.target_modules, base, left_out))
    further = setup.cfg.model.adapter
    if further is None:
        model = add_adapters(algo, base, run, left_out, setup.vocabulary)
    else:
        model = train_further(algo, base, run, Path(further))
    if from_weights(algo.init):
        reduce_base(model, setup)
    free_inputs = None
    if algo.protect is not None:
        free_inputs = planned(setup, model) if protected is None else protected.hold(model)
    if in_fp8:
        report_layers(run, *hold_in_fp8(model, layers & left_out.keys()))

    def save(trained: PeftModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        save_adapter(trained, folder, weights)
        setup.tokenizer.save_pretrained(folder)

    def finish(outcome: Outcome) -> None:
        if outcome.stopped_by is None and run.is_main:
            forget_factors(run)
        if protected is not None and outcome.model_path is not None and run.is_main:
            protected.leave(outcome.stopped_by is None)

    return Recipe(model=model, save=save, finish=finish, reparametrization=free_inputs)


def plan(setup: Setup) -> Recipe:
    """Build the recipe of a model without data, for `hub plan`: directions, and what begins with weights, have shapes."""
    algo = setup.cfg.algo
    assert isinstance(algo, LoraSftConfig)
    return _build(replace(setup, cfg=replace(setup.cfg, algo=replace(algo, init="default"))), is_plan=True)


def quantization(algo: LoraSftConfig, session: Session) -> BitsAndBytesConfig | None:
    """Return the config that quantizes the frozen weights while they are loaded. None: no quantization."""
    if not (algo.load_in_4bit or algo.load_in_8bit):
        return None
    if algo.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=session.compute_dtype,
    )


def add_adapters(
    algo: LoraSftConfig, model: PreTrainedModel, run: Run, left_out: Mapping[str, str], vocabulary: Vocabulary | None = None
) -> PeftModel:
    """Return the model with adapters in float32. Besides them only what `extra_options` names and `algo.bias` trains.

    Args:
        algo: the options.
        model: the model without adapters.
        run: for the log and plan.json.
        left_out: layers that get no adapter, each with the reason.
        vocabulary: the tokens, with those that are new.
    """
    experts = expert_tensors(model)
    targets = targets_of(algo.target_modules, model, left_out)
    check_init(algo.init, targets.parameters)
    # peft declares an int, but takes a quotient.
    options: dict[str, Any] = {"lora_alpha": algo.lora_alpha}
    if algo.init != "default" and not from_weights(algo.init):
        options["init_lora_weights"] = algo.init
    if algo.init == "loftq":
        from peft import LoftQConfig

        options["loftq_config"] = LoftQConfig(loftq_bits=LOFTQ_BITS)
    names = [*targets.layers, *targets.parameters]
    extra, tied = extra_options(algo, model, vocabulary, names), is_tied(model)
    if targets.parameters:
        options["target_parameters"] = targets.parameters
    with refusals_in_one_line(algo, experts):
        adapted = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=algo.lora_r,
                lora_dropout=algo.lora_dropout,
                target_modules=targets.layers,
                bias=BIASES[algo.bias],
                use_rslora=algo.use_rslora,
                use_dora=algo.use_dora,
                fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets.layers[:1]),
                **options,
                **extra,
            ),
        )
    for parameter in outside_text(adapted):
        parameter.requires_grad_(False)  # with `bias` PEFT trains those of a vision tower as well
    check_tied(adapted, tied)
    describe(extra, run)
    if algo.init == "loftq":
        scale_loftq(adapted)
        run.say(
            "algo.init=loftq: the adapter belongs onto the base model in 4 bits, quantized with "
            "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')"
        )
    trainable_in_float32(adapted)
    report(run, adapted, experts, targets.left_out)
    compute_beside(adapted, run)
    return adapted
