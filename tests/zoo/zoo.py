"""Tiny random models of many decoder architectures, each with the tokenizer of `hub.testing`. `architectures.yaml` has them."""

import json
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from hub.system.cache import cache_dir, make_once
from hub.testing import VOCAB, tokenizer

RECIPE = 1
"""Version of the models. Increase it on changes, so that cached models of an older version are not used."""

_FILE = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text(encoding="utf-8"))
TEXT = tuple(_FILE["text"])
"""Names of the language models."""

MULTIMODAL = tuple(_FILE["multimodal"])
"""Names of the models of images and text."""


def zoo_model(name: str) -> Path:
    """Folder of a tiny model, made once in the cache: float32 weights, config, tokenizer, for images processor files.

    Args:
        name: one of `TEXT` or `MULTIMODAL`.
    """
    return make_once(cache_dir() / "zoo" / f"{name}-recipe{RECIPE}", lambda folder: _make(name, folder))


def _make(name: str, folder: Path) -> None:
    words = tokenizer(VOCAB)
    tokens = {
        "vocab_size": VOCAB,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    values, loader = dict(_FILE["text"].get(name) or _FILE["multimodal"][name]), AutoModelForCausalLM
    family = values.pop("model_type", name)
    if name in MULTIMODAL:
        values["text_config"], loader = tokens | values["text_config"], AutoModelForImageTextToText
    else:
        values = tokens | values
    torch.manual_seed(0)
    model = loader.from_config(AutoConfig.for_model(family, **values), dtype=torch.float32)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if name in MULTIMODAL:
        processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
        (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": 4}), encoding="utf-8")
