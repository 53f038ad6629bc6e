"""What was measured of ensembles, kept beside their graph, one file each, and read back for the report."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..graph.files import replace_text
from ..graph.node import is_node_id


if TYPE_CHECKING:
    from . import Ensemble

ENSEMBLES_FOLDER = "ensembles"
FORMAT_VERSION = 1
_NUMBERS = ("mutual_information", "predictive_entropy", "calibration_error")
_TABLES = ("diversity", "attacks", "member_attacks")


@dataclass(frozen=True)
class EnsembleRecord:
    """
    What was measured of an ensemble of nodes.

    Args:
        name (`str`): What it is called; also the name of its file.
        members (`list[str]`): Ids of its nodes.
        dataset (`str`): The data it was measured on.
        examples (`int`): How many of them.
        accuracy (`float`): Of the ensemble.
        member_accuracies (`list[float]`): Of each member, in the order of `members`.
        mutual_information (`float`, *optional*): Mean over the examples, in nats: what the members disagree about.
        predictive_entropy (`float`, *optional*): Mean over the examples, in nats: all uncertainty.
        calibration_error (`float`, *optional*): Expected calibration error, from 0 to 1.
        diversity (`dict[str, float]`, *optional*): Diversity score of each layer, from the input on.
        attacks (`dict[str, float]`, *optional*): Accuracy of the ensemble under attacks, by their names.
        member_attacks (`dict[str, float]`, *optional*): Mean accuracy of the members under the same attacks.

    Raises:
        [`InputError`]: a name that cannot be a file's, fewer than two members, or numbers that are none.
    """

    name: str
    members: list[str]
    dataset: str
    examples: int
    accuracy: float
    member_accuracies: list[float]
    mutual_information: float | None = None
    predictive_entropy: float | None = None
    calibration_error: float | None = None
    diversity: dict[str, float] = field(default_factory=dict)
    attacks: dict[str, float] = field(default_factory=dict)
    member_attacks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_node_id(self.name):
            raise InputError(f"name={self.name!r}: give 1 to 96 of A-Z a-z 0-9 . _ - without a leading dot.")
        if len(self.members) < 2 or len(self.members) != len(self.member_accuracies):
            raise InputError(
                f"members: {len(self.members)} with {len(self.member_accuracies)} member_accuracies; give two members "
                "or more, and one accuracy for each."
            )
        numbers = [self.accuracy, *self.member_accuracies]
        numbers += [number for name in _NUMBERS if (number := getattr(self, name)) is not None]
        numbers += [number for name in _TABLES for number in getattr(self, name).values()]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise InputError(f"ensemble {self.name!r}: {number!r} is no finite number.")


@torch.no_grad()
def measure_ensemble(
    ensemble: Ensemble, batches: Iterable[Mapping[str, Tensor]], *, name: str, dataset: str
) -> EnsembleRecord:
    """
    Accuracy, uncertainty and diversity of an ensemble and its members on labelled data.

    Args:
        ensemble ([`~hf_fip.ensembles.Ensemble`]): Made of nodes, on the device of the batches.
        batches (iterable of `Mapping[str, torch.Tensor]`):
            What its members read, with `labels`; the layers' diversity is taken on the first batch.
        name (`str`): What the ensemble is called.
        dataset (`str`): What the data are called.

    Returns:
        [`EnsembleRecord`]

    Raises:
        [`InputError`]: no batch, or an ensemble that does not know its nodes.
    """
    from . import (
        expected_calibration_error,
        layer_diversity,
        mutual_information,
        predictive_entropy,
    )

    if len(ensemble.config.nodes) != len(ensemble.members):
        raise InputError(f"ensemble: {len(ensemble.config.nodes)} of its members are nodes; use Ensemble.from_nodes.")
    found, labels, diversity = [], [], {}
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if not found and len(batch["labels"]) >= 4:
            diversity = layer_diversity(ensemble.members, inputs)
        found.append(ensemble.member_log_probabilities(**inputs).cpu())
        labels.append(batch["labels"].cpu())
    if not found:
        raise InputError("batches: there is none; give at least one with inputs and labels.")
    answers, right = torch.cat(found, 1), torch.cat(labels)
    mean = answers.double().exp().mean(0)
    return EnsembleRecord(
        name=name,
        members=list(ensemble.config.nodes),
        dataset=dataset,
        examples=len(right),
        accuracy=_share(mean.argmax(-1) == right),
        member_accuracies=[_share(answer.argmax(-1) == right) for answer in answers],
        mutual_information=float(mutual_information(answers).mean()),
        predictive_entropy=float(predictive_entropy(answers).mean()),
        calibration_error=expected_calibration_error(mean, right),
        diversity=diversity,
    )


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def save_ensemble(folder: str | os.PathLike[str], record: EnsembleRecord) -> Path:
    """
    Writes a record as `FOLDER/ensembles/<name>.json`, in one step; an earlier one of this name is replaced.

    Args:
        folder (`str` or `Path`): The graph's folder (`graph.folder`).
        record ([`EnsembleRecord`]): The measurements.

    Returns:
        `Path`: The file.
    """
    path = Path(folder, ENSEMBLES_FOLDER, f"{record.name}.json")
    data = {"format_version": FORMAT_VERSION, **asdict(record)}
    replace_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
    return path


def load_ensembles(folder: str | os.PathLike[str] | None) -> list[EnsembleRecord]:
    """
    The readable records beside a graph. The files may come from anyone; nothing in them is trusted.

    Args:
        folder (`str` or `Path`, *optional*): The graph's folder; `None` for a graph without one.

    Returns:
        `list[EnsembleRecord]`: in the order of the files' names; what is no record is left out.
    """
    if folder is None:
        return []
    found = [_read(path) for path in sorted(Path(folder, ENSEMBLES_FOLDER).glob("[!.]*.json"))]
    return [record for record in found if record is not None]


def _read(path: Path) -> EnsembleRecord | None:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        return EnsembleRecord(
            name=str(data["name"]),
            members=[str(member) for member in data["members"]],
            dataset=str(data["dataset"]),
            examples=int(data["examples"]),
            accuracy=data["accuracy"],
            member_accuracies=list(data["member_accuracies"]),
            **{name: data.get(name) for name in _NUMBERS},
            **{name: {str(key): value for key, value in (data.get(name) or {}).items()} for name in _TABLES},
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError):
        return None
