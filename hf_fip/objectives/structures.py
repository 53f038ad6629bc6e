"""Units that a network can lose as a whole: attention heads, feed-forward neurons, convolution filters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forward import base_model
from ..storage import structure_groups
from ..storage.layout import KINDS, StructureGroup


@dataclass(frozen=True)
class Units:
    """
    The like units of one layer.

    Args:
        kind (`str`): `"heads"`, `"neurons"` or `"filters"`.
        number (`int`): How many there are.
        members (tuple of `(name, dim, width)`):
            The weights that belong to them: unit `i` owns the indices `i * width … (i + 1) * width` along `dim`.
    """

    kind: str
    number: int
    members: tuple[tuple[str, int, int], ...]

    def mean_squares(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Mean squared score of each unit's weights, `[number]`."""
        total, size = 0.0, 0
        for name, dim, width in self.members:
            squares = scores[name].detach().float().square().movedim(dim, 0).flatten(1)
            total = total + squares.sum(1).view(self.number, width).sum(1)
            size += width * squares.shape[1]
        return torch.as_tensor(total) / size


def find_units(model: nn.Module, names: Sequence[str], kinds: Sequence[str] = KINDS) -> list[Units]:
    """
    The units of a model, all of whose weights may be changed.

    Args:
        model (`nn.Module`): BERT, ViT, DistilBERT and those whose layers are named like theirs, or the package's own
            networks.
        names (sequence of `str`): Weights that may be changed.
        kinds (sequence of `str`, *optional*): Which kinds to look for.

    Raises:
        [`InputError`]: an unknown kind, or a model without units of a kind asked for alone, or without any.
    """
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise InputError(f"kinds={kinds!r} of projection 'structured': give a list, of {', '.join(KINDS)}")
    model = base_model(model)
    # Scales and biases of norms are never pruned: what a unit weighs is told by its filters and matrices.
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    found = [_units(group, matrices) for group in structure_groups(model)]
    allowed = set(names)
    found = [
        units
        for units in found
        if units.kind in kinds and units.number > 1 and allowed.issuperset(name for name, _, _ in units.members)
    ]
    missing = [kind for kind in kinds if not any(units.kind == kind for units in found)]
    if not found or (missing and set(kinds) != set(KINDS)):
        raise InputError(
            f"projection 'structured': {type(model).__name__} has no {' and no '.join(missing)} that could be pruned; "
            f"choose other kinds (of {', '.join(KINDS)}) or another projection"
        )
    return found


def _units(group: StructureGroup, matrices: Collection[str]) -> Units:
    members = [
        (f"{name}.weight", dim, width)
        for dim, part in enumerate((group.rows, group.columns))
        for name, width in part.items()
        if f"{name}.weight" in matrices
    ]
    return Units(group.kind, group.count, tuple(members))
