"""The model card of a published node: its metadata for the Hub's model tree and search, and a text for people."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..graph import Node
from ..graph.card import certificates, measured, origin_sentence
from ..graph.show import plain_text
from ..models.loading import AUTO_CLASSES
from .naming import looks_like_hub_id


PIPELINE_TAGS = {
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "fill-mask": "fill-mask",
    "text-generation": "text-generation",
    "image-classification": "image-classification",
}
PAPER = "https://arxiv.org/abs/2205.00334"
_TAGS = {
    "ContinualLearning": "continual-learning",
    "Compression": "compression",
    "Diversification": "diversification",
}
_SHOWN_LINEAGE = 9


@dataclass(frozen=True)
class Address:
    """
    Where a node lies on the Hub.

    Args:
        repo (`str`): the repository.
        revision (`str`, *optional*): the tag, where a repository holds a path.
    """

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class CardContext:
    """
    What a card says of the family around its node.

    Args:
        title (`str`): title of the Collection.
        site (`str`): what links begin with.
        layout (`str`): `"repo"` or `"revision"`.
        addresses (`Mapping[str, Address]`): node id to its place, for all published nodes.
        collection (`str`, *optional*): slug of the Collection.
        foundation (`str`, *optional*): Hub id of the model the root was made from.
        license (`dict`, *optional*): the licence of that model: `license`, and `license_name`, `license_link` if any.
    """

    title: str
    site: str
    layout: str
    addresses: Mapping[str, Address]
    collection: str | None = None
    foundation: str | None = None
    license: Mapping[str, str] = field(default_factory=dict)


def model_card(
    node: Node,
    lineage: list[Node],
    context: CardContext,
    adapter_base: str | None = None,
    needs_hf_fip: bool = False,
) -> str:
    """
    The README of a published node. It depends on the node and its lineage only, not on what was recorded later, so a
    card never changes while its path grows.

    Args:
        node (`Node`): as its published `fip_node.json` describes it.
        lineage (`list[Node]`): the published nodes from the root to this one, both included.
        context (`CardContext`): the family around it.
        adapter_base (`str`, *optional*): for an adapter, the Hub id of the model it is loaded on.
        needs_hf_fip (`bool`, *optional*, defaults to `False`):
            Whether transformers loads the files only once hf_fip is imported (its architectures and sparse formats).

    Returns:
        `str`: Markdown with YAML in front.
    """
    data = card_data(node, lineage, context, adapter_base)
    address = context.addresses[node.id]
    parts = [
        f"# {address.repo.split('/')[-1]}",
        _introduction(node, context),
        _picture(lineage),
        _loading(node, context, adapter_base is not None, needs_hf_fip),
        _lineage_table(lineage, context),
        _facts(node),
        _recipe(node),
        f"The method: Raghavan et al., *Engineering flexible machine learning systems by traversing functionally "
        f"invariant paths*, Nature Machine Intelligence, 2024 ([arXiv]({PAPER})).",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def card_data(node: Node, lineage: list[Node], context: CardContext, adapter_base: str | None = None) -> ModelCardData:
    """
    The metadata of a card.

    Args:
        node, lineage, context, adapter_base: see [`model_card`].

    Returns:
        `ModelCardData`: `base_model` is the parent's repository (for an adapter the model it is loaded on, for the
        root the model it was made from, if that lies on the Hub), never a local path.
    """
    parent = context.addresses.get(node.parent or "")
    base = adapter_base or (parent.repo if parent else context.foundation)
    here = context.addresses[node.id]
    if base == here.repo and adapter_base is None:
        # A path's repository cannot be its own base: that of its first node is.
        outside = (context.addresses[ancestor.id].repo for ancestor in reversed(lineage))
        base = next((repo for repo in outside if repo != here.repo), context.foundation)
    tags = ["fip", "functionally-invariant-path", "hf_fip"]
    tags += [_TAGS[node.operator]] if node.operator in _TAGS else []
    tags += ["sparse"] if node.sparsity >= 0.05 else []
    results = _eval_results(node)
    return ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter_base else "finetune",
        library_name="peft" if adapter_base else "transformers",
        pipeline_tag=PIPELINE_TAGS.get(node.task),
        datasets=_datasets(node) or None,
        tags=tags,
        model_name=here.repo.split("/")[-1] if results else None,
        eval_results=results or None,
        fip=_fip_block(node, lineage, context),
        **context.license,
    )


def note(node: Node) -> str:
    """The note of a node's item in the Collection: where it stands on its path, and its metrics."""
    head = "the root" if node.parent is None else f"{node.name}, {node.operator}, step {node.step}"
    facts = [f"{plain_text(name)} {value:.4g}" for name, value in node.metrics.items() if math.isfinite(value)]
    distance = node.functional_distance["root"]
    facts += [f"functional distance {distance:.3g}"] if distance is not None else []
    facts += [f"sparsity {node.sparsity:.3g}"] if node.sparsity else []
    text = plain_text(head) + (": " + ", ".join(facts) if facts else "")
    return text if len(text) <= 500 else text[:499] + "…"


