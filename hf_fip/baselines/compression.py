"""What compression along a path is compared with: the same trainer, steps, batches and projections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..objectives import Pull


@dataclass(frozen=True)
class CompressionMethod:
    """
    A way to compress a network.

    Args:
        summary (`str`): What it does, with its source.
        preserve (`bool`): Whether the functional distance on the anchors is minimised.
        uses_labels (`bool`): Whether it needs the tasks' labelled training data.
        pulling (`dict`): Arguments of [`~hf_fip.objectives.Pull`], unless the user gave them.
        pull (`type`): The term that makes the network sparse.
    """

    summary: str
    preserve: bool = False
    uses_labels: bool = False
    pulling: dict[str, Any] = field(default_factory=dict)
    pull: type[Pull] = Pull


class LotteryTickets(Pull):
    """
    Iterative magnitude pruning with rewinding: each segment is trained in `rounds` of equal length; after each but the
    last the smallest weights are cut, by equal shares of those left, and all others go back to where the path began,
    which is a trained network here (Frankle and Carbin, 2019; of pre-trained networks: Chen et al., 2020). `schedule`,
    `ramp`, `strength` and `refresh` play no part.
    """

    rounds = 5

    def begin_segment(self, model: nn.Module) -> None:
        if not self.weights:
            self._start = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
        super().begin_segment(model)

    def _rounds_done(self) -> int:
        segment = self._segment()
        return min(self.rounds - 1, (self._step - segment.begin) * self.rounds // (segment.end - segment.begin))

    def _level(self) -> float:
        segment = self._segment()
        left = ((1 - segment.target) / (1 - segment.start)) ** (self._rounds_done() / (self.rounds - 1))
        return 1 - (1 - segment.start) * left

    def move_weights_(self, parameters: list[nn.Parameter], step: int) -> None:
        segment, before = self._segment(), self._rounds_done()
        self._step = step
        if self._segment() != segment:
            before = 0
        if self._rounds_done() > before:
            self.code, self.frozen = self._project(), True
            with torch.no_grad():
                for weight, start in self._start:
                    weight.copy_(start)
        elif self.code is not None:
            # Rounds are trained with the ticket drawn before them, from the second on in the next segment too.
            self.frozen = True


_SOFT = {"schedule": "cubic", "ramp": 0.7, "strength": 0.3, "score": "magnitude"}
# Hard pruning: what is cut is zero at once.
_HARD = {**_SOFT, "strength": 1.0}

COMPRESSION_METHODS = {
    "fip": CompressionMethod(
        "functionally invariant path: pull towards the set + functional distance to cached outputs, no labels",
        preserve=True,
        pulling=_SOFT,
    ),
    "gmp": CompressionMethod(
        "gradual magnitude pruning with labels (Zhu and Gupta, 2017)", uses_labels=True, pulling=_HARD
    ),
    "distill_gmp": CompressionMethod(
        "gradual magnitude pruning with labels and distillation from the dense network (Hinton et al., 2015)",
        preserve=True,
        uses_labels=True,
        pulling=_HARD,
    ),
    "one_shot": CompressionMethod(
        "magnitude pruning at once, then fine-tuning with labels (Han et al., 2015)",
        uses_labels=True,
        pulling={**_HARD, "schedule": "constant", "ramp": 0.0},
    ),
    "lottery_ticket": CompressionMethod(
        "iterative magnitude pruning with rewinding, with labels (Frankle and Carbin, 2019)",
        uses_labels=True,
        pulling=_HARD,
        pull=LotteryTickets,
    ),
    "movement": CompressionMethod(
        "movement pruning with labels (Sanh et al., 2020), hard, pruned weights not kept beside their masks",
        uses_labels=True,
        pulling={**_HARD, "score": "movement"},
    ),
}


def get_compression_method(name: str) -> CompressionMethod:
    """
    The method of that name.

    Raises:
        [`InputError`]: if there is none; the message lists the known ones.
    """
    if name not in COMPRESSION_METHODS:
        raise InputError(f"method={name!r} is unknown; choose one of: {', '.join(COMPRESSION_METHODS)}")
    return COMPRESSION_METHODS[name]
