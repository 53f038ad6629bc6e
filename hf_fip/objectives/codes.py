"""
Codes: which part of a target set a point belongs to (where the zeros are, which grid, which subspace). With its code
fixed, every set here is linear or a grid, and its nearest point is cheap: that is what is pulled to and held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


# The classes by the names that checkpoints know them by.
CODES: dict[str, type[Code]] = {}


class Code(ABC):
    """
    One face of a target set. Weights it does not name are left alone.

    Attributes:
        kind (`str`): Name under which a checkpoint knows the class.
    """

    kind: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        CODES[cls.kind] = cls

    @abstractmethod
    def nearest(self, name: str, weight: Tensor) -> Tensor:
        """The nearest point to `weight` on this face; a new tensor."""

    @abstractmethod
    def names(self) -> list[str]:
        """The weights it says something about."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The code itself, for a checkpoint."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Code:
        """What [`~Code.tensors`] described."""

    def record(self) -> dict[str, Any]:
        """What a node says of it beside its zeros, as JSON."""
        return {}

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The projection of all weights, as new tensors."""
        self.check(weights)
        named = set(self.names())
        return {
            name: self.nearest(name, weight.detach()) if name in named else weight.detach().clone()
            for name, weight in weights.items()
        }

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """
        Raises:
            [`InputError`]: the code was made for other weights than these.
        """
        for name in self.names():
            if name not in weights:
                raise InputError(
                    f"the code says where {name!r} lies, which is missing here: it is of another architecture; "
                    "project this network anew"
                )
            expected, found = self._shape(name), tuple(weights[name].shape)
            if expected != found[: len(expected)]:
                raise InputError(
                    f"the code is for {name!r} of shape {expected}, {found} here: it is of another architecture; "
                    "project this network anew"
                )

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, or the beginning of it, as the code tells it."""
        return tuple(self.tensors()[name].shape)

    @torch.no_grad()
    def pull_(self, weights: Mapping[str, Tensor], strength: float) -> None:
        """Moves the weights, in place, by the share `strength` of the way to the nearest point; 1 puts them on it."""
        for name in self.names():
            if strength == 1:
                weights[name].copy_(self.nearest(name, weights[name]))
            else:
                weights[name].lerp_(self.nearest(name, weights[name]), strength)

    @torch.no_grad()
    def add_gradient_(self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], strength: float) -> None:
        """Adds the gradient of `strength / 2 * ‖w − proj(w)‖²`, which is `strength * (w − proj(w))`."""
        for name in self.names():
            gradients[name].add_(weights[name] - self.nearest(name, weights[name]), alpha=strength)

    @torch.no_grad()
    def distance(self, weights: Mapping[str, Tensor]) -> Tensor:
        """‖w − proj(w)‖, a scalar."""
        moved = [torch.linalg.vector_norm(weights[n] - self.nearest(n, weights[n])) for n in self.names()]
        return torch.linalg.vector_norm(torch.stack(moved)) if moved else torch.zeros(())


class Masks(Code):
    """
    Zeros in fixed places.

    Args:
        pruned (`dict[str, torch.Tensor]`): Boolean, true where the weight is zero.
    """

    kind = "masks"

    def __init__(self, pruned: Mapping[str, Tensor]):
        self.pruned = dict(pruned)

    def names(self) -> list[str]:
        return list(self.pruned)

    def share(self) -> float:
        """The share of zeros among the weights it names."""
        size = sum(mask.numel() for mask in self.pruned.values())
        return sum(int(torch.count_nonzero(mask)) for mask in self.pruned.values()) / max(1, size)

    def nearest(self, name: str, weight: Tensor) -> Tensor:
        return weight.detach().masked_fill(self.pruned[name], 0.0)

    def tensors(self) -> dict[str, Tensor]:
        return self.pruned

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Masks:
        return cls(tensors)

    @torch.no_grad()
    def pull_(self, weights: Mapping[str, Tensor], strength: float) -> None:
        # w - 1.0 * w is exactly zero; several times faster than masked_fill_ on a CPU.
        chosen = [weights[name].detach() for name in self.pruned]
        if chosen:
            torch._foreach_addcmul_(chosen, chosen, list(self.pruned.values()), value=-strength)

    @torch.no_grad()
    def add_gradient_(self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], strength: float) -> None:
        if self.pruned:
            torch._foreach_addcmul_(
                [gradients[name] for name in self.pruned],
                [weights[name].detach() for name in self.pruned],
                list(self.pruned.values()),
                value=strength,
            )


