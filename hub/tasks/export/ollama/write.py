"""Writes a folder for Ollama that stands alone: the GGUF files, a Modelfile for each, and what to type."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hub.errors import ModelError
from hub.tasks.export.job import Delivered, Job, Written
from hub.tasks.export.ollama.header import Value, header
from hub.tasks.export.ollama.modelfile import (
    length_of_context,
    modelfile,
    name_for_ollama,
    parameters,
    read,
    stop_texts,
)
from hub.tasks.export.ollama.prompts import Prompts, find_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

README = "README.md"
_NUM_ROWS = 64
"""Rows of the training data whose lengths say how much context the model needs."""


def write(job: Job) -> list[Written]:
    """Write a Modelfile for each GGUF file.

    Raises:
        ModelError: prompts of Ollama would not be those of training, or there is no GGUF file.
    """
    files = [one for one in job.done["gguf"] if one.path.suffix == ".gguf"]
    if not files:
        raise ModelError("ollama: there is no GGUF file. Type to=gguf,ollama")
    known = header(files[0].path)
    prompts = find_prompts(job.tokenizer, added_bos(job.tokenizer, known))
    failed = ""
    if prompts.failures:
        line = (
            f"ollama: prompts would not be those of training ({len(prompts.failures)} sample chats). {prompts.failures[0]}. "
            "Nothing is written. To keep it anyway, with this figure in its name, type --force"
        )
        if not job.cfg.force or not prompts.template:
            raise ModelError(
                line if prompts.template else line.replace(" To keep it anyway, with this figure in its name, type --force", "")
            )
        job.say(f"hub: {line}")
        failed = f"prompts of {len(prompts.failures)} sample chats are not those of training. {prompts.failures[0]}"
        prompts.notes.insert(0, f"PROMPTS DIFFER from those of training: {prompts.failures[0]}")
    generate = job.asked.cfg.generate
    stops = stop_texts(job.tokenizer, configured_ends(job.settings()), generate.stop)
    chosen = parameters(generate, stops, length_of_context(_longest(job), _positions(known)))
    for one in files:
        _put(one.path, job.out / one.path.name)
        text = modelfile(one.path.name, prompts.template, chosen)
        check_read_again(text, one.path.name, prompts.template, stops)
        (job.out / name_of(one, files)).write_text(text, encoding="utf-8")
    command = _command(job, files)
    (job.out / README).write_text(_readme(job, files, prompts, command), encoding="utf-8")
    compared = f"prompts of {prompts.num_compared} sample chats have the token ids of training"
    note = "; ".join([compared, *prompts.notes, f"type in its folder: {command}"])
    kind, figure = ",".join(one.kind for one in files), f"{len(prompts.failures)}-chats"
    return [Written(kind=kind, path=job.out, failed=failed, figure=figure, note=note)]


def check_read_again(text: str, gguf: str, template: str, stops: Sequence[str]) -> None:
    """Read a Modelfile as Ollama does, and see that all of it is there.

    Raises:
        ModelError: something is lost.
    """
    found = read(text)
    wanted = [("FROM", f"./{gguf}"), ("TEMPLATE", template), *(("PARAMETER stop", stop) for stop in stops)]
    for one in wanted:
        if one not in found:
            raise ModelError(f"ollama: a Modelfile can't hold this {one[0]}: {one[1]!r}. Nothing is written")


def added_bos(tokenizer: "PreTrainedTokenizerBase", known: dict[str, Value]) -> str:
    """What llama.cpp puts before each prompt by itself, as the header of the GGUF file says."""
    adds = known.get("tokenizer.ggml.add_bos_token", known.get("tokenizer.ggml.model") == "llama")
    return str(tokenizer.bos_token) if adds and tokenizer.bos_token is not None else ""


def configured_ends(folder: Path) -> list[int]:
    """Ids that the generation config of a model folder has as ends of a text."""
    file = folder / "generation_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return [int(one) for one in (found if isinstance(found, list) else [found]) if one is not None]


def name_of(one: Delivered, files: Sequence[Delivered]) -> str:
    """Name of the Modelfile of a GGUF file."""
    return "Modelfile" if len(files) == 1 else f"Modelfile-{one.kind}"


def _put(file: Path, place: Path) -> None:
    """A second name for a file, or a copy where the disk has none."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copy2(file, place)


def _longest(job: Job) -> int:
    lengths = [len(row) for row in job.rows(_NUM_ROWS)]
    return max(lengths) + job.asked.cfg.generate.max_new_tokens if lengths else 0


def _positions(known: dict[str, Value]) -> int | None:
    found = known.get(f"{known.get('general.architecture')}.context_length")
    return int(found) if found else None


def _command(job: Job, files: Sequence[Delivered]) -> str:
    name = name_for_ollama(job.finished.name)
    return f"ollama create {name} -f {name_of(files[0], files)} && ollama run {name}"


def _readme(job: Job, files: Sequence[Delivered], prompts: Prompts, command: str) -> str:
    lines = [f"# {name_for_ollama(job.finished.name)} for Ollama", "", "```sh", command, "```", ""]
    if len(files) > 1:
        lines += [
            "Each size has a Modelfile of its own:",
            "",
            *(f"* `{name_of(one, files)}`: {one.path.name}" for one in files),
            "",
        ]
    lines.append(
        f"The prompts of {prompts.num_compared} sample chats have the token ids that the model was trained with: with and "
        "without a system prompt, of several turns, with spaces around texts"
        + (", with tools, their calls and results." if "$.Tools" in prompts.template else ".")
    )
    lines += ["", *(f"* {note[:1].upper()}{note[1:]}." for note in prompts.notes)]
    return "\n".join(lines).rstrip() + "\n"
