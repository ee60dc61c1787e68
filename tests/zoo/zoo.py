"""Tiny random models of many decoder architectures, each with the tokenizer of `hub.testing`. `architectures.yaml` has them."""

import gc
import json
import multiprocessing
import os
import sys
import warnings
from multiprocessing.pool import Pool
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.utils import logging

from hub.system.cache import cache_dir, make_once
from hub.testing import FAMILIES, VOCAB, tiny_model_path, tokenizer

RECIPE = 4
"""Version of the models. Increase it on changes, so that cached models of an older version are not used."""

_FILE = yaml.safe_load(Path(__file__).with_name("architectures.yaml").read_text(encoding="utf-8"))
TEXT = (*_FILE["text"], *(name for name in FAMILIES if name not in _FILE["text"]))
"""Names of the language models, those of `hub.testing` included."""

MULTIMODAL = tuple(_FILE["multimodal"])
"""Names of the models of images and text."""


def zoo_model(name: str) -> Path:
    """Folder of a tiny model, made once in the cache: float32 weights, config, tokenizer, for images processor files.

    Args:
        name: one of `TEXT` or `MULTIMODAL`.
    """
    if name in TEXT and name not in _FILE["text"]:
        return tiny_model_path(name)
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
    config = AutoConfig.for_model(family, **values)
    _without_chance(config)
    torch.manual_seed(0)
    model = loader.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)  # a router of zeros would choose among equal experts
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if name in MULTIMODAL:
        processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
        (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": 4}), encoding="utf-8")


def _without_chance(config: PretrainedConfig) -> None:
    """Switch dropout and noise of the router off, so that a step can be compared with an independent one."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _without_chance(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)


def processes() -> Pool:
    """Processes for several architectures at a time: as many as JOBS says, two if it says nothing.

    Where it is safe they are forked, and so have imported the libraries already.
    """
    gc.freeze()  # a run makes Python's collector look through all objects, and the libraries have a million
    how = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    return how.Pool(int(os.environ.get("JOBS", "2")), _quiet)


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
