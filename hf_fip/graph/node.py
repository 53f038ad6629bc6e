"""A node of the model graph: the description of one complete model, as `fip_node.json` holds it."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError


if TYPE_CHECKING:
    from ..tasks import Task

NODE_FILE = "fip_node.json"
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}")


class Source(Protocol):
    """Where the files of a node lie that is not on this machine."""

    repo: str
    revision: str

    def fetch(self, *, weights: bool = True) -> Path:
        """Downloads the files once, all or those that are no weights; safe to call from several threads."""


class _Expected(ValueError):
    """What a field should have held; `Node` adds which file and field it was."""


def is_node_id(value: Any) -> bool:
    """
    Whether `value` may name a node, and therefore a folder.

    Args:
        value (`Any`): what a caller or an untrusted file gave as id.

    Returns:
        `bool`: true for 1 to 96 of `A-Z a-z 0-9 . _ -` without a leading dot, so that no id leads out of the graph.
    """
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def _identifier(value: Any) -> str:
    if not is_node_id(value):
        raise _Expected("1 to 96 of the characters A-Z a-z 0-9 . _ - without a leading dot")
    return value


def _optional_identifier(value: Any) -> str | None:
    return None if value is None else _identifier(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Expected("a string")
    return str.__str__(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise _Expected("a whole number of 0 or more")
    return int(value)


def _number(value: Any, expected: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _Expected(expected)
    try:
        return float(value)
    except OverflowError:
        raise _Expected(expected) from None


def _share(value: Any) -> float:
    number = _number(value, "a number from 0 to 1")
    if not 0 <= number <= 1:
        raise _Expected("a number from 0 to 1")
    return number


def _jsonable(value: Any) -> Any:
    """A copy of `value` as it would be read back from JSON, so that a node in memory equals the node on disk."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, (str, int)) for key in value):
            raise _Expected("an object whose keys are strings")
        return {str(key): _jsonable(item) for key, item in value.items()}
    raise _Expected(f"JSON values only (no {type(value).__name__})")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Expected("an object")
    try:
        return _jsonable(value)
    except RecursionError:
        raise _Expected("an object nested less deeply") from None


