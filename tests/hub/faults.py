"""What can go wrong on the way to the Hub, on command, and a link of limited speed."""

from __future__ import annotations

import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


CUTS = ("before", "upload", "answer", "download")


@dataclass
class Fault:
    """A failure of the requests whose `METHOD /path?query` the pattern `match` finds.

    Args:
        match (`str`): Regular expression, searched.
        status (`int`, *optional*): Answer with this status; the request has no effect.
        headers (`dict[str, str]`): Headers of that answer, such as `Retry-After` or `RateLimit`.
        code (`str`, *optional*): `X-Error-Code` of that answer.
        cut (`str`, *optional*): Cut the connection: `before` the request has an effect, in mid-`upload` of its body
            (no effect), after the effect but before the `answer`, or in mid-`download` of the answer's body.
        delay (`float`): Seconds to wait first.
        times (`int`, *optional*): How often; `None` for ever.
        skip (`int`): Matching requests to let pass first.
        action (`Callable`, *optional*): Called when it strikes, in the same moment: say, to kill the client.
        probability (`float`): Share of the matching requests that fail. Whether the n-th request with one method and
            path fails follows from `seed` alone, not from the order in which threads ask.
        hits (`int`): How often it has struck.
    """

    match: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    cut: str | None = None
    delay: float = 0.0
    times: int | None = 1
    skip: int = 0
    action: Callable[[], None] | None = None
    probability: float = 1.0
    seed: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        if self.cut not in (None, *CUTS):
            raise ValueError(f"cut={self.cut!r} is not one of {CUTS}")

    def act(self) -> None:
        if self.action is not None:
            self.action()


class Faults:
    """The faults that are on; asked once for each request."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.active: list[Fault] = []
        self.seen: Counter[tuple[int, str]] = Counter()

    def strike(self, line: str) -> Fault | None:
        """The first fault that strikes the request `METHOD /path?query`, if any."""
        with self.lock:
            for number, fault in enumerate(self.active):
                if not re.search(fault.match, line) or (fault.times is not None and fault.hits >= fault.times):
                    continue
                self.seen[number, line] += 1
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                chance = random.Random(f"{fault.seed} {number} {line} {self.seen[number, line]}").random()
                if chance < fault.probability:
                    fault.hits += 1
                    return fault
        return None


class Link:
    """
    A network link shared by all connections: `speed` in bytes per second (`None`: unlimited), `latency` in seconds
    that each request waits, `busy` the seconds in which bytes were on the link.
    """

    chunk = 64 * 1024

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.speed: float | None = None
        self.latency = 0.0
        self.free_at = 0.0
        self.busy = 0.0

    def carry(self, size: int) -> None:
        """Waits for as long as `size` bytes take after those already on the link."""
        if self.speed is None or size == 0:
            return
        with self.lock:
            seconds = size / self.speed
            self.busy += seconds
            self.free_at = max(self.free_at, time.monotonic()) + seconds
            wait = self.free_at - time.monotonic()
        time.sleep(max(0.0, wait))


class RateLimit:
    """At most `limit` API requests in each window of `seconds`, told as the Hub tells it; `None`: no limit."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.limit: int | None = None
        self.seconds = 1.0
        self.refused = 0
        self._ends, self._left = 0.0, 0

    def check(self, path: str) -> tuple[bool, dict[str, str]]:
        """Counts a request; whether it may pass, and the headers of its answer."""
        if self.limit is None or not path.startswith("/api/"):
            return True, {}
        with self.lock:
            now = time.monotonic()
            if now >= self._ends:
                self._ends, self._left = now + self.seconds, self.limit
            passes = self._left > 0
            self._left -= passes
            self.refused += not passes
            return passes, {
                "RateLimit": f'"api";r={self._left};t={math.ceil(self._ends - now)}',
                "RateLimit-Policy": f'"fixed window";"api";q={self.limit};w={math.ceil(self.seconds)}',
            }