def _eval_results(node: Node) -> list[EvalResult]:
    task = PIPELINE_TAGS.get(node.task, "other")
    sources = _dataset_ids(node)
    found = []
    for key, value in node.metrics.items():
        if math.isfinite(value):
            dataset, _, metric = plain_text(key).rpartition("/")
            name = dataset or "evaluation"
            found.append(
                EvalResult(
                    task_type=task,
                    dataset_type=sources.get(name, name),
                    dataset_name=name,
                    metric_type=metric,
                    metric_name=metric,
                    metric_value=float(f"{value:.6g}"),
                )
            )
    return found


def _dataset_ids(node: Node) -> dict[str, str]:
    """Name of a task to the Hub id of its data set."""
    tasks = node.protocol.get("tasks")
    found = {}
    for task in tasks if isinstance(tasks, list) else []:
        name, source = (task.get("name"), task.get("dataset")) if isinstance(task, dict) else (None, None)
        if isinstance(name, str) and looks_like_hub_id(source) and not Path(source).exists():
            found[name] = source
    return found


def _datasets(node: Node) -> list[str]:
    return list(dict.fromkeys(source for source in _dataset_ids(node).values() if "/" in source))


def _fip_block(node: Node, lineage: list[Node], context: CardContext) -> dict[str, Any]:
    root = lineage[0]
    protocol = node.protocol
    tasks = protocol.get("tasks")
    names = [task.get("name") for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    block = {
        "family": context.title,
        "collection": context.collection,
        "layout": context.layout,
        "node": node.id,
        "root": root.id,
        "root_repo": str(context.addresses[root.id]),
        "parent": node.parent,
        "parent_repo": str(context.addresses[node.parent]) if node.parent in context.addresses else None,
        "branch": node.name,
        "operator": node.operator,
        "step": node.step,
        "sparsity": node.sparsity,
        "functional_distance": node.functional_distance,
        "euclidean_distance": node.euclidean_distance,
        "protocol": {
            "tasks": names or None,
            "scenario": protocol.get("scenario"),
            "seed": protocol.get("seed"),
            "method": protocol.get("method"),
        },
        "versions": node.versions,
    }
    return _without_empty(block)


def _without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    found = {key: _without_empty(entry) for key, entry in value.items()}
    return {key: entry for key, entry in found.items() if entry is not None and entry != {}}


def _introduction(node: Node, context: CardContext) -> str:
    parent = context.addresses.get(node.parent or "")
    text = origin_sentence(node, markdown)
    if parent is not None:
        where = parent.repo if parent.revision is None else f"{parent.repo}/tree/{parent.revision}"
        text += f" The model it was made from: [{parent}]({context.site}/{where})."
    if node.parent is None and context.foundation:
        text += f" It was made from [{context.foundation}]({context.site}/{context.foundation})."
    if context.collection:
        link = f"{context.site}/collections/{context.collection}"
        text += f" The whole family: [{markdown(context.title)}]({link})."
    return text


def _picture(lineage: list[Node]) -> str:
    """The path to the node as a diagram, which the Hub draws."""
    if len(lineage) < 2:
        return ""
    shown: list[Node | None] = list(lineage)
    if len(shown) > _SHOWN_LINEAGE:
        shown = [*lineage[:2], None, *lineage[-(_SHOWN_LINEAGE - 3) :]]
    names = [f'n{i}["{node.id}"]' if node else f"n{i}((…))" for i, node in enumerate(shown)]
    lines = [f"    {names[0]}"]
    for i, node in enumerate(shown[1:], 1):
        operator = re.sub(r"[^\w .-]", "", plain_text(node.operator)) if node else ""
        lines.append(f'    n{i - 1} -->|"{operator}"| {names[i]}' if operator else f"    n{i - 1} --> {names[i]}")
    return "\n".join(["```mermaid", "graph LR", *lines, "```"])


def _loading(node: Node, context: CardContext, is_adapter: bool, needs_hf_fip: bool) -> str:
    address = context.addresses[node.id]
    arguments = json.dumps(address.repo) + (f", revision={json.dumps(address.revision)}" if address.revision else "")
    auto = AUTO_CLASSES.get(node.task)
    lines = ["from hf_fip.models import load_model, load_processor", ""]
    lines += [f"model = load_model({arguments})", f"processor = load_processor({arguments})"]
    if auto is not None and not is_adapter:
        lines += ["", "# or, with transformers" + ("" if needs_hf_fip else " alone")]
        lines += ["import hf_fip.models  # registers how the files are read"] if needs_hf_fip else []
        lines += [
            f"from transformers import {auto.__name__}",
            "",
            f"model = {auto.__name__}.from_pretrained({arguments})",
        ]
    if context.collection:
        lines += ["", "# the family around it", "from hf_fip import ModelGraph", ""]
        lines += [f"graph = ModelGraph.from_hub({json.dumps(context.collection)})", f'node = graph["{node.id}"]']
    return "\n".join(["## How to load it", "", "```python", *lines, "```"])


def _lineage_table(lineage: list[Node], context: CardContext) -> str:
    shown = lineage if len(lineage) <= 2 * _SHOWN_LINEAGE else [lineage[0], *lineage[-2 * _SHOWN_LINEAGE + 1 :]]
    metrics = list(dict.fromkeys(key for node in shown for key in node.metrics))
    columns = ["node", "step", *(markdown(key) for key in metrics), "functional distance", "zero weights"]
    rows = []
    for node in shown:
        address = context.addresses[node.id]
        where = address.repo if address.revision is None else f"{address.repo}/tree/{address.revision}"
        values = [node.metrics.get(key) for key in metrics] + [node.functional_distance["root"], node.sparsity]
        cells = ["–" if value is None or math.isnan(value) else f"{value:.4g}" for value in values]
        rows.append([f"[{node.id}]({context.site}/{where})", str(node.step), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(["## The path to this model", "", *lines])


def _facts(node: Node) -> str:
    told = {"Zero weights", *node.metrics}
    rows = [f"| {markdown(name)} | {value:.4g} |" for name, value in measured(node).items() if name not in told]
    held = [f"Held-out inputs: {markdown(message)}" for message in certificates(node)]
    table = ["## What was measured", "", "| Measured | Value |", "|---|---|", *rows] if rows else []
    return "\n".join(table + [""] * bool(table and held) + held)


def _recipe(node: Node) -> str:
    """The operator with its parameters: what to give it to make this node again."""
    recipe = {"operator": node.operator, "steps": node.step, "parameters": node.parameters, "versions": node.versions}
    text = yaml.safe_dump(_without_empty(recipe), sort_keys=False, allow_unicode=True, width=100)
    text = re.sub("`{3,}", "'''", "\n".join(_printable(line) for line in text.splitlines()))
    return f"## How it was made\n\n```yaml\n{text}\n```"


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def markdown(text: Any) -> str:
    """Text from a node inside Markdown: it can neither end a table's cell nor open a link or HTML."""
    escaped = html.escape(plain_text(text, 1000), quote=False)
    return "".join(f"\\{c}" if c in "|[]`*\\" else c for c in escaped)
