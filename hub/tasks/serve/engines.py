"""The programs that serve: which are installed, and how each is started."""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hub.config.generate import GenerateConfig
from hub.config.option import AUTO
from hub.errors import LaunchError

NEEDS = ("fastapi", "uvicorn", "openai", "pydantic")
"""Packages that `transformers serve` needs: `is_serve_available` of transformers."""

HOST = "127.0.0.1"
LORA_RANKS = (8, 16, 32, 64, 128, 256)
"""Values of vLLM's --max-lora-rank that all its versions have."""

_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initial values of an adapter that leave the base as it was (`PEFTHelper._init_is_supported`)."""
_NOT_BY_VLLM = (
    *("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices", "target_parameters"),
    *("lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"),
)
"""Features in an adapter's config that some release of vLLM refuses or ignores."""

_INSTALL = "Type pip install vllm, or pip install 'transformers[serving]'"


@dataclass(frozen=True)
class Served:
    """What a server is started with."""

    folder: Path
    """Whole model, tokenizer, chat template and generation config. Its name is the name of the model."""

    port: int
    settings: GenerateConfig
    dtype: str
    """As `model.dtype`."""

    adapter: Path | None = None
    """Adapter that the engine lays on the model."""

    rank: int = 0
    """Of the adapter."""

    trust_remote_code: bool = False

    memory: float | None = None
    """Share of the device's memory for vLLM. None: vLLM's own choice."""

    arguments: tuple[str, ...] = ()
    """Words at the end of the command line."""


def choose(engine: str) -> str:
    """The engine to use.

    Args:
        engine: as `engine=`.

    Raises:
        LaunchError: it is not installed.
    """
    lacking = [name for name in NEEDS if find_spec(name) is None]
    if engine in (AUTO, "vllm") and vllm() is not None:
        return "vllm"
    if engine == "vllm":
        raise LaunchError("engine=vllm: there is no program vllm here. Type pip install vllm")
    if not lacking:
        return "transformers"
    if engine == "transformers":
        raise LaunchError(f"engine=transformers needs {', '.join(lacking)}. Type pip install 'transformers[serving]'")
    raise LaunchError(f"nothing that can serve a model is installed (transformers lacks {', '.join(lacking)}). {_INSTALL}")


def vllm() -> str | None:
    """The program `vllm`: beside this interpreter, else on the path."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.is_file() else shutil.which("vllm")


def takes_model_as_argument() -> bool:
    """Whether `transformers serve` takes the model as its argument. Earlier releases have an option for it."""
    found = find_spec("transformers")
    file = Path(found.origin).parent / "cli" / "serve.py" if found is not None and found.origin else None
    text = file.read_text(encoding="utf-8") if file is not None and file.is_file() else ""
    return re.search(r"force_model: Annotated\[[^\]]*?typer\.Option", text) is None


def takes_adapter(engine: str, config: Mapping[str, Any]) -> bool:
    """Whether an engine lays an adapter on its base by itself. If not, it is merged.

    vLLM takes LoRA of limited rank without trained biases, DoRA and whole layers (its `PEFTHelper`). A release ignores a
    feature that it does not know. So an adapter with one that not all releases know is merged.

    Args:
        engine: from `choose`.
        config: adapter_config.json.
    """
    return (
        engine == "vllm"
        and config.get("peft_type") == "LORA"
        and config.get("bias", "none") == "none"
        and (not isinstance(init := config.get("init_lora_weights", True), str) or init.lower() in _HARMLESS_INITS)
        and not any(config.get(name) for name in _NOT_BY_VLLM)
        and int(config.get("r", 0)) <= LORA_RANKS[-1]
    )


def command(engine: str, served: Served) -> list[str]:
    """The command line of a server. It runs in the folder above that of the model."""
    name = served.folder.name
    if engine == "transformers":
        model = [name] if takes_model_as_argument() else ["--force-model", name]
        words = [sys.executable, "-m", "transformers.cli.transformers", "serve", *model]
        words += ["--host", HOST, "--port", str(served.port)]
        if served.settings.seed:
            words += ["--default-seed", str(served.settings.seed)]
        if served.dtype != AUTO:
            words += ["--dtype", served.dtype]
        words += ["--trust-remote-code"] if served.trust_remote_code else []
        return [*words, *served.arguments]
    words = [vllm() or "vllm", "serve", str(served.folder), "--host", HOST, "--port", str(served.port)]
    words += ["--served-model-name", f"{name}-base" if served.adapter is not None else name]
    words += ["--seed", str(served.settings.seed), "--override-generation-config", json.dumps(sampling(served.settings))]
    if served.dtype != AUTO:
        words += ["--dtype", served.dtype]
    if served.adapter is not None:
        rank = next(rank for rank in LORA_RANKS if rank >= served.rank)
        words += ["--enable-lora", "--lora-modules", f"{name}={served.adapter}", "--max-lora-rank", str(rank)]
    if served.memory is not None:
        words += ["--gpu-memory-utilization", str(served.memory)]
    words += ["--trust-remote-code"] if served.trust_remote_code else []
    return [*words, *served.arguments]


def sampling(settings: GenerateConfig) -> dict[str, Any]:
    """Sampling by the names of transformers' and vLLM's generation configs."""
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "repetition_penalty": settings.repetition_penalty,
        "max_new_tokens": settings.max_new_tokens,
    }


def curl(served: Served) -> str:
    """The command that asks the server."""
    body = {"model": served.folder.name, "messages": [{"role": "user", "content": "Hi"}]}
    address = f"http://{HOST}:{served.port}/v1/chat/completions"
    return f"curl {address} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
