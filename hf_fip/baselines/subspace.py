"""A rival that holds the large singular directions of the weights: orthogonal subspace fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..errors import InputError
from ..terms import PathStart, Term
from .lora import inner_layers


@dataclass
class Matrix:
    """
    A weight that may change only outside the largest singular directions it had at the start of the path.

    Args:
        weight (`Parameter`): The weight, of two dimensions or more; filters of a convolution are rows.
        origin (`torch.Tensor`): Its value at the start.
        left (`torch.Tensor`): `[rows, rank]`, the left singular vectors that are kept.
        right (`torch.Tensor`): `[rank, columns]`, the right ones.
    """

    weight: nn.Parameter
    origin: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, weight: nn.Parameter, effective_rank: float) -> Matrix:
        """The weight as it is now; `effective_rank` is a share of its smaller dimension."""
        origin = weight.detach().clone()
        rows = _rows(origin)
        left, _, right = torch.linalg.svd(rows, full_matrices=False)
        rank = int(effective_rank * min(rows.shape))
        return cls(weight, origin, left[:, :rank].contiguous(), right[:rank].contiguous())

    def project_(self) -> None:
        """Takes out what has changed along the kept directions."""
        moved = _rows(self.weight - self.origin)
        moved -= self.left @ (self.left.T @ moved)
        moved -= (moved @ self.right.T) @ self.right
        self.weight.copy_(self.origin + moved.view_as(self.origin))


class OrthogonalSubspace(Term):
    """
    Orthogonal subspace fine-tuning: what a network knows is taken to lie in the large singular directions of its
    weight matrices, and a new task is learned outside of them (Nayak et al., "Sculpting subspaces: constrained full
    fine-tuning in LLMs for continual learning", 2025; `OSFConfig` of PEFT).

    With U and V the leading singular vectors of a layer's weights W₀ at the start of the path, the weights become
    W₀ + (1 − UUᵀ)(W − W₀)(1 − VVᵀ) after every optimizer step. That is the set which PEFT's factors move in; they
    leave it where the optimizer rescales their gradients, as Adam does, and they are laid on a base that has to be
    saved, so that a third task could not begin with the directions of the second's weights. Here it does.

    As in PEFT all other weights stay: embeddings, norms, biases. Of a head that has grown the new rows are free and
    the old ones stay; a head whose labels the new task shares is free. PEFT knows linear layers alone; here the
    filters of a convolution are the rows of a matrix.

    Args:
        effective_rank (`float`, *optional*, defaults to 0.5):
            Number of directions that are kept, as a share of a matrix's smaller dimension (PEFT's default). The paper
            chooses it by layer, which is not done here.
    """

    name = "osf"
    uses_anchors = False

    def __init__(self, effective_rank: float = 0.5):
        if not 0 < effective_rank < 1:
            raise InputError(f"effective_rank={effective_rank!r} has to lie between 0 and 1: a share of each matrix")
        self.effective_rank = effective_rank
        self._matrices: list[Matrix] = []
        # Weights that stay: the parameter, which rows of it, and their values.
        self._held: list[tuple[nn.Parameter, list[int] | slice, Tensor]] = []

    def begin_path(self, start: PathStart) -> None:
        if isinstance(start.model, PeftModel):
            raise InputError(
                "method 'osf' divides the weights themselves, but the model has an adapter; leave `adapter` out, or "
                "merge it (`merge_and_unload`)"
            )
        layers, head = inner_layers(start.model)
        grown = len(start.old_nodes) < getattr(start.model.config, "num_labels", 0)
        free = () if head is None else (f"{head}.weight", f"{head}.bias")
        for name, parameter in start.model.named_parameters():
            if not parameter.requires_grad or (name in free and not grown):
                continue
            if name.removesuffix(".weight") in layers and name.endswith(".weight"):
                self._matrices.append(Matrix.of(parameter, self.effective_rank))
                continue
            rows = start.old_nodes if name in free else slice(None)
            self._held.append((parameter, rows, parameter.detach()[rows].clone()))

    def move_weights_(self, parameters: list[nn.Parameter], step: int) -> None:
        for matrix in self._matrices:
            matrix.project_()
        for parameter, rows, origin in self._held:
            parameter[rows] = origin

    def report(self) -> dict[str, Any]:
        return {self.name: {"effective_rank": self.effective_rank, "matrices": len(self._matrices)}}


def _rows(weight: Tensor) -> Tensor:
    """The weight as a matrix, at least float32."""
    return weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
