"""Pushes what was made to the model hub, in one commit: a reader of the repository sees all of it or nothing."""

import signal
import sys
import time
from dataclasses import replace
from typing import Any

from hub.errors import HubError, Interrupted
from hub.models.finished import ADAPTER_CONFIG
from hub.system.files import write_json
from hub.system.space import size_text
from hub.tasks.export.card import card_text
from hub.tasks.export.card_facts import facts_of
from hub.tasks.export.hub.content import Content, check_secrets, of_exports, of_run, stale
from hub.tasks.export.hub.repository import PushError, Repository, client, look, ready, reason, transient
from hub.tasks.export.job import Job, Written

FILE = "pushed.json"
WAITS = (2.0, 8.0, 20.0)
"""Seconds before another try, if the connection breaks."""

_AGAIN = "Type the same command again: files that arrived are not sent again"


def push(job: Job) -> list[Written]:
    """Push the exports of the same call, or the model as its run saved it if there are none.

    Raises:
        HubError: it was refused, or the connection broke for good.
        Interrupted: Ctrl-C.
    """
    repository = ready(job.asked)
    if job.tiny:
        return []
    content = of_exports(job.done) if any(job.done.values()) else of_run(job.finished, repository.files)
    content = _with_card(job, content, repository)
    check_secrets(content)
    removed = stale(content, repository.files)
    _made(job, repository)
    size = sum(len(value) if isinstance(value, bytes) else value.stat().st_size for value in content.files.values())
    job.say(f"hub: hub: {len(content.files)} files, {size_text(size)}, to {repository.id}")
    commit = _commit(job, repository, content, removed)
    private = repository.private if repository.exists else job.cfg.private
    seen = "private" if private else "public"
    stays = ", as it was before" if private and not job.cfg.private else ""
    values = {
        "repository": repository.id,
        "address": f"{client().endpoint}/{repository.id}",
        "commit": commit,
        "private": private,
        "files": sorted(content.files),
        "removed": removed,
    }
    write_json(job.out / FILE, values)
    gone = f"; removed there: {', '.join(removed)}" if removed else ""
    new = ", where all of it was already" if commit == repository.commit else ""
    note = f"{values['address']} ({seen}{stays}), commit {commit[:7]}{new}{gone}{_on_base(job, content)}"
    return [Written(kind=seen, path=job.out, note=note, made_by={"huggingface_hub": _version()})]


def _on_base(job: Job, content: Content) -> str:
    """What is to be done about an adapter whose base has no id. Empty: nothing."""
    facts = facts_of(job.asked)
    config = next((name for name in content.files if name.rpartition("/")[2] == ADAPTER_CONFIG), None)
    if config is None or facts.base_id is not None:
        return ""
    return (
        f". Its base is named by its folder, {facts.base}: write the base's id as base_model_name_or_path into {config} there"
    )


def _with_card(job: Job, content: Content, repository: Repository) -> Content:
    """The content, with a card that describes all of it."""
    exports = [one for several in job.done.values() for one in several]
    text = card_text(facts_of(job.asked), content.sources, exports, repository.id)
    return replace(content, files=content.files | {content.card: text.encode()})


def _made(job: Job, repository: Repository) -> None:
    """Make the repository if it is not there, and see that it is as private as it was asked for."""
    if repository.exists:
        return
    try:
        client().create_repo(repository.id, repo_type="model", private=job.cfg.private, exist_ok=True)
    except Exception as error:
        raise PushError(f"export.repo={repository.id} can't be made: {reason(error)}") from error
    if job.cfg.private and not look(repository.id).private:
        raise PushError(
            f"export.repo={repository.id}: the model hub made it public, so nothing was pushed. Make it private at "
            f"{client().endpoint}/{repository.id}/settings, or type private=false"
        )


def _commit(job: Job, repository: Repository, content: Content, removed: list[str]) -> str:
    """Send all files, and commit them. Returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars, logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.get_logger("huggingface_hub").setLevel(logging.ERROR)  # the note says it if there was nothing new
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=value if isinstance(value, bytes) else str(value))
        for name, value in content.files.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in removed]
    message = f"Push {', '.join(sorted(job.done)) or 'the model'} by finetune-hub"
    for wait in (*WAITS, None):
        try:
            # The same operations at each try: they know which of the files have arrived.
            return str(client().create_commit(repository.id, operations, commit_message=message, repo_type="model").oid)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped: {repository.id} is as it was before. {_AGAIN}", signal.SIGINT) from None
        except HubError:
            raise
        except Exception as error:
            if wait is None or not transient(error):
                raise PushError(f"export.repo={repository.id}: {reason(error)}. It is as it was before. {_AGAIN}") from error
            job.say(f"hub: hub: {reason(error)}. Another try in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _version() -> str:
    from huggingface_hub import __version__

    return str(__version__)
