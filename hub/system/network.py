"""Whether a server answers at all: libraries that download try again for half a minute before they say that none does."""

import ssl
import threading
import urllib.error
import urllib.request
from typing import Any

SECONDS = 3.0
"""Longest time for an answer. A machine without a network answers in milliseconds; a firewall may swallow what is sent."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *request: Any) -> None:
        return None


def answers(url: str, seconds: float = SECONDS) -> bool:
    """Whether the server of a URL answers, through the proxy of the environment if there is one.

    Any answer counts, a refusal too, and a certificate that is not trusted: the library that downloads may trust another one.

    Args:
        url: with http:// or https://.
        seconds: longest time for all of it, looking up the server's name included.
    """
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(_answers(url, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(found) and found[0]


def _answers(url: str, seconds: float) -> bool:
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        opener.open(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False
    return True
