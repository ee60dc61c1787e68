"""Checks of `track.tool` before a run starts: is its package here, and can it log in? Nothing is imported or contacted."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from hub.config.schema import RunConfig


@dataclass(frozen=True)
class Needs:
    """What a tracker needs on this machine."""

    package: str
    """Its module, as it is imported."""

    distribution: str
    """What pip installs."""

    variables: tuple[str, ...] = ()
    """Environment variables of which one gives it credentials, or says that it needs none. Empty: it never needs any."""

    files: tuple[str, ...] = ()
    """Files that may have its credentials."""

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
        ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_DISABLED", "WANDB_ANONYMOUS", "WANDB_CONFIG_DIR"),
        ("$NETRC", "~/.netrc", "~/_netrc", "~/.config/wandb/settings", "wandb/settings", ".wandb/settings"),
        "Type wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to upload later",
    ),
    "comet_ml": Needs(
        "comet_ml",
        "comet-ml",
        ("COMET_API_KEY", "COMET_START_ONLINE"),
        ("$COMET_CONFIG", "~/.comet.config", ".comet.config", ".env"),
        "Type comet login, set COMET_API_KEY, or set COMET_START_ONLINE=0 to upload later",
    ),
    "clearml": Needs(
        "clearml",
        "clearml",
        (
            "CLEARML_API_ACCESS_KEY",
            "CLEARML_AUTH_TOKEN",
            "CLEARML_OFFLINE_MODE",
            "CLEARML_CONFIG_PATH",
            "TRAINS_API_ACCESS_KEY",
        ),
        ("$CLEARML_CONFIG_FILE", "$TRAINS_CONFIG_FILE", "~/clearml.conf", "~/trains.conf"),
        "Type clearml-init, set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or set CLEARML_OFFLINE_MODE=1",
    ),
    "swanlab": Needs(
        "swanlab",
        "swanlab",
        ("SWANLAB_API_KEY", "SWANLAB_MODE", "SWANLAB_CONFIG_DIR", "SWANLAB_SECRETS_DIR"),
        ("~/.swanlab/.netrc", ".swanlab/.netrc"),
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
    elif needs.variables and not any(os.environ.get(name) for name in needs.variables) and not any(map(_exists, needs.files)):
        yield f"track={tool} has no credentials here. {needs.hint}; or type track=none"


def _exists(file: str) -> bool:
    path = os.path.expanduser(os.path.expandvars(file))
    return not path.startswith("$") and os.path.exists(path)
