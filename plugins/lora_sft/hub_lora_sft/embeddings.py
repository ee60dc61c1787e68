"""What trains besides the adapters: the rows of new tokens, whole embeddings, or other modules.

Rows of new tokens train by PEFT's `trainable_token_indices`: the other rows stay frozen and are not stored. Whole modules train
by PEFT's `modules_to_save`: a copy of each. A tied output layer follows the embeddings in both.
"""

from collections.abc import Collection
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from transformers import PreTrainedModel

from hub import ConfigError, Run
from hub.errors import did_you_mean
from hub.models.tokens import Vocabulary
from hub_lora_sft.config import LoraSftConfig

WHOLE = "Type algo.train_embeddings=true, which trains them whole"


def extra_options(
    algo: LoraSftConfig, model: PreTrainedModel, vocabulary: Vocabulary | None, targets: Collection[str]
) -> dict[str, Any]:
    """Options of PEFT's `LoraConfig` for what trains besides the adapters.

    Args:
        algo: `train_embeddings` and `modules_to_save`.
        model: the model without adapters.
        vocabulary: the tokens of the run. None: those of the model.
        targets: names of the layers that get an adapter.

    Raises:
        ConfigError: a module that there is not, or that can't train so.
    """
    tables = _tables(model)
    whole = list(tables) if algo.train_embeddings else []
    whole += [name for name in _named(algo.modules_to_save, model) if name not in whole]
    embedding, tied = next(iter(tables)), is_tied(model)
    head = _name_of(model, model.get_output_embeddings()) if tied else ""
    if tied and {embedding, head} & set(whole):
        # Both, since PEFT knows some embeddings by the name of the output layer only. It trains one weight for them.
        whole = list(dict.fromkeys([embedding, head, *whole]))
    for name in whole:
        if inner := [target for target in targets if target == name or target.startswith(f"{name}.")]:
            raise ConfigError(
                f"{name} is to train as a whole (algo.modules_to_save, algo.train_embeddings), but {inner[0]} gets an adapter. "
                "Take one of them out"
            )
        if not all(parameter.is_floating_point() for parameter in model.get_submodule(name).parameters()):
            raise ConfigError(f"{name} is quantized, so it can't train as a whole. Take it out of algo.modules_to_save")
    options: dict[str, Any] = {}
    if whole:
        options["modules_to_save"] = whole
        if tied and embedding in whole:
            options["ensure_weight_tying"] = True
    if vocabulary is not None and (rows := vocabulary.new_rows):
        only_rows = [name for name in tables if name not in whole]
        for name in only_rows:
            _check_rows(name, model, targets)
        if only_rows:
            options["trainable_token_indices"] = {name: rows for name in only_rows}
    return options


def check_tied(model: PeftModel, was_tied: bool) -> None:
    """Check that the output layer still shares the weight of the embeddings, or the new rows of it.

    Raises:
        ConfigError: PEFT does not see that they are tied.
    """
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    embedding: torch.nn.Module = base.get_input_embeddings()
    head: torch.nn.Module | None = base.get_output_embeddings()
    if not was_tied or not isinstance(embedding, TrainableTokensWrapper | ModulesToSaveWrapper):
        return
    rows = isinstance(embedding, TrainableTokensWrapper)
    if type(head) is type(embedding) and (rows or head.weight is embedding.weight):
        return
    if rows:
        raise ConfigError(f"the rows of new tokens can't train alone in this model. {WHOLE}")
    raise ConfigError("PEFT can't train the tied embeddings of this model. Type algo.train_embeddings=false")


def describe(options: dict[str, Any], run: Run) -> None:
    """Log what trains besides the adapters."""
    if whole := options.get("modules_to_save"):
        run.say(f"besides the adapters {', '.join(whole)} train as a whole")
    for name, rows in options.get("trainable_token_indices", {}).items():
        run.say(f"besides the adapters {len(rows):,} rows of {name} train, those of new tokens")
    run.write_plan(
        modules_to_save=options.get("modules_to_save", []),
        trained_rows={name: len(rows) for name, rows in options.get("trainable_token_indices", {}).items()},
    )


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer shares the weight of the embeddings."""
    head: torch.nn.Module | None = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _tables(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The embeddings and, if it has a weight of its own, the output layer, by name."""
    modules: list[torch.nn.Module] = [model.get_input_embeddings()]
    if model.get_output_embeddings() is not None and not is_tied(model):
        modules.append(model.get_output_embeddings())
    return {_name_of(model, module): module for module in modules}


def _name_of(model: PreTrainedModel, module: torch.nn.Module) -> str:
    names: list[str] = [name for name, other in model.named_modules() if other is module]
    return names[0]


def _named(words: list[str], model: PreTrainedModel) -> list[str]:
    """Full names of the modules with these names, or with names that end so."""
    modules = {name: module for name, module in model.named_modules() if name and any(True for _ in module.parameters())}
    chosen: list[str] = []
    for word in words:
        found = [name for name in modules if name == word or name.endswith(f".{word}")]
        if not found:
            known = sorted({name.rsplit(".", 1)[-1] for name in modules if not name.rsplit(".", 1)[-1].isdigit()})
            raise ConfigError(
                f"algo.modules_to_save: no module with weights is called {word}. Allowed: {', '.join(known)}."
                + did_you_mean(word, known)
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def _check_rows(name: str, model: PreTrainedModel, targets: Collection[str]) -> None:
    """Refuse a layer of which PEFT can't train single rows."""
    layer = model.get_submodule(name)
    if name in targets:
        raise ConfigError(
            f"{name} gets an adapter and has rows of new tokens to train, which can't be combined. "
            "Take it out of algo.target_modules"
        )
    if not isinstance(layer, torch.nn.Embedding | torch.nn.Linear) or getattr(layer, "bias", None) is not None:
        raise ConfigError(f"single rows of {name} can't train: it has a bias, or is a layer of its own kind. {WHOLE}")