class Grid(Code):
    """
    Values `q * scale` with whole `q` of at most `largest`, one scale per output channel.

    Args:
        scales (`dict[str, torch.Tensor]`): `[channels]`, above 0.
        largest (`int`): 127 for int8, 7 for int4.
        on_grid (`dict[str, torch.Tensor]`, *optional*):
            Boolean, which weights have to lie on the grid; all by default.
    """

    kind = "grid"

    def __init__(self, scales: Mapping[str, Tensor], largest: int, on_grid: Mapping[str, Tensor] | None = None):
        self.scales = dict(scales)
        self.largest = largest
        self.on_grid = dict(on_grid or {})

    def names(self) -> list[str]:
        return list(self.scales)

    def nearest(self, name: str, weight: Tensor) -> Tensor:
        weight = weight.detach()
        scale = self.scales[name].view(-1, *[1] * (weight.ndim - 1))
        rounded = (weight / scale).round_().clamp_(-self.largest, self.largest).mul_(scale).to(weight.dtype)
        return torch.where(self.on_grid[name], rounded, weight) if name in self.on_grid else rounded

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.scales[name].shape)

    def tensors(self) -> dict[str, Tensor]:
        largest = torch.tensor(self.largest)
        fixed = {f"on:{name}": mask for name, mask in self.on_grid.items()}
        return {"largest": largest, **{f"scale:{name}": scale for name, scale in self.scales.items()}, **fixed}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Grid:
        parts = {prefix: {} for prefix in ("scale:", "on:")}
        for key, tensor in tensors.items():
            for prefix, part in parts.items():
                if key.startswith(prefix):
                    part[key.removeprefix(prefix)] = tensor
        return cls(parts["scale:"], int(tensors["largest"]), parts["on:"])


class Subspace(Code):
    """
    Matrices whose columns lie in a fixed subspace, so that their rank is at most its dimension.

    Args:
        bases (`dict[str, torch.Tensor]`): Orthonormal columns, `[rows, rank]`.
    """

    kind = "subspace"

    def __init__(self, bases: Mapping[str, Tensor]):
        self.bases = dict(bases)

    def names(self) -> list[str]:
        return list(self.bases)

    def nearest(self, name: str, weight: Tensor) -> Tensor:
        basis = self.bases[name]
        matrix = weight.detach().flatten(1)
        return (basis @ (basis.T @ matrix)).view_as(weight)

    def _shape(self, name: str) -> tuple[int, ...]:
        return (len(self.bases[name]),)

    def record(self) -> dict[str, Any]:
        return {"ranks": {name: basis.shape[1] for name, basis in self.bases.items()}}

    def tensors(self) -> dict[str, Tensor]:
        return self.bases

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Subspace:
        return cls(tensors)


class Values(Code):
    """
    Single points: what a user's own projection returned.

    Args:
        points (`dict[str, torch.Tensor]`): The projected weights.
    """

    kind = "values"

    def __init__(self, points: Mapping[str, Tensor]):
        self.points = dict(points)

    def names(self) -> list[str]:
        return list(self.points)

    def nearest(self, name: str, weight: Tensor) -> Tensor:
        return self.points[name].clone()

    def tensors(self) -> dict[str, Tensor]:
        return self.points

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Values:
        return cls(tensors)
