"""
The race for the best model of a family: most models are dropped after a few examples.

The method is a *blocking race*: all models see the same examples in the same random order with the same masks, and at
each look a model is dropped once a paired t test shows it worse than the best so far. Races are due to Maron and Moore
("Hoeffding races", NIPS 1993); blocking, that is pairing by example, to Moore and Lee ("Efficient algorithms for
minimizing cross validation error", ICML 1994); the test in place of Hoeffding's bound, which needs the losses' range
and far more examples, follows Birattari et al. ("A racing algorithm for configuring metaheuristics", GECCO 2002). Two
things are ours: the best on *these* examples is sought, so errors shrink to zero as the examples run out
(finite-population correction), and a budget.

Neighbours on a path can be so alike that no test tells them apart before the examples run out. Then the budget drops
the worst by their estimates, as sequential halving does (Karnin, Koren and Somekh, "Almost optimal exploration in
multi-armed bandits", ICML 2013): equal shares of what is left of it for each look that is left. Who was dropped so is
marked; the stated confidence is not claimed for them.

Everything here works on arrays of losses and weights, `[models, examples]`; what they are losses of plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .estimates import influence, ratio


LEAST_TESTED = 8
LEAST_FIRST = 16
LOOKS = 6

Scorer = Callable[[Sequence[int], int, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Race:
    """
    How a race went.

    Args:
        loss (`np.ndarray`): `[models, examples]`, NaN where a model did not run.
        weight (`np.ndarray`): likewise.
        samples (`np.ndarray`): `[models]`, how many examples each model saw, the first ones.
        dropped_by (`list`): for each model `"test"`, `"budget"`, `"failed"` (a loss that is no number) or `None` for
            those that reached the end.
        winner (`int`, *optional*): the best on all examples among those that reached the end; `None` if all failed.
        looks (`list[int]`): numbers of examples after which models could be dropped.
    """

    loss: np.ndarray
    weight: np.ndarray
    samples: np.ndarray
    dropped_by: list[str | None]
    winner: int | None
    looks: list[int]

    @property
    def forward_examples(self) -> int:
        """How many examples were run through models, all models together."""
        return int(self.samples.sum())


def schedule(examples: int, looks: int = LOOKS) -> list[int]:
    """
    Numbers of examples after which a race looks: doubling up to all of them.

    Args:
        examples (`int`): how many there are.
        looks (`int`, *optional*, defaults to 6): how often at most; fewer where the first would be at less than 16.

    Returns:
        `list[int]`: ascending, the last is `examples`.
    """
    points = [math.ceil(examples / 2**power) for power in range(looks)]
    return sorted({point for point in points if point >= min(LEAST_FIRST, examples)})


def clearly_worse(
    loss: np.ndarray, weight: np.ndarray, population: int, error_rate: float, leader: int | None = None
) -> np.ndarray:
    """
    Which models a one-sided paired t test shows worse than the leader on the whole population of examples.

    Args:
        loss (`np.ndarray`): `[models, examples seen]`, a random sample without replacement.
        weight (`np.ndarray`): likewise.
        population (`int`): number of all examples, for the finite-population correction `1 - seen / population`.
        error_rate (`float`): of each single test.
        leader (`int`, *optional*): the model compared with; by default the one with the lowest ratio.

    Returns:
        `np.ndarray`: bool, `[models]`; false for the leader.
    """
    ratios = ratio(loss, weight)
    leader = int(np.argmin(ratios)) if leader is None else leader
    seen = loss.shape[1]
    if seen >= population:
        return ratios > ratios[leader]
    if seen < LEAST_TESTED:
        return np.zeros(len(loss), dtype=bool)
    contributions = influence(loss, weight)
    spread = (contributions - contributions[leader]).std(axis=1, ddof=1)
    error = spread * math.sqrt((1 - seen / population) / seen)
    return ratios - ratios[leader] > stats.t.isf(error_rate, seen - 1) * error


def race(score: Scorer, models: int, examples: int, *, confidence: float = 0.95, budget: float | None = 0.2) -> Race:
    """
    Finds the model with the lowest ratio on all examples, running most models on few of them.

    The best model is dropped by a test with a probability of at most `1 - confidence` (as far as the mean of the
    examples seen at a look is normally distributed): each of the tests that could drop it, one for each other model
    and look, errs with at most an equal part of that (Bonferroni).

    Args:
        score (`Callable`): `(models, start, stop)` to losses and weights, each `[len(models), stop - start]`: runs
            these models, given by number, on the examples from `start` to `stop` of a random order.
        models (`int`): how many take part.
        examples (`int`): how many examples there are.
        confidence (`float`, *optional*, defaults to 0.95): for the models that tests drop.
        budget (`float`, *optional*, defaults to 0.2): largest share of `models * examples` to run; of few models one
            runs on all examples even so, and all on the first. `None`: no limit, only tests drop models.

    Returns:
        [`Race`]: the winner has seen all examples.
    """
    looks = schedule(examples)
    error_rate = (1 - confidence) / max(1, (models - 1) * len(looks))
    loss = np.full((models, examples), math.nan)
    weight = np.full((models, examples), math.nan)
    samples = np.zeros(models, dtype=np.int64)
    dropped_by: list[str | None] = [None] * models
    running = np.arange(models)

    def drop(gone: np.ndarray, reason: str) -> np.ndarray:
        for model in running[gone]:
            dropped_by[model] = reason
        return running[~gone]

    for look, stop in enumerate(looks):
        start = looks[look - 1] if look else 0
        loss[running, start:stop], weight[running, start:stop] = score(running.tolist(), start, stop)
        samples[running] = stop
        running = drop(~np.isfinite(loss[running, start:stop]).all(axis=1), "failed")
        if stop == examples or not len(running):
            break
        running = drop(clearly_worse(loss[running, :stop], weight[running, :stop], examples, error_rate), "test")
        if budget is not None:
            left = budget * models * examples - samples.sum()
            places = max(1, math.floor(left / (len(looks) - look - 1) / (looks[look + 1] - stop)))
            order = np.argsort(ratio(loss[running, :stop], weight[running, :stop]), kind="stable")
            running = drop(np.isin(np.arange(len(running)), order[places:]), "budget")
    final = ratio(loss[running], weight[running])
    return Race(loss, weight, samples, dropped_by, int(running[np.argmin(final)]) if len(running) else None, looks)


def run_all(score: Scorer, models: int, examples: int) -> Race:
    """The full ranking in the terms of a race: nobody is dropped but who fails."""
    loss, weight = score(range(models), 0, examples)
    finite = np.isfinite(loss).all(axis=1)
    samples = np.full(models, examples)
    order = np.where(finite, ratio(loss, weight), np.inf)
    winner = int(np.argmin(order)) if finite.any() else None
    return Race(loss, weight, samples, [None if fine else "failed" for fine in finite], winner, [examples])
