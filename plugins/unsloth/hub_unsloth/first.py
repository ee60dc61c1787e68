"""Import Unsloth before the packages that it patches: transformers, trl and peft.

Its telemetry is turned off, and its generated code goes to the hub's cache. By default it would create a folder
`unsloth_compiled_cache` in the working directory.
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

PATCHED = ("transformers", "trl", "peft")


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which Unsloth's banners are not printed. Exceptions still propagate."""
    with redirect_stdout(io.StringIO()):
        yield


def _prepare() -> None:
    """Set the environment variables that Unsloth reads on import.

    Raises:
        ConfigError: transformers, trl or peft is already imported, so Unsloth could not patch all of them.
        HubError: the cache can't be written.
    """
    early = [name for name in PATCHED if name in sys.modules]
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
        raise HubError(f"{folder}: can't write into the cache ({reason}). Set HUB_CACHE=FOLDER to a writable folder") from None
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder)
    for name in ("unsloth", "unsloth_zoo"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _select_gpu() -> None:
    """Select this process's GPU. Unsloth uses the current GPU on import, which would be the first one in every process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


_prepare()
_select_gpu()
with quiet():
    from unsloth import FastLanguageModel

__all__ = ["FastLanguageModel", "quiet"]
