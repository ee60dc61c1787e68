"""How the files of a folder are loaded: for each kind of program what to type."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any

from hub.tasks.export.card_facts import Facts

HERE = "."
"""The folder that a card lies in."""

MODELFILE = "Modelfile"
IMAGES = "AutoModelForImageTextToText"
_TEXT = "AutoModelForCausalLM"


def loading(files: Mapping[str, Path], place: str, facts: Facts) -> Iterator[str]:
    """Yield what to type, a block for each kind of program.

    Args:
        files: path in the folder or repository -> file on this machine.
        place: the folder, or the id of the repository.
        facts: of the model.
    """
    for name, file in sorted(files.items()):
        path = PurePosixPath(name)
        if path.name == "adapter_config.json":
            yield from _adapter(_folder(path), place, facts)
        elif path.name == "config.json":
            yield from _model(_folder(path), place, file, facts)
        elif path.name == MODELFILE:
            yield from _block("Ollama", "bash", f"ollama create mymodel -f {quote(name)}", "ollama run mymodel")
    if gguf := sorted(name for name in files if name.endswith(".gguf") and "mmproj" not in name):
        commands = [f"llama-cli -m {quote(name)} -cnv" for name in gguf]
        first = [] if place == HERE else [f"hf download {place} {' '.join(map(quote, gguf))} --local-dir ."]
        yield from _block(
            "llama.cpp", "bash", *first, *commands, f"llama-server -m {quote(gguf[0])}  # an OpenAI-compatible server"
        )


def kinds(files: Mapping[str, Path]) -> frozenset[str]:
    """What a folder holds: adapter, model, compressed, gguf, ollama."""
    found = set()
    for name, file in files.items():
        last = PurePosixPath(name).name
        if last == "adapter_config.json":
            found.add("adapter")
        if last == "config.json":
            found.add("compressed" if quantization_of(file) == "compressed-tensors" else "model")
        if last.endswith(".gguf"):
            found.add("gguf")
        if last == MODELFILE:
            found.add("ollama")
    return frozenset(found)


def quantization_of(config: Path) -> str | None:
    """How the weights of a model folder are stored, by its config.json. None: in full."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        method = values.get("quantization_config", {}).get("quant_method")
    except (OSError, ValueError, AttributeError):
        return None
    return method if isinstance(method, str) else None


def _folder(path: PurePosixPath) -> str:
    """The folder of a file within its repository. Empty: the root."""
    return "" if str(path.parent) == "." else str(path.parent)


def _adapter(folder: str, place: str, facts: Facts) -> Iterator[str]:
    inner = f", subfolder={folder!r}" if folder else ""
    local = "" if facts.base_id else "  # the folder or the id of the base"
    auto = _auto_class(facts)
    text, reader = ("processor", "AutoProcessor") if auto == IMAGES else ("tokenizer", "AutoTokenizer")
    imports = ", ".join(sorted((auto, reader)))
    revision = f", revision={facts.revision!r}" if facts.base_id and facts.revision else ""
    yield from _block(
        "PEFT",
        "python",
        "from peft import PeftModel",
        f"from transformers import {imports}",
        "",
        f"base = {auto}.from_pretrained({facts.base!r}{revision}){local}",
        f"model = PeftModel.from_pretrained(base, {place!r}{inner})",
        f"{text} = {reader}.from_pretrained({place!r}{inner})",
    )
    if facts.base_id and not folder:
        yield from _block("vLLM", "bash", f"vllm serve {facts.base_id} --enable-lora --lora-modules mymodel={place}")


def _model(folder: str, place: str, config: Path, facts: Facts) -> Iterator[str]:
    inner = f", subfolder={folder!r}" if folder else ""
    auto = _auto_class(facts, config)
    text, reader = ("processor", "AutoProcessor") if auto == IMAGES else ("tokenizer", "AutoTokenizer")
    imports = ", ".join(sorted((auto, reader)))
    if quantization_of(config) is None:
        yield from _block(
            "transformers",
            "python",
            f"from transformers import {imports}",
            "",
            f"model = {auto}.from_pretrained({place!r}{inner})",
            f"{text} = {reader}.from_pretrained({place!r}{inner})",
        )
    if not folder:
        yield from _block("vLLM", "bash", f"vllm serve {place}")
    elif place != HERE:
        command = f"hf download {place} --include {quote(f'{folder}/*')} --local-dir ."
        yield from _block("vLLM", "bash", command, f"vllm serve {quote(folder)}")
    else:
        yield from _block("vLLM", "bash", f"vllm serve {quote(folder)}")


def _auto_class(facts: Facts, config: Path | None = None) -> str:
    """The class that loads a model: the one of its run, else by the architecture that its config names."""
    found: Any = facts.record.plan.get("auto_class") if facts.record is not None else None
    if isinstance(found, str) and found.isidentifier():
        return found
    try:
        values = json.loads(config.read_text(encoding="utf-8")) if config is not None else {}
        architecture = str((values.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError):
        return _TEXT
    return IMAGES if architecture.endswith("ForConditionalGeneration") else _TEXT


def _block(program: str, language: str, *lines: str) -> Iterator[str]:
    yield from (f"{program}:", "", f"```{language}", *lines, "```", "")
