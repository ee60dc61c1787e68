"""Checks of `track.tool` before a run starts: is its package here, and can it log in? Nothing is imported or contacted."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from hub.config.schema import RunConfig

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LARGEST = 2**20
"""Bytes of a file with credentials that are read."""


@dataclass(frozen=True)
class Needs:
    """What a tracker needs on this machine."""

    package: str
    """Its module, as it is imported."""

    distribution: str
    """What pip installs."""

    variables: tuple[str, ...] = ()
    """Environment variables of which one gives it credentials. Empty, together with `without`: it never needs any."""

    without: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Environment variables that say that it needs none, each with the values that do."""

    files: tuple[tuple[str, str], ...] = ()
    """Files that may have its credentials, each with a word that stands in one that has them."""

    hint: str = ""
    """What to do without credentials."""


TRACKERS = {
    "tensorboard": Needs("tensorboard", "tensorboard"),
    "mlflow": Needs("mlflow", "mlflow"),
    "trackio": Needs("trackio", "trackio"),
    "aim": Needs("aim", "aim"),
    "dvclive": Needs("dvclive", "dvclive"),
    "wandb": Needs(
        "wandb",
        "wandb",
        ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
        (
            ("WANDB_MODE", ("offline", "disabled", "dryrun", "shared")),
            ("WANDB_DISABLED", _TRUE),
            ("WANDB_ANONYMOUS", ("allow", "must")),
        ),
        (
            *((file, "wandb") for file in ("$NETRC", "~/.netrc", "~/_netrc")),
            *(
                (f"{folder}/settings", word)
                for folder in ("$WANDB_CONFIG_DIR", "~/.config/wandb", "wandb", ".wandb")
                for word in ("offline", "disabled", "anonymous", "api_key")
            ),
        ),
        "Type wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to upload later",
    ),
    "comet_ml": Needs(
        "comet_ml",
        "comet-ml",
        ("COMET_API_KEY",),
        (("COMET_START_ONLINE", _FALSE),),
        (
            *((file, "api_key") for file in ("$COMET_CONFIG", "~/.comet.config", ".comet.config")),
            *((".env", word) for word in ("comet_api_key", "comet_start_online")),
        ),
        "Type comet login, set COMET_API_KEY, or set COMET_START_ONLINE=0 to upload later",
    ),
    "clearml": Needs(
        "clearml",
        "clearml",
        ("CLEARML_API_ACCESS_KEY", "CLEARML_AUTH_TOKEN", "CLEARML_CONFIG_PATH", "TRAINS_API_ACCESS_KEY"),
        (("CLEARML_OFFLINE_MODE", _TRUE),),
        tuple(
            (file, "access_key") for file in ("$CLEARML_CONFIG_FILE", "$TRAINS_CONFIG_FILE", "~/clearml.conf", "~/trains.conf")
        ),
        "Type clearml-init, set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or set CLEARML_OFFLINE_MODE=1",
    ),
    "swanlab": Needs(
        "swanlab",
        "swanlab",
        ("SWANLAB_API_KEY", "SWANLAB_CONFIG_DIR", "SWANLAB_SECRETS_DIR"),
        (("SWANLAB_MODE", ("local", "offline", "disabled")),),
        (("~/.swanlab/.netrc", "password"), (".swanlab/.netrc", "password")),
        "Type swanlab login, set SWANLAB_API_KEY, or set SWANLAB_MODE=local",
    ),
}
"""`track.tool` -> what it needs. The places are those of the libraries' own code."""


def tracker_problems(cfg: RunConfig) -> Iterator[str]:
    """One line if the chosen tracker can't be started: its package is not installed, or there are no credentials anywhere.

    Credentials that are there may still be wrong. Only the tracker's server knows, and it is asked when training starts.
    """
    tool = cfg.track.tool
    needs = TRACKERS.get(tool)
    if needs is None:
        return
    # find_spec also finds a folder of that name, as trackers leave behind, but without origin.
    if getattr(find_spec(needs.package), "origin", None) is None:
        yield f"track={tool} needs the package {needs.package}. Type pip install {needs.distribution} or track=none"
    elif needs.variables and not _has_credentials(needs):
        yield f"track={tool} has no credentials here. {needs.hint}; or type track=none"


def _has_credentials(needs: Needs) -> bool:
    given = any(os.environ.get(name, "").strip() for name in needs.variables)
    unneeded = any(os.environ.get(name, "").strip().lower() in values for name, values in needs.without)
    return given or unneeded or any(_holds(*file) for file in needs.files)


def _holds(file: str, word: str) -> bool:
    """Whether a file has a word, in any case. A file of another program, such as ~/.netrc, may be there without it."""
    path = os.path.expanduser(os.path.expandvars(file))
    if path.startswith("$"):
        return False
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return word in stream.read(_LARGEST).lower()
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        return False
    except OSError:
        return True  # only the tracker can tell
