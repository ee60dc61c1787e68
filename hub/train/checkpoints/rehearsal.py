"""Saves the model once before training, so that no run ends without its result.

The recipe's own `save` writes to a temporary folder of the run, and the config and tokenizer are read back. A small model is
written as it is. The weights of a larger one are replaced by tensors without data (on the meta device), and the safetensors
files get empty tensors of these names: that takes no memory and no time. Not every `save` can work on them. So if that fails,
the whole model is written, and only a failure with it ends the run.
"""

import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from hub.config.schema import ModelConfig
from hub.errors import ModelError, first_line, one_line
from hub.models.save import make_generation_config_savable
from hub.parallel.group import broadcast_text
from hub.parallel.session import Session
from hub.parallel.strategy import full_weights
from hub.run import Run
from hub.system.answers import measured
from hub.system.memory import is_out_of_memory, shortage_of
from hub.train.checkpoints.save import SaveModel

SMALL_BYTES = 2**26
"""Size of the saved weights up to which the model is written as it is."""

FOLDER = ".rehearsal"

LESS = "Type algo.load_in_4bit=true, launch.strategy=fsdp on several GPUs, or a smaller model"

PARTS = {"generation/configuration_utils": "generation config", "/configuration_": "config", "/tokenization_": "tokenizer"}
"""Part of a source file's name in transformers -> what failed if an error passed through it. The first that applies."""


class _UnreadableError(Exception):
    """What was saved can't be read back."""


def rehearse_save(cfg: ModelConfig, run: Run, session: Session, model: torch.nn.Module, save_model: SaveModel) -> None:
    """Save a model to a temporary folder before it trains. All ranks must call it. No weight changes.

    A generation config that transformers refuses to save is corrected in the model if the correction is plain.

    Args:
        cfg: for messages, and whether code of the model's folder may run.
        run: its folder gets the temporary one.
        session: ranks and strategy.
        model: placed by the strategy.
        save_model: writes the model that a user loads, to a folder that does not exist yet.

    Raises:
        ModelError: it can't be saved, or what was saved can't be loaded.
    """
    folder = run.path / FOLDER
    empty = weights_without_data(model, session)
    is_small = sum(tensor.nbytes for tensor in set(empty.values())) <= SMALL_BYTES

    def failure_with(weights: dict[str, torch.Tensor]) -> str:
        """Rank 0's failure, on all ranks."""
        return broadcast_text(_failure(cfg, folder, save_model, weights) if run.is_main else "")

    if run.is_main and not hasattr(model, "peft_config") and (line := make_generation_config_savable(model, folder)):
        run.say(line)

    def rehearse() -> str:
        failure = "" if is_small else failure_with(empty)
        if failure:
            run.say("the whole model is saved once before training: its save can't be tried without data")
        if is_small or failure:
            with session.strategy.reparametrization.exact():
                weights = full_weights(model, whole=session.strategy.whole)
            failure = failure_with(weights)
        return failure

    if failure := measured("rehearsal", rehearse, str):
        raise ModelError(failure)


def weights_without_data(model: torch.nn.Module, session: Session) -> dict[str, torch.Tensor]:
    """What `full_weights` returns, on the meta device: the same names, shapes and dtypes, and tied weights are one tensor."""
    made: dict[int, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if hasattr(model, "peft_config") and not tensor.requires_grad:
            continue
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(session.strategy.shape(tensor), dtype=tensor.dtype, device="meta")
        weights[name] = made[id(tensor)]
    return weights


@contextmanager
def empty_tensors_without_data() -> Iterator[None]:
    """Let safetensors' `save_file` accept tensors on the meta device, and write empty ones in their place.

    Whoever has imported the function gets the changed one, such as transformers, peft and plugins.
    """
    real = safetensors.torch.save_file

    def save_file(tensors: dict[str, torch.Tensor], filename: str | Path, metadata: dict[str, str] | None = None) -> None:
        real({name: torch.empty(0, dtype=t.dtype) if t.is_meta else t for name, t in tensors.items()}, filename, metadata)

    modules = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    places = [(names, name) for names in modules for name, value in list(names.items()) if value is real]
    try:
        for names, name in places:
            names[name] = save_file
        yield
    finally:
        for names, name in places:
            names[name] = real


def read_back(folder: Path, trust_remote_code: bool) -> None:
    """Load what a user loads first: configs and the tokenizer. What is not there, as with adapters, is not needed.

    Raises:
        _UnreadableError: transformers can't load it.
    """
    loaders: dict[str, Callable[..., object]] = {
        "config.json": partial(AutoConfig.from_pretrained, trust_remote_code=trust_remote_code),
        "generation_config.json": GenerationConfig.from_pretrained,
        "tokenizer_config.json": partial(AutoTokenizer.from_pretrained, trust_remote_code=trust_remote_code),
    }
    for file, load in loaders.items():
        try:
            values = json.loads((folder / file).read_text(encoding="utf-8"))
            if file != "config.json" or "model_type" in values:  # else it is a file of the plugin's own
                load(folder)
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever the model's classes raise
            raise _UnreadableError(f"{file}: {first_line(error)}") from error


def _failure(cfg: ModelConfig, folder: Path, save_model: SaveModel, weights: dict[str, torch.Tensor]) -> str:
    """Save and read back. Returns what failed and what to type, in one line; an empty text if nothing failed."""
    begin = f"model.path={cfg.path} is not trained, since"
    shutil.rmtree(folder, ignore_errors=True)
    with_data = not any(tensor.is_meta for tensor in weights.values())
    try:
        with torch.random.fork_rng(devices=[]), nullcontext() if with_data else empty_tensors_without_data():
            save_model(folder, weights)
        read_back(folder, cfg.trust_remote_code)
    except _UnreadableError as error:
        return (
            f"{begin} what is saved of it can't be loaded: {error}. Correct that file in the base, or type another model.path"
        )
    except Exception as error:  # whatever the model's classes or a plugin raise
        what = one_line(error)
        if is_out_of_memory(error):
            return f"out of memory: the model can't be saved ({shortage_of(error)}). {LESS}"
        if isinstance(error, OSError) or "os error" in what.lower():  # the words of safetensors' own exception for a full disk
            return f"{begin} it can't be saved: {what}. Type output_dir=FOLDER with a writable folder that has room"
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        part = next((part for name, part in PARTS.items() if any(name in file for file in files)), "model")
        return f"{begin} its {part} can't be saved: {what}. Correct it in the base, or type another model.path or algo"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