def _metrics(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _Expected("an object of numbers")
    # JSON has no NaN and no infinity: both are stored as null and read back as NaN.
    metrics = {}
    for key, metric in value.items():
        number = math.nan if metric is None else _number(metric, f"an object of numbers ({_brief(key)} is not one)")
        metrics[str.__str__(key)] = number if math.isfinite(number) else math.nan
    return metrics


def _distances(value: Any) -> dict[str, Any]:
    distances = {"parent": None, "root": None, **_object(value)}
    for key in ("parent", "root"):
        if distances[key] is not None:
            distances[key] = _number(distances[key], f"an object whose {key!r} is a number or null")
    return distances


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "id": _identifier,
    "parent": _optional_identifier,
    "name": _text,
    "operator": _text,
    "parameters": _object,
    "step": _count,
    "metrics": _metrics,
    "functional_distance": _distances,
    "euclidean_distance": _distances,
    "sparsity": _share,
    "task": _text,
    "protocol": _object,
    "versions": _object,
    "created": _text,
    "extra": _object,
}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Node:
    """
    One complete model of a graph. Mirrors `fip_node.json`; immutable, and checked whenever one is made.

    Args:
        id (`str`):
            Name of the node and of its folder: 1 to 96 of `A-Z a-z 0-9 . _ -`, no leading dot.
        parent (`str`, *optional*):
            Id of the node it was made from; `None` for the root.
        name (`str`, *optional*, defaults to `"base"`):
            The branch: `"base"`, `"fip"`, `"naive"`, ….
        operator (`str`, *optional*, defaults to `"origin"`):
            What made the node from its parent, e.g. `"ContinualLearning"`.
        parameters (`dict`, *optional*):
            The operator's parameters, as JSON.
        step (`int`, *optional*, defaults to 0):
            Optimizer steps since the branch began.
        metrics (`dict[str, float]`, *optional*):
            `"<data set>/<metric>"` to value. NaN and infinities are stored as null and read back as NaN.
        functional_distance (`dict`, *optional*):
            `{"parent": float | None, "root": float | None, "name": ..., "unit": ...}`.
        euclidean_distance (`dict`, *optional*):
            `{"parent": float | None, "root": float | None}` in weight space; `None` where it is not defined.
        sparsity (`float`, *optional*, defaults to 0.0):
            Share, from 0 to 1, of exact zeros among the weights with at least two dimensions.
        task (`str`, *optional*, defaults to `"other"`):
            `"sequence-classification"`, `"image-classification"`, `"fill-mask"`, ….
        protocol (`dict`, *optional*):
            Label space, tasks, anchors, budget report, seed, ….
        versions (`dict`, *optional*):
            Versions of the libraries that made it.
        created (`str`, *optional*, defaults to now):
            ISO time in UTC.
        folder (`Path`, *optional*):
            Where its files lie; not serialised.
        source ([`~hf_fip.graph.node.Source`], *optional*):
            Where they can be downloaded from, for a node on the Hub; not serialised.
        extra (`dict`, *optional*):
            Keys of `fip_node.json` this version does not know; kept and written back.

    Raises:
        `InputError`: a field of the wrong type; the message names the file (or the node) and the field.
    """

    id: str
    parent: str | None = None
    name: str = "base"
    operator: str = "origin"
    parameters: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    functional_distance: dict[str, Any] = field(default_factory=dict)
    euclidean_distance: dict[str, Any] = field(default_factory=dict)
    sparsity: float = 0.0
    task: str = "other"
    protocol: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=_now)
    folder: Path | None = field(default=None, compare=False)
    source: Source | None = field(default=None, compare=False, repr=False)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, check in _CHECKS.items():
            value = getattr(self, key)
            try:
                object.__setattr__(self, key, check(value))
            except _Expected as expected:
                where = self.folder / NODE_FILE if self.folder else "Node"
                raise InputError(f"{where}: field {key!r} is {_brief(value)}; expected {expected}.") from None

    def __hash__(self) -> int:
        return hash(self.id)

    def to_json(self) -> str:
        """
        Returns:
            `str`: what `fip_node.json` holds, on one line: strict JSON, with null where a metric is NaN.
        """
        data = {**self.extra, **{key: getattr(self, key) for key in _CHECKS if key != "extra"}}
        data["metrics"] = {key: value if math.isfinite(value) else None for key, value in self.metrics.items()}
        return json.dumps(data, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: what `fip_node.json` holds, as a copy.
        """
        return json.loads(self.to_json())

    @classmethod
    def from_dict(cls, data: Any, folder: str | Path | None = None) -> Node:
        """
        The node that a parsed `fip_node.json` describes. The file may come from anyone: every field is checked.

        Args:
            data (`dict`): the parsed file; unknown keys go to `extra`.
            folder (`str` or `Path`, *optional*): where the model's files lie.

        Returns:
            `Node`

        Raises:
            `InputError`: a missing id or a field of the wrong type.
        """
        folder = None if folder is None else Path(folder)
        where = folder / NODE_FILE if folder else "Node"
        if not isinstance(data, dict):
            raise InputError(f"{where}: holds {_brief(data)}; expected an object.")
        if "id" not in data:
            raise InputError(f"{where}: field 'id' is missing.")
        known = {entry.name for entry in fields(cls)} - {"folder", "source", "extra"}
        extra = {key: value for key, value in data.items() if key not in known}
        # A time of reading would make the same file another node each time it is read.
        values = {"created": "", **{key: value for key, value in data.items() if key in known}}
        return cls(**values, folder=folder, extra=extra)

    @property
    def tasks(self) -> list[Task]:
        """The tasks the node has learned, oldest first, from `protocol["tasks"]`."""
        from ..tasks import Task

        tasks = self.protocol.get("tasks", [])
        if not isinstance(tasks, list):
            raise InputError(f"Node {self.id!r}: field 'protocol.tasks' is {_brief(tasks)}; expected a list.")
        return [Task.from_dict(task) for task in tasks]

    def load_model(self, **kwargs: Any) -> Any:
        """
        Loads the node's model.

        Args:
            kwargs: passed on to `from_pretrained`.

        Returns:
            `PreTrainedModel` or `PeftModel`

        Raises:
            `InputError`: the node lies nowhere (it was never added to a graph).
        """
        from ..models.loading import load_model

        return load_model(self.files(), **kwargs)

    def load_processor(self) -> Any:
        """
        Loads what turns raw inputs into the model's inputs.

        Returns:
            The tokenizer or image processor, or `None` if the node has none.

        Raises:
            `InputError`: the node lies nowhere (it was never added to a graph).
        """
        from ..models.loading import load_processor

        return load_processor(self.files(weights=False))

    def files(self, *, weights: bool = True) -> Path:
        """
        The folder with the node's files. A node on the Hub is downloaded when this is called first; several threads
        may call it.

        Args:
            weights (`bool`, *optional*, defaults to `True`): Whether the weights have to be there too.

        Returns:
            `Path`

        Raises:
            `InputError`: the node lies nowhere (it was never added to a graph).
        """
        if self.folder is not None:
            return self.folder
        if self.source is None:
            raise InputError(f"Node {self.id!r} has no folder: add it to a ModelGraph first.")
        return self.source.fetch(weights=weights)

    @property
    def location(self) -> dict[str, str]:
        """Where the node lies: `{"folder"}`, or `{"repo", "revision"}` on the Hub."""
        if self.source is not None:
            return {"repo": self.source.repo, "revision": self.source.revision}
        return {"folder": str(self.folder)}


def _brief(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
