"""Tells a web address of a new kind of error: one POST of JSON for each, that common chat services show as it is."""

import http.client
import threading
import urllib.error
import urllib.request
from typing import Any

import orjson

from era_dagster.domain.errors import EndpointUnavailable

TIMEOUT_SECONDS = 5.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET without its content, whose 200 would be taken for a success."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Follow none: the answer is an error like any other status."""


def post_json(url: str, content: dict[str, Any], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """POST `content`; any 2xx is a success.

    Raises `EndpointUnavailable`, without the address (it may hold a token), when there is none in time. In a thread, because
    the library's time-out is for each piece of an answer, and does not hold for finding the address of a name.
    """
    told = orjson.dumps(content, default=str)
    reasons: list[str] = []
    thread = threading.Thread(
        target=lambda: reasons.append(_post(url, told, timeout_seconds)), name="era-webhook", daemon=True
    )
    thread.start()
    thread.join(timeout_seconds)
    reason = reasons[0] if reasons else "it did not answer in time"
    if reason:
        raise EndpointUnavailable(f"The webhook of ERA_ERROR_WEBHOOK_URL took nothing: {reason}.")


def _post(url: str, told: bytes, timeout_seconds: float) -> str:
    """Why it was not taken; empty when it was."""
    try:
        request = urllib.request.Request(url, data=told, headers={"Content-Type": "application/json"}, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_seconds):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            redirected = ", a redirect: give the address it leads to" if 300 <= error.code < 400 else ""
            return f"it answered {error.code}{redirected}"
    except (ValueError, http.client.InvalidURL):
        return "that is no web address; a space, a letter beyond ASCII and the like are written as %XX"
    except http.client.HTTPException as error:
        return f"it answered no HTTP ({type(error).__name__}), as where it says http:// and should say https://"
    except OSError as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
