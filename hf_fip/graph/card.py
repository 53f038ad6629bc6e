"""The README of a node's folder: what the model is, where it comes from, how it is loaded."""

from __future__ import annotations

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
    lines = [f"# {node.id}", "", _origin_sentence(node), ""]
    lines += ["```python", "from hf_fip.models import load_model", "", f'model = load_model("{node.id}")', "```", ""]
    facts = {
        "Euclidean distance to the parent": node.euclidean_distance.get("parent"),
        "Functional distance to the parent": node.functional_distance.get("parent"),
        "Functional distance to the root": node.functional_distance.get("root"),
        "Zero weights": node.sparsity,
        **node.metrics,
    }
    rows = [f"| {name} | {value:.4g} |" for name, value in facts.items() if value is not None]
    if rows:
        lines += ["| Measured | Value |", "|---|---|", *rows, ""]
    for certificate in node.protocol.get("budget", {}).get("held_out", []):
        lines += [f"Held-out inputs: {certificate['message']}", ""]
    return "\n".join(lines)


def write_card(node: Node, folder: Path) -> None:
    """Writes [`node_card`] as the folder's README.md; PEFT's own template is replaced."""
    (folder / "README.md").write_text(node_card(node), encoding="utf-8")


def _origin_sentence(node: Node) -> str:
    if node.parent is None:
        return "The root of a model graph made with hf_fip."
    return (
        f"Made from `{node.parent}` by {node.operator} with hf_fip, {node.step} optimizer steps along the path "
        f"`{node.name}`: a point of a functionally invariant path."
    )
