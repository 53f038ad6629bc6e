"""Zeros that a network has stay zero, whatever it learns next."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..graph import Node
from ..terms import Term
from .codes import Masks


# Embeddings that nobody compressed hold zeros too: the padding's row, or all of them before anything is learned.
FEW_ZEROS = 0.01


class KeepZeros(Term):
    """
    Holds the exact zeros that the network has at the start of the path, in its trained weights of at least two
    dimensions. Rows that were added to the output head are free, and so are embeddings that were not compressed.
    """

    name = "keep_zeros"
    uses_anchors = False

    def __init__(self):
        self.weights: dict[str, nn.Parameter] = {}
        self.code = Masks({})

    def begin_segment(self, model: nn.Module) -> None:
        if self.weights:
            return
        for name, weight in model.named_parameters():
            if weight.ndim < 2 or not weight.requires_grad:
                continue
            zeros = weight.detach() == 0
            if "embeddings" in name:
                is_compressed = FEW_ZEROS <= zeros.float().mean() < 1
            else:
                is_compressed = zeros.any()
            if is_compressed:
                self.weights[name], self.code.pruned[name] = weight, zeros

    def constrain_weights_(self, parameters: list[nn.Parameter]) -> None:
        self.code.pull_(self.weights, 1.0)

    def report(self) -> dict[str, Any]:
        return {"zeros_kept": sum(int(torch.count_nonzero(mask)) for mask in self.code.pruned.values())}


def kept_zeros(node: Node, keep: bool = True) -> list[Term]:
    """The term that keeps a node's zeros, if it or a node it descends from was compressed and they are to be kept."""
    return [KeepZeros()] if keep and node.protocol.keys() & {"compression", "zeros_kept"} else []
