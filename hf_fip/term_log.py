"""What the training log says of the terms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from .terms import Term


class TermLog:
    """
    The values of a run's terms between two logs. They are summed where they are computed, and leave the device once
    per log.

    Args:
        accelerator (`Accelerator`): Averages them over the processes.
        terms (sequence of `Term`): The terms of the run.
        step (`int`, *optional*, defaults to 0): Optimizer steps done before the first value.
    """

    def __init__(self, accelerator: Accelerator, terms: Sequence[Term], step: int = 0):
        self.accelerator = accelerator
        self.terms = terms
        self._sums: dict[str, Tensor] = {}
        self._since = step

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds the detached values of a micro-batch, as [`~hf_fip.terms.total_loss`] returns them."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self, step: int) -> dict[str, float]:
        """
        Every loss by name, as its mean per optimizer step since the last call and over the processes, their weighted
        sum `"objective"` over the terms of L, and what the terms say in [`~hf_fip.terms.Term.logs`]. The next call
        starts from zero. To be called on every process.

        Args:
            step (`int`): Optimizer steps done.

        Returns:
            `dict[str, float]`; empty if nothing was added.
        """
        if not self._sums:
            return {}
        sums = self.accelerator.reduce(torch.stack([value.float() for value in self._sums.values()]), "mean")
        means = sums / max(step - self._since, 1)
        values = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._since = {}, step
        values |= {name: float(value) for term in self.terms for name, value in term.logs().items()}
        objective = [values[t.name] * t.weight for t in self.terms if t.is_objective and t.name in values]
        return values | {"objective": sum(objective)} if objective else values


def check_finite(values: Mapping[str, float], step: int, learning_rate: float) -> None:
    """
    Refuses to go on from losses that are NaN or infinite.

    Args:
        values (mapping of `str` to `float`): By name.
        step (`int`): Optimizer steps done.
        learning_rate (`float`): The run's, for the message.

    Raises:
        `FloatingPointError`: one of them is not finite.
    """
    if not all(map(math.isfinite, values.values())):
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise FloatingPointError(
            f"the loss is not finite at step {step} ({shown}); lower learning_rate={learning_rate:g} or check the "
            "data. Points and checkpoints recorded before are whole"
        )
