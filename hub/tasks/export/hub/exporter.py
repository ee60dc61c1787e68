"""The exporter `hub`: what it is called, and what can be wrong before anything is loaded."""

import re
from collections.abc import Iterator

from hub.config.schema import RunConfig
from hub.errors import first_line
from hub.plugins.offers import Exporter

LONGEST_NAME = 96
"""Characters of a name on the model hub."""

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")


def problems(cfg: RunConfig) -> Iterator[str]:
    """One line for a name that the model hub does not take, a missing token, and a network that is switched off."""
    repo = cfg.export.repo
    if repo is not None and (wrong := wrong_name(repo)):
        yield f"export.repo={repo}: {wrong}. Type repo=OWNER/NAME"
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield "export.to=hub: HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, or leave hub out of export.to"
        return
    try:
        token = get_token()
    except Exception as error:  # of a login by a browser or a CI service, whose errors have no common base class
        yield f"export.to=hub: the login of the model hub can't be read ({first_line(error)}). Type hf auth login"
        return
    if not token:
        yield (
            "export.to=hub needs a token that may write. Type hf auth login, or set HF_TOKEN. Make one at "
            f"{constants.ENDPOINT}/settings/tokens"
        )


def wrong_name(repo: str) -> str | None:
    """Why a text is no OWNER/NAME. None: it is one."""
    owner, slash, name = repo.partition("/")
    if "://" in repo:
        return "this is an address"
    if not slash or not owner or not name or "/" in name:
        return "this is not OWNER/NAME"
    for part in (owner, name):
        if not _PART.fullmatch(part) or "--" in part or ".." in part or part.endswith(".git"):
            return f"{part!r} is no name on the model hub. Allowed: letters, digits, '_', and within it single '-' and '.'"
    return f"more than {LONGEST_NAME} characters" if len(repo) > LONGEST_NAME else None


EXPORTER = Exporter(
    name="hub",
    function="hub.tasks.export.hub.push:push",
    summary="pushed to the model hub, for you alone unless private=false",
    problems=problems,
    ready="hub.tasks.export.hub.repository:ready",
    writes_model=False,
    after=("merged", "gguf", "ollama", "compressed"),
)
