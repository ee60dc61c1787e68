"""What the hostile fixtures share: a file that must never appear, and ways to try to make it."""

import json
from pathlib import Path
from typing import Any


class Canary:
    """A file that hostile content tries to make."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_alive(self) -> bool:
        return not self.path.exists()

    def pickled(self) -> bytes:
        """A pickle that makes the file when it is loaded, in the oldest protocol, which any unpickler takes."""
        return f"cos\nsystem\n(S'touch {self.path}'\ntR.".encode()

    def module(self) -> str:
        """Python code that makes the file when it is imported."""
        return f"open({str(self.path)!r}, 'w').close()\n"


def edit_json(file: Path, **values: Any) -> None:
    """Set values in a JSON object."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(content | values), encoding="utf-8")
