"""A query's work shared between the processes of `accelerate launch`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Processes:
    """
    The processes that query together; one, if there is no launcher.

    Args:
        rank (`int`): this process's number.
        number (`int`): how many there are.
        device (`torch.device`): this process's device.
    """

    rank: int
    number: int
    device: torch.device

    @classmethod
    def started(cls, device: str | torch.device | None = None) -> Processes:
        """
        The processes of the launcher.

        Args:
            device (`str` or `torch.device`, *optional*): by default this process's accelerator, or the CPU.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device is not None and torch.device(device).type == "cpu")
            device = state.device if device is None else device
            return cls(state.process_index, state.num_processes, torch.device(device))
        if device is None:
            has_one = torch.accelerator.is_available()
            device = torch.accelerator.current_accelerator() if has_one else torch.device("cpu")
        return cls(0, 1, torch.device(device))

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share(self, models: int) -> list[tuple[int, int, int]]:
        """
        This process's share of the work on so many models: whole models while there are enough of them, else parts of
        their batches.

        Returns:
            `list`: (model, part, number of parts): the batches `part`, `part + parts`, … are this process's.
        """
        parts = max(1, self.number // max(1, models))
        items = [(model, part, parts) for model in range(models) for part in range(parts)]
        return items[self.rank :: self.number]

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of all processes' arrays."""
        return sum(self.gathered(values)) if self.number > 1 else values

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, in order."""
        if self.number == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])
