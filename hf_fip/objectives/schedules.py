"""How far the target set has come at which step: the level p of a projection along a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InputError


# Share of the way to the next target, as a function of the share of the ramp that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    # Fast at first, while many weights do not matter, slow at the end (Zhu and Gupta, 2017).
    "cubic": lambda done: 1 - (1 - done) ** 3,
    "linear": lambda done: done,
    "constant": lambda done: 1.0,
}

Schedule = str | Sequence[float] | Callable[[float], float]


def get_schedule(schedule: Schedule) -> Callable[[float], float]:
    """
    The function from the share of the ramp that is done (0 to 1) to the share of the way to the target (0 to 1).

    Args:
        schedule (`str`, sequence of `float` or `Callable`):
            `"cubic"`, `"linear"` or `"constant"` (the target itself from the first step on); successive shares, each
            for an equal part of the ramp; or a function.

    Raises:
        [`InputError`]: an unknown name, or shares that are not from 0 to 1.
    """
    if callable(schedule):
        return schedule
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise InputError(
                f"schedule={schedule!r} is unknown; use one of {', '.join(SCHEDULES)}, a list or a function"
            )
        return SCHEDULES[schedule]
    shares = [float(share) for share in schedule]
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise InputError(f"schedule={list(schedule)!r} has to hold shares of the way to the target, from 0 to 1")
    return lambda done: shares[min(int(done * len(shares)), len(shares) - 1)]


def schedule_name(schedule: Schedule) -> str | list[float]:
    """What a node's record says of it: a name, or the list."""
    if isinstance(schedule, str):
        return schedule
    if callable(schedule):
        return f"{schedule.__module__}.{schedule.__qualname__}"
    return [float(share) for share in schedule]


@dataclass(frozen=True)
class Segment:
    """
    From one recorded point to the next.

    Args:
        begin (`int`): Optimizer steps done where it begins.
        end (`int`): Steps done at its point.
        freeze (`int`): Steps done from which on the code is held fixed.
        start (`float`): Level where it begins.
        target (`float`): Level of its point.
    """

    begin: int
    end: int
    freeze: int
    start: float
    target: float

    def level(self, step: int, schedule: Callable[[float], float]) -> float:
        """The level after `step` optimizer steps."""
        if step >= self.freeze:
            return self.target
        done = (step - self.begin) / (self.freeze - self.begin)
        return self.start + (self.target - self.start) * min(1.0, max(0.0, schedule(done)))


def segments(targets: Sequence[float], points: Sequence[int], *, start: float, ramp: float) -> list[Segment]:
    """
    The segments of a path.

    Args:
        targets (sequence of `float`): Level of each point.
        points (sequence of `int`): Steps done at each point.
        start (`float`): Level at the beginning.
        ramp (`float`): Share of each segment in which the level rises; in the rest the code is held.
    """
    found, begin = [], 0
    for target, end in zip(targets, points, strict=True):
        # At least the last step finds its weights in the set.
        freeze = min(end, max(begin + 1, begin + round(ramp * (end - begin))))
        found.append(Segment(begin, end, freeze, start, target))
        begin, start = end, target
    return found


def learning_rate_factor(step: int, points: Sequence[int], *, stable: float) -> float:
    """
    Factor of the learning rate before optimizer step `step`: 1 for the share `stable` of each segment, then half a
    cosine down to 0 at its point. A rate that falls from the start is too low where the mask is still being found.

    Args:
        step (`int`): Optimizer steps done.
        points (sequence of `int`): Steps done at each point.
        stable (`float`): From 0 to 1.
    """
    begin = 0
    for end in points:
        if step < end:
            falling = (step - begin) / (end - begin) - stable
            return 1.0 if falling <= 0 else (1 + math.cos(math.pi * falling / (1 - stable))) / 2
        begin = end
    return 0.0
