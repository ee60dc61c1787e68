"""The folder that an engine serves: the weights, and the tokenizer, template and generation config as the hub has them."""

import gc
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.config.generate import GenerateConfig
from hub.config.option import AUTO
from hub.errors import ModelError
from hub.models.finished import ADAPTER_CONFIG, Asked
from hub.models.storage import stored_as
from hub.tasks.serve.engines import Served, sampling, takes_adapter
from hub.tasks.serve.verb import ServeOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Say = Callable[[str], None]
_OF_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LEFT_OUT = (*_OF_TOKENIZERS, "chat_template.jinja", "chat_template.json", "generation_config.json", ADAPTER_CONFIG)


def make_folder(asked: Asked, engine: str, folder: Path, say: Say) -> Served:
    """Fill a folder for an engine. Weights are linked, but for an adapter that the engine can't take: it is merged.

    Args:
        asked: the model, and the options of `serve`.
        engine: from `choose`.
        folder: an empty one.
        say: receives lines for the user.

    Raises:
        ConfigError: an option can't be followed.
        ModelError: the model can't be loaded, or its adapter can't be merged.
    """
    from hub.data.tokens.template import fallback_line, require_template
    from hub.models.weights import local_weights
    from hub.parallel.session import quiet_libraries
    from hub.tasks.generate.prompts import Prompter
    from hub.tasks.loading import tokenizer_of

    options, finished, settings = asked.options, asked.model, asked.cfg.generate
    assert isinstance(options, ServeOptions)
    quiet_libraries()
    path = local_weights(finished.base, say)
    tokenizer = tokenizer_of(asked.cfg, finished, path)
    if not tokenizer.chat_template:
        require_template(tokenizer)
        say(fallback_line(tokenizer).partition(". It is saved")[0])
    prompter = Prompter(tokenizer, settings.thinking, trained=finished.before is not None)
    if prompter.lines:
        say("The server's prompts end as the chat template has it, with a block of thoughts that no training sample has")
    served = Served(folder, options.port, settings, asked.cfg.model.dtype, trust_remote_code=finished.base.trust_remote_code)
    if finished.adapter is not None:
        config = json.loads((finished.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        if takes_adapter(engine, config) and not finished.base.changes_vocab:
            served = replace(served, adapter=finished.adapter, rank=int(config["r"]))
        else:
            _merge(asked, path, folder, say)
    stop_ids = _stop_ids(tokenizer, path)
    _write_template(tokenizer, prompter)
    tokenizer.save_pretrained(folder)
    _write_generation_config(folder, settings, stop_ids, tokenizer)
    for file in path.iterdir():
        link = folder / file.name
        if file.is_file() and file.name not in _LEFT_OUT and not link.exists():
            link.symlink_to(file.resolve())
    return served


def _merge(asked: Asked, path: Path, folder: Path, say: Say) -> None:
    """Write the base with its adapter merged. A base that was quantized for training is merged in full precision."""
    import torch

    from hub.tasks.loading import load_finished

    if stored_as(path) is not None:
        raise ModelError(
            f"{asked.model.name}: the weights of its base are stored quantized, and an adapter merged into them would be "
            "rounded. Install vLLM, which takes the adapter as it is: pip install vllm"
        )
    full: dict[str, Any] = {name: False for name in ("load_in_4bit", "load_in_8bit") if getattr(asked.cfg.algo, name, False)}
    asked = replace(asked, cfg=replace(asked.cfg, algo=replace(asked.cfg.algo, **full)))
    say(f"Merging the adapter into its base: {folder}")
    loaded = load_finished(asked, asked.model, say)
    model: Any = loaded.model
    merged = model.merge_and_unload()
    merged.to(loaded.dtype).save_pretrained(folder)
    del loaded, model, merged
    gc.collect()
    torch.cuda.empty_cache()  # the engine needs the GPU's memory


def _stop_ids(tokenizer: "PreTrainedTokenizerBase", path: Path) -> list[int]:
    """What ends an answer: the template's tokens, and those of the model's own generation config."""
    from hub.tasks.generate.answer_shape import answer_shape

    stop_ids = set(answer_shape(tokenizer).stop_ids)
    file = path / "generation_config.json"
    if file.is_file():
        own = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        stop_ids |= set(own if isinstance(own, list) else [] if own is None else [own])
    return sorted(stop_ids)


def _write_template(tokenizer: "PreTrainedTokenizerBase", prompter: Any) -> None:
    """Fix the date and the switch for thoughts in the template, which an engine would choose by itself."""
    from hub.data.tokens.chat_template import chat_template

    if not isinstance(tokenizer.chat_template, str):
        return
    switches = "".join(f"{{%- set {name} = {str(value).lower()} %}}" for name, value in prompter.variables.items())
    tokenizer.chat_template = switches + chat_template(tokenizer, None).text


def _write_generation_config(
    folder: Path, settings: GenerateConfig, stop_ids: list[int], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    values = sampling(settings)
    greedy = settings.temperature == 0
    if greedy:
        values = {name: value for name, value in values.items() if name in ("repetition_penalty", "max_new_tokens")}
    values |= {"do_sample": not greedy, "eos_token_id": stop_ids, "bos_token_id": tokenizer.bos_token_id}
    values["pad_token_id"] = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stop_ids, default=0)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")


def model_name(asked: Asked) -> str:
    """A name for requests, which is a folder's name too."""
    options = asked.options
    assert isinstance(options, ServeOptions)
    name = options.name or os.path.basename(asked.model.name.rstrip("/")) or AUTO
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)
