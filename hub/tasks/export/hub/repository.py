"""The repository that is pushed to: whether it is there, who may see it, and whether this token may write to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hub.errors import ConfigError, HubError, LaunchError, first_line
from hub.models.finished import Asked
from hub.models.weights import hub_obstacle
from hub.tasks.export.hub.content import of_run

_WRITE = "repo.write"
_WRITING_ROLES = ("admin", "write", "contributor")
_MADE_OF = "hf auth login, or set HF_TOKEN"


class PushError(LaunchError):
    """The model hub refused something, or could not be reached."""


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the model hub."""

    id: str
    exists: bool
    private: bool = True
    files: tuple[str, ...] = ()
    """What it holds."""

    commit: str | None = None
    """Its last commit."""


def client() -> Any:
    """The client of the model hub, with the token of the environment or of its own login."""
    from huggingface_hub import HfApi, constants, get_token

    return HfApi(endpoint=constants.ENDPOINT, token=get_token())


def ready(asked: Asked) -> Repository:
    """Ask the model hub whether this push would be taken. Nothing is made or sent.

    Raises:
        ConfigError: the repository is somebody else's, or is public and that was not asked for.
        PushError: the token may not write, or the model hub can't be reached.
    """
    cfg = asked.cfg.export
    assert cfg.repo is not None
    if obstacle := hub_obstacle():
        raise PushError(f"export.to=hub: the model hub can't be reached ({obstacle}). Try again, or leave hub out of export.to")
    found = look(cfg.repo)
    if found.exists and cfg.private and not found.private:
        raise ConfigError(
            f"export.repo={cfg.repo} exists and is public, so everyone would see it. Type private=false if you want "
            "that, or repo=OWNER/NAME for another one"
        )
    if problem := _clash(found, asked):
        raise ConfigError(problem)
    if cfg.to == ["hub"]:
        of_run(asked.model, found.files)
    return found


def look(repo: str) -> Repository:
    """Look at a repository with the right of the token in mind.

    Args:
        repo: OWNER/NAME.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    api = client()
    with_line = f"export.repo={repo}"
    try:
        may_write(repo, api.whoami())
    except HubError:
        raise
    except Exception as error:
        raise PushError(f"{with_line}: {reason(error)}") from error
    try:
        info = api.repo_info(repo, repo_type="model")
    except RepositoryNotFoundError:
        return Repository(id=repo, exists=False)
    except Exception as error:
        raise PushError(f"{with_line}: {reason(error)}") from error
    names = tuple(one.rfilename for one in info.siblings or ())
    return Repository(id=repo, exists=True, private=bool(info.private), files=names, commit=info.sha)


def may_write(repo: str, identity: Mapping[str, Any]) -> None:
    """Refuse a token that can't write to a repository.

    Args:
        repo: OWNER/NAME.
        identity: what the model hub says of the token.

    Raises:
        ConfigError: the owner is somebody else.
        PushError: the token may read only.
    """
    owner, _, name = repo.partition("/")
    user = str(identity.get("name", ""))
    token = (identity.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not _may_write_anywhere(token)):
        raise PushError(f"export.repo={repo}: the token of {user} may read only. Make one that may write, and type {_MADE_OF}")
    orgs = {str(one.get("name", "")): one.get("roleInOrg") for one in identity.get("orgs") or []}
    allowed = [user, *(org for org, role in orgs.items() if role is None or role in _WRITING_ROLES)]
    if owner.lower() not in {one.lower() for one in allowed}:
        read_only = ", where you may read only" if owner in orgs else ""
        raise ConfigError(
            f"export.repo={repo}: {owner} is not yours{read_only}. This token may write for {', '.join(allowed)}. "
            f"Type repo={user}/{name}"
        )


def _may_write_anywhere(token: Mapping[str, Any]) -> bool:
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    return any(_WRITE in (one.get("permissions") or []) for one in scopes)


def _clash(found: Repository, asked: Asked) -> str | None:
    """Why what is pushed and what is there would be read wrongly together."""
    brings_model = "merged" in asked.cfg.export.to or "compressed" in asked.cfg.export.to
    if brings_model and "adapter_config.json" in found.files:
        return (
            f"export.repo={found.id} holds an adapter. Programs would apply it once more to the model that is pushed beside "
            "it. Type repo=OWNER/NAME for another one"
        )
    return None


def reason(error: BaseException) -> str:
    """What went wrong with the model hub and what to type, in one line."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        status = getattr(response, "status_code", None)
        if status is None:
            continue
        said = str(getattr(one, "server_message", None) or "").strip().partition("\n")[0].rstrip(".")
        told = f" ({status}: {said})" if said else f" ({status})"
        if status == 401:
            return f"the model hub does not know this token{told}. Type {_MADE_OF}"
        if status == 403:
            return f"this token has no right to write there{told}. Make one that may write, and type {_MADE_OF}"
        if status == 404:
            return f"the model hub has no such repository{told}. Check the spelling, and that it was not renamed or removed"
        if status == 429:
            return f"the model hub has had too many requests{told}. Wait some minutes and type the same command again"
        return f"the model hub refused it{told}"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    text = first_line(_chain(error)[-1])
    plain = ". To push without its Xet protocol, set HF_HUB_DISABLE_XET=1" if "xet" in text.lower() else ""
    return f"the exchange with the model hub broke off ({text}){plain}"


def transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in _chain(error)]
    found = [status for status in statuses if status is not None]
    if found:
        return found[0] in (408, 429) or found[0] >= 500
    return not isinstance(error, ValueError | TypeError)


def _chain(error: BaseException) -> list[BaseException]:
    return list(_causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
