"""Secrets stay in the environment: options must not contain any, and they are redacted in all output.

A secret is known by the name of its variable, or by its own shape. Names are read in parts, since everybody has others:
PGPASSWORD, DB_PASS, GITHUB_PAT, HFTOKEN.
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache

REDACTED = "***"
SHORTEST = 8
"""Minimum length. Shorter values are likely to be ordinary words, and redacting them would garble messages."""

_PARTS = {
    "token", "tokens", "key", "keys", "apikey", "secret", "secrets", "password", "passwords", "passwd", "pass", "pwd", "pw",
    "passphrase", "pat", "credential", "credentials", "creds", "cred", "auth", "authorization", "bearer", "dsn", "cookie",
}  # fmt: skip
"""Parts of the names of variables that hold a secret."""

_GLUED = re.compile(r"(password|passwd|passphrase|secret|token|apikey|accesskey|secretkey|privatekey|credentials?)$")
"""Ends of parts without a separator: PGPASSWORD, HFTOKEN."""

_HARMLESS_NAMES = {"PWD", "OLDPWD"}
"""The shell's current folder, which messages name."""

_SPLIT = re.compile(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])")
_USER_OF_URL = re.compile(r"(?<=://)[^/\s'\"]+(?=@)")
_SIGNED = re.compile(
    r"(?<=[?&;])(?P<name>(?:x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|awsaccesskeyid|"
    r"(?:[a-z]+[_-])*(?:token|key|apikey|secret|password|passwd|pwd|auth)))=(?P<value>[^&;#\s'\"]+)",
    re.IGNORECASE,
)
"""Parameters of URLs that give access: those of signed URLs of S3, Google and Azure, and others by the parts of their names."""

_ASSIGNED = re.compile(
    r"\b(?P<name>[A-Z0-9_]*(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|API_?KEY|ACCESS_KEY|_PAT|_PASS|_PWD))=(?P<value>[^\s'\",;]{8,})"
)
"""A variable with its value, as programs print them."""

_SHAPES = {
    "a token of the model hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})\b",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{16,}",
    "an API key": r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{20,}|\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}|\bAIza[A-Za-z0-9_-]{35}|"
    r"\bnvapi-[A-Za-z0-9_-]{20,}|\bgsk_[A-Za-z0-9]{20,}|\bwandb_v1_[A-Za-z0-9_]{20,}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a token of a package index": r"\bpypi-[A-Za-z0-9_-]{20,}|\bnpm_[A-Za-z0-9]{20,}",
    "a signed token (JWT)": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)",
}
_COMPILED = {kind: re.compile(shape, re.DOTALL) for kind, shape in _SHAPES.items()}


def without_secrets(text: str) -> str:
    """Redact the secrets of the environment, user names, passwords and signatures in URLs, and what looks like a token."""
    for _, value in _of_environment():
        text = text.replace(value, REDACTED)
    for shape in _COMPILED.values():
        text = shape.sub(REDACTED, text)
    for named in (_SIGNED, _ASSIGNED):
        text = named.sub(rf"\g<name>={REDACTED}", text)
    return _USER_OF_URL.sub(REDACTED, text)


def secret_in(text: str) -> str | None:
    """The kind of secret that a text contains, in words. None if there is none."""
    for name, value in _of_environment():
        if value in text:
            return f"the value of {name}"
    if _USER_OF_URL.search(text):
        return "the user name or password of a URL"
    if "://" in text and _SIGNED.search(text):
        return "a key or signature in a URL"
    if _ASSIGNED.search(text):
        return "a variable with a secret"
    return next((kind for kind, shape in _COMPILED.items() if shape.search(text)), None)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret, by the parts of its name."""
    if name in _HARMLESS_NAMES:
        return False
    parts = [part.lower() for part in _SPLIT.split(name) if part]
    return any(part in _PARTS or _GLUED.search(part) for part in parts)


def _of_environment() -> Iterator[tuple[str, str]]:
    """Yield variables with the name of a secret, but not paths of key files."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and is_secret_name(name) and not os.path.exists(value):
            yield name, value
