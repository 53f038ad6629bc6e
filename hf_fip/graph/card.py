"""The README of a node's folder: what the model is, where it comes from, how it is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from .node import Node


def node_card(node: Node) -> str:
    """
    A node's README in Markdown.

    Args:
        node (`Node`): The node; its folder need not exist.

    Returns:
        `str`: the text.
    """
    lines = [f"# {node.id}", "", origin_sentence(node), ""]
    lines += ["```python", "from hf_fip.models import load_model", "", f'model = load_model("{node.id}")', "```", ""]
    rows = [f"| {name} | {value:.4g} |" for name, value in measured(node).items()]
    if rows:
        lines += ["| Measured | Value |", "|---|---|", *rows, ""]
    if scenario := scenario_sentence(node):
        lines += [scenario, ""]
    for message in certificates(node):
        lines += [f"Held-out inputs: {message}", ""]
    return "\n".join(lines)


def write_card(node: Node, folder: Path) -> None:
    """Writes [`node_card`] as the folder's README.md; PEFT's own template is replaced."""
    (folder / "README.md").write_text(node_card(node), encoding="utf-8")


def origin_sentence(node: Node, escape: Callable[[str], str] = str) -> str:
    """What the node was made from, and how, in one sentence; `escape` is applied to what may hold any text."""
    if node.parent is None:
        return "The root of a model graph made with hf_fip."
    made = f"Made from `{node.parent}` by {escape(node.operator)} with hf_fip"
    return f"{made}: {node.step} optimizer steps along the path {escape(node.name)}."


def measured(node: Node) -> dict[str, float]:
    """What was measured of a node: its distances, its sparsity, its metrics."""
    facts = {
        "Euclidean distance to the parent": node.euclidean_distance.get("parent"),
        "Functional distance to the parent": node.functional_distance.get("parent"),
        "Functional distance to the root": node.functional_distance.get("root"),
        "Zero weights": node.sparsity,
        **node.metrics,
    }
    return {name: value for name, value in facts.items() if value is not None and math.isfinite(value)}


def scenario_sentence(node: Node) -> str:
    """In which scenario of continual learning the tasks' metrics were measured; empty for a node of one task."""
    scenario = node.protocol.get("scenario")
    if not isinstance(scenario, str):
        return ""
    given = "" if node.protocol.get("task_id_at_test") else "not "
    told = f"Scenario: {scenario}; the task of an input is {given}given where metrics are measured."
    before = node.protocol.get("measured_before")
    if not isinstance(before, list) or not before:
        return told
    named = ", ".join(map(str, before))
    return f"{told} Metrics of {named} are those of the nodes before it, whose weights these tasks go on using."


def certificates(node: Node) -> list[str]:
    """What held-out inputs say about the budget, in words."""
    budget = node.protocol.get("budget")
    held_out = budget.get("held_out") if isinstance(budget, dict) else None
    entries = held_out if isinstance(held_out, list) else []
    return [str(entry["message"]) for entry in entries if isinstance(entry, dict) and "message" in entry]
