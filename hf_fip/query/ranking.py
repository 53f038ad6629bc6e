"""Losses of a race, or of the full run, as a ranking."""

from __future__ import annotations

from typing import Any

import numpy as np

from .candidates import Candidate
from .data import Examples
from .estimates import estimate_from_part
from .metrics import Metric
from .racing import Race


def ranking(found: list[Candidate], ran: Race, metric: Metric, examples: Examples) -> list[dict[str, Any]]:
    """
    The models that were scored, best first: those that saw all examples, then those that a race dropped, by estimates
    (see [`~hf_fip.query.estimates.estimate_from_part`]) of what they would have had on all examples.

    Args:
        found (`list[Candidate]`): the models.
        ran (`Race`): their losses.
        metric (`Metric`): what the losses are.
        examples (`Examples`): the data.

    Returns:
        `list[dict]`: `node`, `branch`, `value`, `samples`, `standard_error`; after a race `dropped_by`.
    """
    truth = None
    if metric.kind == "predictions":
        truth = np.array([examples.classes.index(label) for label in examples.labels])
    rows = []
    for model, candidate in enumerate(found):
        seen = int(ran.samples[model])
        if ran.dropped_by[model] == "failed":
            continue
        own = (ran.loss[model, :seen], ran.weight[model, :seen])
        if seen == len(examples):
            value, error = metric.value(*own, truth, len(examples.classes))
        else:
            value, error = metric.from_ratio(*estimate_from_part(*own, ran.loss[ran.winner], ran.weight[ran.winner]))
        row = {"node": candidate.node.id, "branch": candidate.node.name, "value": value}
        row |= {"samples": seen, "standard_error": error}
        rows.append(row | ({"dropped_by": ran.dropped_by[model]} if len(ran.looks) > 1 else {}))
    sign = -1 if metric.greater_is_better else 1
    return sorted(rows, key=lambda row: (row["samples"] < len(examples), sign * row["value"]))
