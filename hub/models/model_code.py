"""The Python code of a model's folder (`auto_map`): what a saved folder needs of it, so that it loads from any place.

transformers copies the code of a model or tokenizer that was loaded with it (`custom_object_save`), but not that of processors,
and it leaves the names of code in the config of a model that was loaded without.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hub.models.safety import CODE

RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\s|^\s*from\s+\.\s+import\s+(\w+)", re.MULTILINE)
"""Imports of a file beside it, as `get_relative_imports` of transformers finds them, and `from . import x`."""


def complete_code(folder: Path, base: Path, is_trusted: bool) -> None:
    """Copy the code that files of a saved folder name, or take its names out if it was not used.

    Args:
        folder: a model or an adapter, just saved.
        base: local folder of the base model.
        is_trusted: whether `model.trust_remote_code` is set.
    """
    for file in sorted(folder.glob("*.json")):
        values = _values_naming_code(file)
        if values is None:
            continue
        if is_trusted:
            for name in _modules(values[CODE]):
                _copy_with_imports(name, folder, base)
        else:
            del values[CODE]
            file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _values_naming_code(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file with names of code at its top. None for all others, such as tokenizer.json."""
    text = file.read_text(encoding="utf-8")
    values = json.loads(text) if f'"{CODE}"' in text else None
    return values if isinstance(values, dict) and CODE in values else None


def _modules(named: Any) -> Iterator[str]:
    """Yield the modules of an `auto_map` in the folder itself. `REPOSITORY--MODULE.NAME` is code of another repository."""
    for value in named.values() if isinstance(named, dict) else ():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and (match := re.fullmatch(r"(\w+)\.\w+", name)):
                yield match.group(1)


def _copy_with_imports(module: str, folder: Path, base: Path) -> None:
    """Copy a module from the base, and those beside it that it imports. Files that are there already stay."""
    missing, seen = [module], set()
    while missing:
        name = missing.pop()
        source = base / f"{name}.py"
        if name in seen or not source.is_file():
            continue
        seen.add(name)
        if not (folder / source.name).exists():
            shutil.copyfile(source, folder / source.name)
        found = RELATIVE_IMPORT.findall(source.read_text(encoding="utf-8"))
        missing += [other for groups in found for other in groups if other]
