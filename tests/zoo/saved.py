"""Compare what the hub saves of an untrained model with what transformers itself saves: `python -m zoo.saved [NAME ...]`."""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo.zoo import TEXT, processes, zoo_model

from hub.config.schema import ModelConfig
from hub.models.load import load_causal_lm
from hub.models.save import save_whole_model
from hub.parallel.strategy import full_weights


def differences(name: str, folder: Path, kept_in: torch.dtype = torch.float32) -> list[str]:
    """Where the hub's files differ from those of transformers: in a name, a dtype, a bit or the config.

    Args:
        name: one of `TEXT`.
        folder: receives three models: the base in bfloat16, and one saved by each.
        kept_in: dtype in which the hub holds the weights, as for training.
    """
    base, plain, saved = folder / "base", folder / "plain", folder / "saved"
    AutoModelForCausalLM.from_pretrained(zoo_model(name), dtype=torch.bfloat16).save_pretrained(base)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(plain)
    model = load_causal_lm(ModelConfig(path=str(base)), base, torch.device("cpu"), kept_in)
    tokenizer = AutoTokenizer.from_pretrained(zoo_model(name))
    save_whole_model(model, tokenizer, saved, torch.bfloat16, full_weights(model), base)
    expected, found = tensors(plain), tensors(saved)
    wrong = sorted(expected.keys() ^ found.keys())
    for key in expected.keys() & found.keys():
        if expected[key].dtype != found[key].dtype or not torch.equal(expected[key], found[key]):
            wrong.append(f"{key}: {found[key].dtype} instead of {expected[key].dtype}")
    if (plain / "config.json").read_text() != (saved / "config.json").read_text():
        wrong.append("config.json")
    return wrong


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the safetensors files of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def _differences_aside(name: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return differences(name, Path(folder))


if __name__ == "__main__":
    chosen = sys.argv[1].split(",") if sys.argv[1:] else TEXT
    good = True
    with processes() as pool:
        for name, found in zip(chosen, pool.imap(_differences_aside, chosen), strict=True):
            print(name, found or "is saved as by transformers", flush=True)
            good &= not found
    sys.exit(0 if good else 1)
