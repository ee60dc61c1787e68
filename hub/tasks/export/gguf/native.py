"""The process that asks llama.cpp: `python native.py LIBRARY FILE THREADS`. It reads requests from stdin, one JSON per line.

It is run as a script, and imports numpy and the standard library alone. A crash in native code ends this process, not the
one that asks. Each answer is a line of JSON; for logits, each batch is a line followed by its rows as float32.

Structures that llama.cpp takes by value grow with its releases. The library itself fills them with defaults. They are passed on
as blocks larger than any release's, and only the first three numbers of `llama_context_params` and `llama_batch` are touched,
which have stood where they are since 2024. `llama_n_ctx` and `llama_n_batch` must give back what was set.
"""

import ctypes
import json
import os
import sys
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BATCH = 512
"""Tokens that are decoded in one call."""

_BACKENDS = ("libggml-base*", "libggml-cpu.*", "libggml.*", "ggml-base*", "ggml-cpu.*", "ggml.*")
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)


class _Parameters(ctypes.Structure):
    """More than any release's `llama_model_params` or `llama_context_params`."""

    _fields_ = (("words", c_uint64 * 128),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


def _load(file: Path) -> ctypes.CDLL:
    """The library, after those beside it that it needs."""
    if "llama" in file.name and not file.name.startswith("xllamacpp"):
        for pattern in _BACKENDS:
            for sibling in sorted(file.parent.glob(pattern)):
                ctypes.CDLL(str(sibling), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _load_backends(library: ctypes.CDLL, folder: Path) -> None:
    """What computes, where it is in files of its own: one for each kind of processor."""
    everything = ctypes.CDLL(None) if sys.platform != "win32" else library
    for holder in (library, everything):
        if hasattr(holder, "ggml_backend_load_all_from_path"):
            holder.ggml_backend_load_all_from_path(str(folder).encode())
            return


def _declare(library: ctypes.CDLL) -> None:
    """Types of the functions that are called."""
    types: dict[str, tuple[Any, list[Any]]] = {
        "llama_model_default_params": (_Parameters, []),
        "llama_context_default_params": (_Parameters, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, _Parameters]),
        "llama_init_from_model": (c_void_p, [c_void_p, _Parameters]),
        "llama_free": (None, [c_void_p]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
        "llama_n_ctx": (c_uint32, [c_void_p]),
        "llama_n_batch": (c_uint32, [c_void_p]),
        "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
        "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
        "llama_batch_free": (None, [_Batch]),
        "llama_decode": (c_int32, [c_void_p, _Batch]),
        "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
        "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
        **{f"llama_vocab_{name}": (c_int32, [c_void_p]) for name in ("bos", "eos", "eot")},
        **{f"llama_vocab_get_add_{name}": (c_bool, [c_void_p]) for name in ("bos", "eos")},
        "llama_print_system_info": (c_char_p, []),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


class _Native:
    """A model in llama.cpp."""

    def __init__(self, library: Path, file: Path, num_threads: int) -> None:
        self.errors: list[str] = []
        self.lib = _load(library)
        _declare(self.lib)
        self._log = _Log(self._note)
        self.lib.llama_log_set(self._log, None)
        _load_backends(self.lib, library.parent)
        self.lib.llama_backend_init()
        self.num_threads = num_threads
        self.model = self.lib.llama_model_load_from_file(str(file).encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(self.complaint() or "llama.cpp can't load it")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.num_vocab = self.lib.llama_vocab_n_tokens(self.vocab)
        self.context, self.num_positions = None, 0

    def _note(self, level: int, text: bytes | None, _: int | None) -> None:
        if level == _ERROR and text:
            self.errors.append(text.decode("utf-8", "replace").strip())

    def complaint(self) -> str:
        """The first thing that llama.cpp logged as an error."""
        return self.errors[0] if self.errors else ""

    def facts(self) -> dict[str, Any]:
        """What the file says on its tokens, and which llama.cpp reads it."""
        lib, vocab = self.lib, self.vocab
        template = lib.llama_model_chat_template(self.model, None)
        version = getattr(lib, "llama_version", None)
        if version is not None:
            version.restype = c_char_p
        return {
            "vocabulary": self.num_vocab,
            **{name: getattr(lib, f"llama_vocab_{name}")(vocab) for name in ("bos", "eos", "eot")},
            "add_bos": lib.llama_vocab_get_add_bos(vocab),
            "add_eos": lib.llama_vocab_get_add_eos(vocab),
            "ends": [token for token in range(self.num_vocab) if lib.llama_vocab_is_eog(vocab, token)],
            "template": template.decode("utf-8", "replace") if template else None,
            "version": version().decode() if version is not None else "",
            "system": lib.llama_print_system_info().decode(),
        }

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        raw = text.encode()
        room = len(raw) + 16
        ids = (c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, room, add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama.cpp gives {-count} tokens for {len(raw)} bytes")
        return list(ids[:count])

    def begin(self, num_tokens: int) -> None:
        """An empty context with room for so many tokens."""
        if self.context:
            self.lib.llama_free(self.context)
        parameters = self.lib.llama_context_default_params()
        wanted = max(BATCH, -(-num_tokens // 256) * 256)
        numbers = ctypes.cast(byref(parameters), POINTER(c_uint32))
        numbers[0], numbers[1], numbers[2] = wanted, BATCH, BATCH
        self.context = self.lib.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(self.complaint() or f"no memory for {wanted} tokens")
        if (self.lib.llama_n_ctx(self.context), self.lib.llama_n_batch(self.context)) != (wanted, BATCH):
            raise RuntimeError("this release of llama.cpp has another layout of llama_context_params")
        self.lib.llama_set_n_threads(self.context, self.num_threads, self.num_threads)
        self.num_positions = 0

    def decode(self, ids: list[int], all_logits: bool) -> np.ndarray:
        """Logits after each of the next tokens, at most `BATCH`, or after the last one."""
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, self.num_positions + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = int(all_logits or place == len(ids) - 1)
        code = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if code:
            raise RuntimeError(self.complaint() or f"llama_decode gives {code}")
        self.num_positions += len(ids)
        places = range(len(ids)) if all_logits else (len(ids) - 1,)
        rows = [self.lib.llama_get_logits_ith(self.context, place) for place in places]
        return np.stack([np.ctypeslib.as_array(row, (self.num_vocab,)) for row in rows])


def _answer(native: _Native, request: dict[str, Any], out: BinaryIO) -> None:
    def line(value: dict[str, Any]) -> None:
        out.write(json.dumps(value).encode() + b"\n")

    ids = request.get("ids", [])
    if any(not 0 <= token < native.num_vocab for token in ids):
        raise RuntimeError(f"token {max(ids)} is none of the {native.num_vocab} of the file")
    if request["do"] == "facts":
        line(native.facts())
    elif request["do"] == "tokenize":
        line({"ids": native.tokenize(request["text"], request["add_special"], request["parse_special"])})
    elif request["do"] == "logits":
        native.begin(len(ids))
        for first in range(0, len(ids), BATCH):
            rows = native.decode(ids[first : first + BATCH], all_logits=True)
            line({"rows": len(rows), "vocabulary": native.num_vocab})
            out.write(rows.astype(np.float32, copy=False).tobytes())
    else:
        native.begin(len(ids) + request["num_tokens"])
        made: list[int] = []
        for first in range(0, len(ids), BATCH):
            rows = native.decode(ids[first : first + BATCH], all_logits=False)
        while len(made) < request["num_tokens"]:
            made.append(int(rows[-1].argmax()))
            if native.lib.llama_vocab_is_eog(native.vocab, made[-1]):
                break
            rows = native.decode(made[-1:], all_logits=False)
        line({"ids": made})


def main() -> None:
    """Answer requests until stdin ends."""
    library, file, num_threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints is no answer
    try:
        native = _Native(library, file, num_threads)
    except (RuntimeError, OSError, AttributeError) as error:
        out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    out.write(b"{}\n")
    out.flush()
    for request in sys.stdin.buffer:
        try:
            _answer(native, json.loads(request), out)
        except RuntimeError as error:
            out.write(json.dumps({"error": str(error)}).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
