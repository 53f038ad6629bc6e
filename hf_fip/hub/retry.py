"""Calls to the Hub that fail for a while: which are repeated, how long is waited, what is said when it is enough."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_token, parse_ratelimit_headers
from transformers.utils import logging

from ..errors import InputError
from ..graph.show import plain_text


logger = logging.get_logger(__name__)

T = TypeVar("T")

_PASSING = {408, 425, 429, 500, 502, 503, 504}
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}")


class HubError(OSError):
    """A call to the Hub that failed for good. The message is one line."""

    def __init__(self, message: str, *, status: int | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.unreachable = unreachable


class AccessError(HubError, InputError):
    """Not logged in, or no permission: nothing that waiting would change."""


@dataclass(frozen=True)
class RetryPolicy:
    """
    How patient calls are.

    Args:
        attempts (`int`, *optional*, defaults to 8): tries in all.
        first_wait (`float`, *optional*, defaults to 1.0): seconds before the second try; doubled each time.
        longest_wait (`float`, *optional*, defaults to 60.0): where the doubling ends.
        patience (`float`, *optional*, defaults to 1800.0):
            Most seconds waited for one call. A Hub that asks for more ends it at once.
        sleep (`Callable`, *optional*, defaults to `time.sleep`): what waits.
    """

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0
    patience: float = 1800.0
    sleep: Callable[[float], object] = time.sleep


def call(action: str, function: Callable[[], T], policy: RetryPolicy, passing: frozenset[int] = frozenset()) -> T:
    """
    Calls `function`, again and again while it fails for reasons that pass: rate limits, errors of the server, timeouts
    and cut connections. Each wait is said in a warning; it is as long as the Hub asks for.

    Args:
        action (`str`): what is done, for the messages: `"create repository me/x"`.
        function (`Callable`): safe to repeat: an answer may be lost after the Hub did what was asked.
        policy (`RetryPolicy`): how often and how long.
        passing (`frozenset[int]`, *optional*): further status codes that pass.

    Returns:
        What `function` returns.

    Raises:
        `AccessError`: not logged in, or no permission.
        `HubError`: anything else that the Hub refuses, or the end of the patience.
        `InputError`: the client is in offline mode.
    """
    waited, wait = 0.0, policy.first_wait
    for attempt in range(1, policy.attempts + 1):
        try:
            return function()
        except (InputError, HubError):
            raise
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            cause = _cause(error)
            if not _passes(cause, passing):
                raise _final(action, error, cause) from error
            pause = _asked_wait(cause)
            pause = min(wait, policy.longest_wait) if pause is None else pause
            if attempt == policy.attempts or waited + pause > policy.patience:
                raise _exhausted(action, cause, attempt, pause) from error
            logger.warning(
                f"Hub: {action}: {_reason(cause)}; waiting {pause:.0f} s, then try {attempt + 1} of {policy.attempts}"
            )
            policy.sleep(pause)
            waited, wait = waited + pause, wait * 2
    raise AssertionError("a policy has at least one attempt")


def _cause(error: BaseException) -> BaseException:
    """The failure behind an error: uploads wrap theirs in a `RuntimeError`, refused cards in a `ValueError`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (HfHubHTTPError, httpx2.TransportError)):
            return seen
        seen = seen.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _passes(error: BaseException, passing: frozenset[int]) -> bool:
    if isinstance(error, HfHubHTTPError):
        return _status(error) in _PASSING | passing
    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    # A gateway in trouble answers in HTML where the client expects JSON.
    passing_kinds = (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)
    # Xet's client raises bare RuntimeErrors, and a session that another thread has closed does too.
    return isinstance(error, passing_kinds) or type(error) is RuntimeError


def _asked_wait(error: BaseException) -> float | None:
    """Seconds the Hub asks to wait, rounded up by one."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers: Mapping[str, str] = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if _status(error) == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = headers.get("retry-after", "").strip()
    return float(after) + 1.0 if after.isdigit() else None


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status == 429:
        return "too many requests (429)"
    if status is not None:
        return f"the server answers {status}"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(error, json.JSONDecodeError):
        return "the server's answer is not JSON"
    return f"the connection failed ({clean(error) or type(error).__name__})"


def _exhausted(action: str, error: BaseException, attempts: int, pause: float) -> HubError:
    asks = f", and the Hub asks to wait {pause:.0f} s more" if _status(error) == 429 else ""
    tries = f"{attempts} tries" if attempts > 1 else "1 try"
    return HubError(
        f"cannot {action}: {_reason(error)} after {tries}{asks}; run the same again later, it continues",
        status=_status(error),
        unreachable=True,
    )


def _final(action: str, error: BaseException, cause: BaseException) -> Exception:
    status = _status(cause)
    if isinstance(cause, OfflineModeIsEnabled):
        return InputError(f"cannot {action}: the client is offline; unset HF_HUB_OFFLINE")
    if isinstance(cause, LocalTokenNotFoundError) or status == 401:
        if get_token() is None or isinstance(cause, LocalTokenNotFoundError):
            return AccessError(f"cannot {action}: not logged in; run `hf auth login` or set HF_TOKEN", status=401)
        return AccessError(
            f"cannot {action}: the Hub does not accept the token, or hides what it may not see; run `hf auth login`",
            status=401,
        )
    if status == 403:
        return AccessError(
            f"cannot {action}: the token may not do that ({clean(cause)}); give a namespace you can write to, or "
            "log in with a token that may (`hf auth login`)",
            status=403,
        )
    return HubError(f"cannot {action}: {clean(error)}", status=status)


def clean(error: BaseException) -> str:
    """What an error says, on one line, without tokens, links to request ids and terminal escapes."""
    text = (error.server_message if isinstance(error, HfHubHTTPError) else None) or str(error)
    text = _TOKEN.sub("hf_…", re.sub(r"\(Request ID:[^)]*\)", "", text))
    token = get_token()
    if token:
        text = text.replace(token, "…")
    return plain_text(" ".join(text.split()), 500).strip()
