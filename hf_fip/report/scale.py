"""Shares of zeros on an axis or in colours: between 90 % and 99 % lies as much as between none and 90 %."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


# Up to here equal differences of sparsity are equally far apart; beyond, equal factors of what is left.
LINEAR_UP_TO = 0.8
LINEAR_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8)
LOGARITHMIC_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
LEAST_LEFT = 1e-4


def sparsity_text(share: float) -> str:
    """A share of zeros as percent; only all of them read as 100 %."""
    if share <= 0.999 or share == 1:
        return f"{share:.1%}"
    return f"{100 - float(f'{100 * (1 - share):.1g}'):.6g}%"


@dataclass(frozen=True)
class SparsityScale:
    """
    Places for shares of zeros.

    Args:
        logarithmic (`bool`): Whether distance stands for a factor of the share left, not for a difference.
        most (`float`): The largest share that has to be drawn.
    """

    logarithmic: bool
    most: float

    @classmethod
    def of(cls, shares: Iterable[float]) -> SparsityScale:
        most = max(shares, default=0.0)
        return cls(most > LINEAR_UP_TO, most)

    def place(self, share: float) -> float:
        """Where a share lies; beyond 99.99 % all lie at one place."""
        return -math.log10(max(1 - share, LEAST_LEFT)) if self.logarithmic else share

    def ticks(self, gap: float = 0.0) -> tuple[list[float], list[str]]:
        """
        Places and texts of the scale's marks, up to the largest share.

        Args:
            gap (`float`, *optional*, defaults to 0.0): Least distance of two marks, as a share of the whole scale.
        """
        places: list[float] = []
        texts: list[str] = []
        for tick in LOGARITHMIC_TICKS if self.logarithmic else LINEAR_TICKS:
            place = self.place(tick)
            if tick <= self.most and (not places or place - places[-1] >= gap * self.place(self.most)):
                places.append(place)
                texts.append(f"{100 * tick:g}%")
        return places, texts
