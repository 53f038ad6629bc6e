"""Random steps: how an isofunctional path reaches networks that use other features, not only other weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .displacement import Displacement


class RandomSteps(Displacement):
    """
    Each segment of the path begins with a random step, and its other steps bring the function back: L = 0, solved as
    the paper solves its equations numerically, by a point drawn near the weights and gradient descent from there.

    A step turns every layer by the angle arcsin(s) towards a random direction and keeps its norm,
    w ← √(1 − s²) w + s ‖w‖ ξ / ‖ξ‖. Where a repulsion looks for directions in which the function does not change, a
    random step does not choose: the function on the anchors has to be built anew, in part from other features.

    Args:
        length (`float`, *optional*, defaults to 0.6): s, from 0 to 1; at 1 nothing of a layer is left.
        points (sequence of `int`): Optimizer steps done at each point of the path.
        seed (`int`, *optional*, defaults to 0): Of the directions.
        include, exclude (sequence of `str`, *optional*): Which layers; see [`layer_weights`].

    Raises:
        [`InputError`]: a `length` that is no share.
    """

    name = "random_steps"

    def __init__(
        self,
        length: float = 0.6,
        *,
        points: Sequence[int],
        seed: int = 0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ):
        super().__init__(include=include, exclude=exclude)
        if not 0 < length <= 1:
            raise InputError(f"length={length!r} of the random steps has to lie above 0, and not above 1")
        self.length, self.seed = length, seed
        self._first = {1, *(point + 1 for point in points[:-1])}

    @torch.no_grad()
    def move_weights_(self, parameters: list[nn.Parameter], step: int) -> None:
        if step not in self._first:
            return
        # On the CPU, so that the path is the same on every device; from the step, so that a resumed run goes on alike.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for weight in self.layers.values():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            length = self.length * weight.norm() / noise.norm()
            weight.mul_(math.sqrt(1 - self.length**2)).add_(noise * length)

    def report(self) -> dict[str, Any]:
        """The node's `displacement` and `random_steps` records."""
        return {**super().report(), "random_steps": {"length": self.length}}
