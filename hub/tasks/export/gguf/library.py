"""Finds llama.cpp's library on this machine. Nothing is loaded."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from hub.errors import ModelError

_NAMES = {"darwin": "libllama*.dylib", "win32": "llama*.dll"}


def llama_library() -> Path | None:
    """The file of llama.cpp's library on this machine, or None.

    In this order: `$LLAMA_LIB`, a build in `$LLAMA_CPP_DIR`, and the packages xllamacpp and llama-cpp-python, which are not
    imported.

    Raises:
        ModelError: `LLAMA_LIB` is no file.
    """
    if asked := os.environ.get("LLAMA_LIB"):
        if not Path(asked).is_file():
            raise ModelError(f"LLAMA_LIB={asked} is no file. Set it to a libllama.so, or unset it")
        return Path(asked).absolute()
    name = _NAMES.get(sys.platform, "libllama.*so*")
    folders = [(Path(build) / "build" / "bin", name)] if (build := os.environ.get("LLAMA_CPP_DIR")) else []
    for package, inner, pattern in (("xllamacpp", "", "xllamacpp*.so"), ("llama_cpp", "lib", name)):
        if (spec := find_spec(package)) and spec.origin:
            folders.append((Path(spec.origin).parent / inner, pattern))
    return next((found for folder, pattern in folders for found in sorted(folder.glob(pattern))), None)
