"""Secrets stay in the environment: options must not contain any, and they are redacted in all output."""

import os
import re
from collections.abc import Iterator

REDACTED = "***"
SHORTEST = 8
"""Minimum length. Shorter values are likely to be ordinary words, and redacting them would garble messages."""

_NAME = re.compile(r"(?:.*_)?(?:API_?)?(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?", re.IGNORECASE)
_USER_OF_URL = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")


def without_secrets(text: str) -> str:
    """Redact the secrets of the environment, user names and passwords in URLs, and tokens of the model hub."""
    for _, value in _of_environment():
        text = text.replace(value, REDACTED)
    return _HUB_TOKEN.sub(REDACTED, _USER_OF_URL.sub(REDACTED, text))


def secret_in(text: str) -> str | None:
    """The kind of secret that a text contains, in words. None if there is none."""
    for name, value in _of_environment():
        if value in text:
            return f"the value of {name}"
    if _USER_OF_URL.search(text):
        return "the user name or password of a URL"
    return "a token of the model hub" if _HUB_TOKEN.search(text) else None


def _of_environment() -> Iterator[tuple[str, str]]:
    """Yield variables with the name of a secret, such as HF_TOKEN and WANDB_API_KEY, but not paths of key files."""
    for name, value in os.environ.items():
        if _NAME.fullmatch(name) and len(value) >= SHORTEST and not os.path.exists(value):
            yield name, value
