"""What an engine writes: it goes into a file, and of a failure one line is shown."""

import re
from pathlib import Path

_LONGEST = 400
_CAUSE = re.compile(
    r"(?:\([^()]* pid=\d+\) )?(?:ERROR [\d: -]+\[[^\]]*\] )?"  # as vLLM's processes begin a line
    r"((?:[A-Za-z_][\w.]*(?:Error|Exception)|[\w ./-]+: error): .*)"
)
_REFERS = re.compile(r"validation errors? for \w+$")
"""pydantic writes what is wrong into the next line."""

_SENTENCE = re.compile(r"(?<=[a-z0-9)`])\. (?=[A-Z])")
_LENGTH = re.compile(r"estimated maximum model length is (\d+)")
_HINTS = (
    (r"max.model.len|max seq len", "Type arguments='--max-model-len {length}', or another length"),
    (r"no available memory|memory for kv", "Type memory= with a larger share, or free memory"),
    (r"gpu.memory.utilization", "Type memory= with a smaller share, or free memory"),
    (r"out of memory", "Type memory= with another share, or spread the model: arguments='--tensor-parallel-size 2'"),
)
"""What to type, by what the error says. The first that fits."""


def cause(log: Path) -> str:
    """Why an engine failed: the first error in its output, and what to type against it. Empty if there is none.

    Later errors are of the processes that wait for the one that failed.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        if found := _CAUSE.fullmatch(line.rstrip()):
            text = found.group(1)
            if _REFERS.search(text) and number + 1 < len(lines):
                text = f"{text}: {lines[number + 1].strip()}"
            return _first_sentence(text) + _hint(text)
    return ""


def _first_sentence(text: str) -> str:
    return _SENTENCE.split(text)[0][:_LONGEST].rstrip(". ")


def _hint(text: str) -> str:
    length = found.group(1) if (found := _LENGTH.search(text)) else "4096"
    return next((f". {hint.format(length=length)}" for words, hint in _HINTS if re.search(words, text, re.IGNORECASE)), "")


def last_line(log: Path) -> str:
    """The last line of the output, without what vLLM writes before each one."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return re.sub(r"^(\([^()]* pid=\d+\) )?([A-Z]+ [\d: -]+\[[^\]]*\] )?", "", lines[-1]).strip() if lines else ""
