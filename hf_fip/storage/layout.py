"""Which structures of a network are left, as `config.json` says it, and which rows and columns that are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from ..errors import InputError


METHOD = "hf_fip_sparse"
VERSION = 1
KINDS = ("heads", "neurons", "filters")
_MAX_COUNT = 1 << 24


@dataclass(frozen=True)
class StructureGroup:
    """
    Structures of one kind at one place: the heads of an attention layer, the neurons of a feed-forward layer, the
    filters of a convolution.

    Args:
        kind (`str`): `"heads"`, `"neurons"` or `"filters"`.
        count (`int`): how many there are, or were before any was removed.
        rows (`dict[str, int]`): modules that compute the structures, with rows of their weights per structure.
        columns (`dict[str, int]`): modules that read them, with columns of their weights per structure.
        kept (`tuple[int, ...]`): the structures that are left, ascending; all by default.
    """

    kind: str
    count: int
    rows: dict[str, int]
    columns: dict[str, int]
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.kept:
            object.__setattr__(self, "kept", tuple(range(self.count)))

    @property
    def modules(self) -> frozenset[str]:
        return frozenset((*self.rows, *self.columns))

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "count": self.count,
            "kept": format_ranges(self.kept),
            "rows": self.rows,
            "columns": self.columns,
        }


@dataclass(frozen=True)
class StorageLayout:
    """
    What `quantization_config` in `config.json` says of our format.

    Args:
        groups (`tuple[StructureGroup, ...]`, *optional*): where structures were removed.
        stored_as (`dict[str, str]`, *optional*): names in the files of modules that have another name in the model.
    """

    groups: tuple[StructureGroup, ...] = ()
    stored_as: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        structures = {"groups": [group.to_dict() for group in self.groups], "stored_as": self.stored_as}
        return {
            "quant_method": METHOD,
            "format_version": VERSION,
            **{name: value for name, value in structures.items() if value},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StorageLayout:
        """
        Read a `quantization_config`, which may come from anyone.

        Args:
            content (`Mapping[str, Any]`): as [`StorageLayout.to_dict`] writes it.

        Returns:
            [`StorageLayout`]

        Raises:
            [`~hf_fip.errors.InputError`]: another version, or wrong types and numbers.
        """
        version = content.get("format_version")
        if version != VERSION:
            raise InputError(
                f"quantization_config: format_version={version!r}; this hf_fip reads {VERSION}; use a newer hf_fip."
            )
        groups, stored_as = content.get("groups", []), content.get("stored_as", {})
        names = stored_as.items() if isinstance(stored_as, dict) else [(None, None)]
        if not isinstance(groups, list) or not all(isinstance(name, str) for name in chain(*names)):
            raise InputError("quantization_config: 'groups' must be a list and 'stored_as' names of modules.")
        return cls(tuple(_group(group) for group in groups), dict(stored_as))

    def kept_along(self) -> dict[str, dict[int, tuple[torch.Tensor, int]]]:
        """
        The rows (dimension 0) and columns (dimension 1) that are left of each module's weights.

        Returns:
            `dict[str, dict[int, tuple[torch.Tensor, int]]]`: by module and dimension, the indices that are left and
            how many there were.
        """
        found: dict[str, dict[int, tuple[torch.Tensor, int]]] = {}
        for group in self.groups:
            for dimension, modules in enumerate((group.rows, group.columns)):
                for module, unit in modules.items():
                    kept = spread(group.kept, unit)
                    found.setdefault(module, {})[dimension] = (kept, group.count * unit)
        return found


def spread(structures: Iterable[int], unit: int) -> torch.Tensor:
    """Indices of the rows or columns of structures that have `unit` of them each."""
    return (torch.tensor(list(structures), dtype=torch.int64)[:, None] * unit + torch.arange(unit)).flatten()


def format_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: `[0, 1, 2, 5]` is `"0-2,5"`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)


def parse_ranges(text: str, count: int) -> tuple[int, ...]:
    """
    The numbers that [`format_ranges`] wrote.

    Args:
        text (`str`): such as `"0-2,5"`.
        count (`int`): all numbers must be below it.

    Returns:
        `tuple[int, ...]`, ascending, not empty.

    Raises:
        [`~hf_fip.errors.InputError`]: anything else.
    """
    numbers: list[int] = []
    for span in text.split(","):
        first, dash, last = span.partition("-")
        last = last if dash else first
        if not (_is_number(first) and _is_number(last)) or not int(first) <= int(last) < count:
            raise InputError(f"quantization_config: {span!r} is no range of structures below {count}.")
        if numbers and int(first) <= numbers[-1]:
            raise InputError(f"quantization_config: the structures kept are not in ascending order at {span!r}.")
        numbers.extend(range(int(first), int(last) + 1))
    return tuple(numbers)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _group(content: Any) -> StructureGroup:
    if not isinstance(content, dict):
        raise InputError("quantization_config: a group is no JSON object.")
    kind, count, kept = (content.get(name) for name in ("kind", "count", "kept"))
    if kind not in KINDS or type(count) is not int or not 0 < count <= _MAX_COUNT or not isinstance(kept, str):
        raise InputError(f"quantization_config: a group has kind={kind!r} and count={count!r}; the file is damaged.")
    modules = [content.get(name) for name in ("rows", "columns")]
    for units in modules:
        if not isinstance(units, dict) or not all(
            isinstance(name, str) and type(unit) is int and 0 < unit * count <= _MAX_COUNT
            for name, unit in units.items()
        ):
            raise InputError("quantization_config: 'rows' and 'columns' of a group must map modules to numbers.")
    return StructureGroup(kind, count, *modules, kept=parse_ranges(kept, count))
