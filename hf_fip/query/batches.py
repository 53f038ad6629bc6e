"""Batches of examples of like length, with the places of what is scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .encoding import Encoded, Window


@dataclass(frozen=True)
class Batch:
    """
    One input of a model and what its outputs are compared with.

    Args:
        inputs (`dict[str, Tensor]`): as the model's forward takes them, `[rows, …]`.
        scored (`Tensor`, *optional*): `[rows, tokens]`, true where logits are scored; `None`: one row of logits each.
        targets (`Tensor`): `[scored]`, the tokens they should predict; empty for classifiers.
        examples (`Tensor`): `[scored]`, whose example each scored row of logits belongs to.
        rows (`Tensor`): `[scored]`, number of each scored row of logits, counted over all examples.
    """

    inputs: dict[str, Tensor]
    scored: Tensor | None
    targets: Tensor
    examples: Tensor
    rows: Tensor


def first_rows(encoded: Encoded) -> np.ndarray:
    """`[examples + 1]`: at which scored row of logits, counted over all examples, each example begins."""
    return np.concatenate([[0], np.cumsum(encoded.tokens)]).astype(np.int64)


class Batches:
    """
    The batches of the examples from `start` to `stop`, made once for all models of one processor. Rows of like length
    share a batch, so that next to nothing is padding; batches of short rows hold more of them.

    Args:
        encoded (`Encoded`): the examples.
        start (`int`): first example.
        stop (`int`): after the last.
        batch_size (`int`): rows of the longest batch; the others hold as many tokens.
    """

    def __init__(self, encoded: Encoded, start: int, stop: int, batch_size: int) -> None:
        self.encoded = encoded
        windows, rows = [], []
        first = first_rows(encoded)
        for example in range(start, stop):
            row = int(first[example])
            for window in encoded.windows[example]:
                windows.append(window)
                rows.append(row)
                row += 1 if window.targets is None else len(window.targets)
        lengths = np.array([window.length for window in windows])
        order = np.argsort(lengths, kind="stable")[::-1]
        budget = batch_size * int(lengths.max(initial=1))
        self.groups: list[list[tuple[Window, int]]] = []
        at = 0
        while at < len(order):
            size = max(1, budget // int(lengths[order[at]]))
            self.groups.append([(windows[i], rows[i]) for i in order[at : at + size]])
            at += size
        self._made: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.groups)

    def examples_in(self, group: int) -> int:
        """How many examples begin in a batch."""
        return sum(window is self.encoded.windows[window.example][0] for window, _ in self.groups[group])

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, group: int) -> Batch:
        if group >= len(self.groups):
            raise IndexError(group)
        if group not in self._made:
            batch = self._make(self.groups[group])
            # Images that do not fit into memory are read anew for each model.
            if self.encoded.images is not None and not isinstance(self.encoded.images, Tensor):
                return batch
            self._made[group] = batch
        return self._made[group]

    def _make(self, group: list[tuple[Window, int]]) -> Batch:
        examples = torch.tensor([window.example for window, _ in group])
        if self.encoded.images is not None:
            images = self.encoded.images
            values = images[examples] if isinstance(images, Tensor) else images[examples.tolist()]["pixel_values"]
            rows = torch.tensor([row for _, row in group])
            return Batch({"pixel_values": values}, None, torch.empty(0, dtype=torch.long), examples, rows)
        length = max(window.length for window, _ in group)
        inputs = {}
        for key in group[0][0].inputs:
            values = np.full((len(group), length), self.encoded.pad.get(key, 0), dtype=np.int64)
            for place, (window, _) in enumerate(group):
                values[place, : len(window.inputs[key])] = window.inputs[key]
            inputs[key] = torch.from_numpy(values)
        if group[0][0].targets is None:
            rows = torch.tensor([row for _, row in group])
            return Batch(inputs, None, torch.empty(0, dtype=torch.long), examples, rows)
        scored = torch.zeros(len(group), length, dtype=torch.bool)
        for place, (window, _) in enumerate(group):
            scored[place, torch.from_numpy(window.positions)] = True
        numbers = torch.tensor([len(window.targets) for window, _ in group])
        rows = torch.cat([torch.arange(row, row + len(window.targets)) for window, row in group])
        targets = torch.from_numpy(np.concatenate([window.targets for window, _ in group]).astype(np.int64))
        return Batch(inputs, scored, targets, examples.repeat_interleave(numbers), rows)
