"""Ctrl-C and SIGTERM that arrive."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any


class Interrupts:
    """
    Turns SIGINT and SIGTERM into `KeyboardInterrupt`, and repeats it until it is heard.

    An exception that a signal raises may be swallowed: Python drops it where it falls into a destructor, and some
    libraries catch everything. A run would then go on as if nothing had happened.

    Args:
        interval (`float`, *optional*, defaults to 0.2): Seconds until an interruption that was not heard is repeated.

    Attributes:
        requested (`bool`): Whether one of the signals has come.

    Example:

    ```python
    with Interrupts():
        work()
    ```
    """

    def __init__(self, interval: float = 0.2):
        self.interval = interval
        self.requested = False
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        # Only the main thread may handle signals. A process told to ignore them (`nohup`, `&`) goes on doing so.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._interrupt)
        sys.unraisablehook = self._unraisable
        return self

    def stop(self) -> None:
        """Says that the interruption was heard: it is not repeated."""
        if hasattr(signal, "setitimer") and self.requested:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __exit__(self, *error: object) -> None:
        self.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def _interrupt(self, number: int, frame: object) -> None:
        self.requested = True
        if hasattr(signal, "setitimer"):
            before = signal.signal(signal.SIGALRM, self._interrupt)
            self._before.setdefault(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, self.interval)
        raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook(unraisable)
