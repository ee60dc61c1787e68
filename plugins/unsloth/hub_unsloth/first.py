"""Imports Unsloth, before anything else that it changes: transformers, trl and peft.

It is told to phone nobody, and to write the code that it generates into the hub's cache: by itself it writes a folder
`unsloth_compiled_cache` where the command was typed.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version

from hub import ConfigError, HubError
from hub.system.cache import cache_dir

CHANGED = ("transformers", "trl", "peft")


@contextmanager
def quiet() -> Iterator[None]:
    """Within it Unsloth's banners are not printed. What goes wrong is an exception all the same."""
    with redirect_stdout(io.StringIO()):
        yield


def _prepare() -> None:
    """Set the environment that Unsloth reads while it is imported.

    Raises:
        ConfigError: transformers, trl or peft are there already, so that Unsloth could not change all of them.
        HubError: the cache can't be written.
    """
    early = [name for name in CHANGED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        raise ConfigError(
            f"algo.backend=unsloth must be imported before {', '.join(early)}, and this process has imported that already. "
            "Type launch.mode=process"
        )
    folder = cache_dir() / "unsloth" / f"{version('unsloth')}-transformers{version('transformers')}-torch{version('torch')}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = error.strerror or error
        raise HubError(
            f"{folder}: can't write into the cache ({reason}). Set HUB_CACHE=FOLDER with a folder of yours"
        ) from None
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder)
    for name in ("unsloth", "unsloth_zoo"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _take_own_gpu() -> None:
    """Unsloth looks at the GPU while it is imported. Without this every process on a machine would take memory of the first."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


_prepare()
_take_own_gpu()
with quiet():
    from unsloth import FastLanguageModel

__all__ = ["FastLanguageModel", "quiet"]
