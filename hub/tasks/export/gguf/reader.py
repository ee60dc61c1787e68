"""Reads a GGUF file as its users will: by llama.cpp itself, in a process of its own. Logits, token ids, answers."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from hub.errors import ModelError, first_line
from hub.system.cores import usable_cores
from hub.tasks.export.gguf.library import llama_library

_SCRIPT = Path(__file__).with_name("native.py")


@dataclass(frozen=True)
class TokenFacts:
    """What a file says on its tokens. -1 stands for a token that it does not name."""

    num_tokens: int
    bos: int
    eos: int
    eot: int
    adds_bos: bool
    """Whether the begin token is put before every text."""

    adds_eos: bool
    ends: frozenset[int]
    """Tokens that end an answer."""

    template: str | None
    """The chat template."""


class GgufReader(Protocol):
    """A GGUF file that was loaded. A context manager, which frees what it holds."""

    by: str
    """Who reads it, with the version."""

    is_llama_cpp: bool
    """Whether it is llama.cpp, and not another program that reads its files."""

    facts: TokenFacts

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Logits after each token: (tokens, vocabulary), float32, on the CPU."""

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            add_special: whether begin and end tokens are added as the file asks.
            parse_special: whether control tokens in the text are these tokens.
        """

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        """The most likely tokens after a prompt, up to one that ends the answer, which is included."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_reader(file: Path, num_threads: int | None = None) -> GgufReader:
    """Load a GGUF file by llama.cpp, or by transformers where llama.cpp is not installed.

    Args:
        file: the GGUF file.
        num_threads: None: `$OMP_NUM_THREADS`, else as many as there are cores.

    Raises:
        ModelError: it can't be loaded.
    """
    library = llama_library()
    if library is None:
        return TransformersReader(file)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return LlamaReader(file, library, num_threads or (int(asked) if asked.isdecimal() else usable_cores()) or 1)


class _Closing:
    """Begin and end of a `with` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class LlamaReader(_Closing):
    """A GGUF file in llama.cpp, in a process of its own."""

    is_llama_cpp = True

    def __init__(self, file: Path, library: Path, num_threads: int) -> None:
        self._file = file
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 # closed by close()
        command = [sys.executable, "-P", str(_SCRIPT), str(library), str(file.absolute()), str(num_threads)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise)
        try:
            self._read_line()
            facts = self._ask(do="facts")
        except BaseException:
            self.close()
            raise
        self.by = f"llama.cpp {facts['version']}".strip() + f" ({library.name})"
        self.facts = TokenFacts(
            num_tokens=facts["vocabulary"],
            bos=facts["bos"],
            eos=facts["eos"],
            eot=facts["eot"],
            adds_bos=facts["add_bos"],
            adds_eos=facts["add_eos"],
            ends=frozenset(facts["ends"]),
            template=facts["template"],
        )

    def logits(self, ids: list[int]) -> torch.Tensor:
        self._send(do="logits", ids=ids)
        parts: list[torch.Tensor] = []
        while sum(len(part) for part in parts) < len(ids):
            head = self._read_line()
            shape = head["rows"], head["vocabulary"]
            parts.append(torch.frombuffer(self._read_bytes(shape[0] * shape[1] * 4), dtype=torch.float32).view(shape))
        return torch.cat(parts) if parts else torch.empty(0, self.facts.num_tokens)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        ids: list[int] = self._ask(do="tokenize", text=text, add_special=add_special, parse_special=parse_special)["ids"]
        return ids

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        made: list[int] = self._ask(do="generate", ids=ids, num_tokens=num_tokens)["ids"]
        return made

    def close(self) -> None:
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._noise.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._send(**request)
        return self._read_line()

    def _send(self, **request: Any) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            raise self._ended() from None

    def _read_line(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if error := answer.get("error"):
            raise ModelError(f"{self._file.name}: llama.cpp refuses it: {error}")
        return answer

    def _read_bytes(self, count: int) -> bytearray:
        assert self._child.stdout is not None
        made = self._child.stdout.read(count)
        if len(made) < count:
            raise self._ended()
        return bytearray(made)

    def _ended(self) -> ModelError:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=10)
        self._noise.seek(0)
        lines = [line.strip() for line in self._noise.read().decode("utf-8", "replace").splitlines() if line.strip()]
        why = next((line for line in lines if "ASSERT" in line or "rror" in line), lines[-1] if lines else "it said nothing")
        return ModelError(
            f"{self._file.name}: llama.cpp broke off with code {self._child.poll()} while it read the file: {why}"
        )


class TransformersReader(_Closing):
    """A GGUF file in transformers, whose weights are unpacked to float32. llama.cpp itself is not asked."""

    is_llama_cpp = False

    def __init__(self, file: Path) -> None:
        import transformers

        from hub.tasks.export.gguf.container import read_container

        unpack = (
            {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
        )
        kwargs: dict[str, Any] = {"gguf_file": file.name}
        try:
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **kwargs, **unpack
            ).eval()
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, **kwargs)
        except Exception as error:
            # Whatever a reader of GGUF raises means that this one can't read the file.
            raise ModelError(
                f"{file.name} can't be checked: transformers can't read it ({first_line(error)}), and llama.cpp is not "
                "installed. Type: pip install xllamacpp"
            ) from error
        self.by = f"transformers {transformers.__version__}"
        container = read_container(file)

        def number(key: str) -> int:
            return int(container.value(f"tokenizer.ggml.{key}_token_id", -1))

        ends = {number(name) for name in ("eos", "eot", "eom")} - {-1}
        self.facts = TokenFacts(
            num_tokens=len(container.value("tokenizer.ggml.tokens", [])),
            bos=number("bos"),
            eos=number("eos"),
            eot=number("eot"),
            adds_bos=bool(container.value("tokenizer.ggml.add_bos_token", container.value("tokenizer.ggml.model") == "llama")),
            adds_eos=bool(container.value("tokenizer.ggml.add_eos_token", False)),
            ends=frozenset(ends),
            template=container.value("tokenizer.chat_template"),
        )

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            made: torch.Tensor = self._model(torch.tensor([ids])).logits[0].float()
        return made

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        kwargs = {} if parse_special else {"split_special_tokens": True}
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, **kwargs).input_ids
        return ([self.facts.bos] if add_special and self.facts.adds_bos else []) + ids

    def generate(self, ids: list[int], num_tokens: int) -> list[int]:
        with torch.no_grad():
            made = self._model.generate(
                torch.tensor([ids]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=sorted(self.facts.ends) or None
            )
        tokens: list[int] = made[0, len(ids) :].tolist()
        return tokens

    def close(self) -> None:
        self._model = self._tokenizer = None
