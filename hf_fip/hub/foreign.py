"""Models on the Hub that hf_fip did not make, described as nodes by what their cards say."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelInfo

from ..graph import Node
from ..graph.node import Source, is_node_id
from ..graph.show import plain_text
from .card import PIPELINE_TAGS


_MOST_METRICS = 200
_TASKS = {tag: task for task, tag in PIPELINE_TAGS.items()}


def foreign_ids(repos: list[str]) -> dict[str, str]:
    """
    Ids for nodes that have none: the repositories' names, with the owner before it where two have one name.

    Args:
        repos (`list[str]`): the repositories.

    Returns:
        `dict[str, str]`: repository to id.
    """
    names = Counter(repo.split("/")[-1].lower() for repo in repos)
    ids = {}
    for repo in repos:
        name = repo.split("/")[-1]
        name = name if names[name.lower()] == 1 else repo.replace("/", ".")
        ids[repo] = name if is_node_id(name) else hashlib.blake2b(repo.encode(), digest_size=8).hexdigest()
    return ids


def foreign_node(info: ModelInfo, ids: Mapping[str, str], source: Source) -> Node:
    """
    Args:
        info (`ModelInfo`): what the Hub says of the repository.
        ids (`Mapping[str, str]`): repository to node id, for all models around it.
        source (`Source`): the repository's files.

    Returns:
        `Node`: its parent is the first of the card's `base_model` that is among `ids`; its metrics are the card's
        results.
    """
    card = info.card_data.to_dict() if info.card_data else {}
    bases = card.get("base_model")
    bases = [base for base in (bases if isinstance(bases, list) else [bases]) if isinstance(base, str)]
    parent = next((ids[base] for base in bases if base in ids and base != info.id), None)
    relation = card.get("base_model_relation")
    return Node(
        id=ids[info.id],
        parent=parent,
        name=ids[info.id],
        operator=plain_text(relation) if isinstance(relation, str) else "finetune" if parent else "origin",
        metrics=_metrics(info),
        task=_TASKS.get(info.pipeline_tag or "", "other"),
        protocol={"base_model": bases} if bases else {},
        created=info.created_at.isoformat() if info.created_at else "",
        source=source,
    )


def _metrics(info: ModelInfo) -> dict[str, float]:
    results: list[Any] = (info.card_data.eval_results if info.card_data else None) or []
    found = {}
    for result in results[:_MOST_METRICS]:
        value = result.metric_value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{plain_text(result.dataset_name, 80)}/{plain_text(result.metric_type, 40)}"] = float(value)
    return found
