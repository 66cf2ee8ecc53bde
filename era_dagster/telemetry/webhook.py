"""Tells a web address of a new kind of error: one POST of JSON for each, that common chat services show as it is."""

import urllib.error
import urllib.request
from typing import Any

import orjson

from era_dagster.domain.errors import EndpointUnavailable

TIMEOUT_SECONDS = 5.0


def post_json(url: str, content: dict[str, Any], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """POST `content`; any 2xx is a success.

    Raises `EndpointUnavailable`, without the address (it may hold a token), when there is none in time.
    """
    request = urllib.request.Request(
        url, data=orjson.dumps(content, default=str), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds):
            return
    except urllib.error.HTTPError as error:
        with error:
            reason = f"it answered {error.code}"
    except OSError as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise EndpointUnavailable(f"The webhook of ERA_ERROR_WEBHOOK_URL took nothing: {reason}.")
