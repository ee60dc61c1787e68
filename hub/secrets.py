"""Secrets stay in the environment: no option may hold one, and what is printed or written down has them blacked out."""

import os
import re
from collections.abc import Iterator

BLACKED_OUT = "***"
SHORTEST = 8
"""Shorter values are taken for words: blacking them out would spoil messages and hide nothing."""

_NAME = re.compile(r"(?:.*_)?(?:API_?)?(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")


def without_secrets(text: str) -> str:
    """A text with the secrets of the environment, user names and passwords in URLs and the model hub's tokens blacked out."""
    for _, value in _of_environment():
        text = text.replace(value, BLACKED_OUT)
    return _HUB_TOKEN.sub(BLACKED_OUT, _USER_OF_URL.sub(BLACKED_OUT, text))


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, in words; None when there is none."""
    for name, value in _of_environment():
        if value in text:
            return f"the value of {name}"
    if _USER_OF_URL.search(text):
        return "the user name or password of a URL"
    return "a token of the model hub" if _HUB_TOKEN.search(text) else None


def _of_environment() -> Iterator[tuple[str, str]]:
    """Variables whose name says that they are secret, as HF_TOKEN and WANDB_API_KEY; a path to a key file is none."""
    for name, value in os.environ.items():
        if _NAME.fullmatch(name) and len(value) >= SHORTEST and not os.path.exists(value):
            yield name, value
