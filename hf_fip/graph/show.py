"""The model graph as text for people and as plain data for programs."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any

from .family import Family
from .node import Node


_MAX_TEXT = 200
# Control sequences, then the strings that open with OSC, DCS, SOS, PM or APC, then the short escapes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)


def plain_text(value: Any, length: int = _MAX_TEXT) -> str:
    """
    Text from an untrusted file, safe to show in a terminal.

    Args:
        value (`Any`): shown as `str` shows it.
        length (`int`, *optional*, defaults to 200): most characters shown.

    Returns:
        `str`: one line without terminal escapes, control, formatting (such as right-to-left) or unassigned characters.
    """
    text = _ESCAPES.sub("", str(value)[: 10 * length])
    text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def render_tree(graph: Family) -> str:
    """
    The graph as a tree with the nodes' metrics in columns. A branch keeps its column however long it is; what splits
    off is indented.

    Args:
        graph (`ModelGraph`): shown as it was read; strings in it are stripped of terminal escapes.

    Returns:
        `str`: lines without a final line break.
    """
    if not len(graph):
        return f"{plain_text(graph.place)}: no nodes yet"
    table = _table(graph)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{plain_text(graph.place)}: {_count(graph, 'node')}, {_count(graph.endpoints, 'branch')}", ""]
    for row in table:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    if note := _note(graph):
        lines += ["", note]
    return "\n".join(lines)


def describe(graph: Family) -> dict[str, Any]:
    """
    The graph as plain data, for `--json`.

    Args:
        graph (`ModelGraph`): the graph.

    Returns:
        `dict`: `graph` (its folder or Collection), `root` (a node's id, `None` in an empty graph), `endpoints` (branch
        to id), `nodes` (as `fip_node.json` has them, and `folder`, or on the Hub `repo` and `revision`) and `edges`
        (source, target, operator, euclidean, functional). Strict JSON can hold it.
    """
    return {
        "graph": graph.place,
        "root": graph.root.id if len(graph) else None,
        "endpoints": graph.endpoints,
        "nodes": [{**node.to_dict(), **node.location} for node in graph],
        "edges": [asdict(edge) for edge in graph.edges],
    }


def _table(graph: Family) -> list[list[str]]:
    nodes = list(graph)
    metrics = list(dict.fromkeys(key for node in nodes for key in node.metrics))
    columns: dict[str, list[float | None]] = {"step": [node.step for node in nodes]}
    columns |= {plain_text(key): [node.metrics.get(key) for node in nodes] for key in metrics}
    measured = {
        "functional": [node.functional_distance["root"] for node in nodes],
        "euclidean": [node.euclidean_distance["root"] for node in nodes],
        "sparsity": [node.sparsity for node in nodes],
    }
    columns |= {title: values for title, values in measured.items() if any(values)}
    place = {node.id: index for index, node in enumerate(nodes)}
    table = [["node", "branch", *columns]]
    for prefix, node in _tree(graph):
        cells = [_number(values[place[node.id]]) for values in columns.values()]
        table.append([prefix + node.id, plain_text(node.name), *cells])
    return table


def _tree(graph: Family) -> list[tuple[str, Node]]:
    """Nodes from top to bottom with what is drawn before each. Paths are long: no recursion."""
    tops = [node for node in graph if node.parent not in graph]
    stack = [("", "", node) for node in reversed(tops)]
    rows = []
    while stack:
        first, rest, node = stack.pop()
        rows.append((first, node))
        children = graph.children(node)
        if len(children) == 1 and children[0].name == node.name:
            stack.append((rest, rest, children[0]))
            continue
        for child in reversed(children):
            last = child is children[-1]
            stack.append((rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), child))
    return rows


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _count(things: Any, noun: str) -> str:
    plural = noun if len(things) == 1 else noun + ("es" if noun.endswith("h") else "s")
    return f"{len(things)} {plural}"


def _note(graph: Family) -> str:
    named = [node.functional_distance for node in graph if node.functional_distance["root"] is not None]
    kinds = dict.fromkeys(
        ", ".join(plain_text(distance[key]) for key in ("name", "unit") if distance.get(key)) for distance in named
    )
    kinds.pop("", None)
    notes = [f"functional: distance to the root ({'; '.join(kinds)})"] if kinds else []
    scenarios: dict[str, list[str]] = {}
    for branch, end in graph.endpoints.items():
        if scenario := graph.nodes[end].protocol.get("scenario"):
            scenarios.setdefault(plain_text(scenario), []).append(plain_text(branch))
    return "\n".join([*notes, *(f"{scenario}: {', '.join(names)}" for scenario, names in scenarios.items())])
