"""The head of the report: what was run, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_fip.report.layout import branches, percent


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph

LABEL_SPACES = {
    "append": "appended: each task has its own output nodes, and no task id is given",
    "shared": "shared: all tasks use the same output nodes",
}
MOST_ITEMS = 8


def title_and_description(graph: ModelGraph, recipe: str | None) -> tuple[str, str]:
    """The recipe's name and description; without a recipe, the name of the folder that holds the graph."""
    import yaml

    try:
        data = yaml.safe_load(recipe) if recipe else None
    except yaml.YAMLError:
        data = None
    data = data if isinstance(data, Mapping) else {}
    folder = graph.folder.resolve()
    name = data.get("name") or (folder.parent.name if folder.name == "graph" else folder.name)
    return str(name or "Model graph"), str(data.get("description") or "")


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _words(value: Any) -> str:
    """A JSON value as a person would write it down."""
    if isinstance(value, Mapping):
        known = {str(key).replace("_", " "): item for key, item in value.items() if item is not None}
        return ", ".join(f"{key} {_words(item)}" for key, item in known.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value[:MOST_ITEMS]) + (", …" if len(value) > MOST_ITEMS else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _task_words(task: Any) -> str:
    if not isinstance(task, Mapping):
        return str(task)
    name, dataset = str(task.get("name") or ""), str(task.get("dataset") or "")
    return f"{name} ({dataset})" if name and dataset and name != dataset else name or dataset


def _asked_words(report: Any) -> str | None:
    asked = report.get("asked") if isinstance(report, Mapping) else None
    if not isinstance(asked, Mapping):
        return None
    words = {"distance": "functional distance at most {}", "disagreement": "changed predictions at most {}"}
    parts = [
        text.format(percent(float(value)))
        for kind, text in words.items()
        for value in (asked.get(kind), asked.get(f"{kind}_budget"))
        if isinstance(value, (int, float))
    ]
    return ", ".join(parts) or None


def facts(graph: ModelGraph) -> list[tuple[str, str]]:
    """Terms and texts of the page's head: size, dates, and the protocol the nodes were made under."""
    nodes = list(graph.nodes.values())
    if not nodes:
        return [("Nodes", "none yet")]
    protocols = [node.protocol for node in nodes]
    days = sorted({node.created[:10] for node in nodes})
    tasks = [task for protocol in protocols if isinstance(listed := protocol.get("tasks"), list) for task in listed]
    spaces = _distinct(protocol.get("label_space") for protocol in protocols)
    found = [
        ("Nodes", f"{len(nodes):,} on {len(branches(graph))} branches: {', '.join(branches(graph))}"),
        ("Made", f"{days[0]} to {days[-1]} (UTC)" if len(days) > 1 else f"{days[0]} (UTC)"),
        ("Tasks", " → ".join(_distinct(_task_words(task) for task in tasks))),
        ("Labels", "; ".join(LABEL_SPACES.get(space, space) for space in spaces)),
        ("Anchors", "; ".join(_distinct(_words(protocol.get("anchors") or "") for protocol in protocols))),
        ("Budget", "; ".join(_distinct(_asked_words(protocol.get("budget")) for protocol in protocols))),
        ("Seed", ", ".join(_distinct(protocol.get("seed") for protocol in protocols))),
    ]
    return [(term, text) for term, text in found if text]


def versions(graph: ModelGraph) -> str:
    """The versions of the libraries that made the nodes."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        for name, version in node.versions.items():
            if str(version) not in found.setdefault(str(name), []):
                found[str(name)].append(str(version))
    made = ", ".join(f"{name} {' / '.join(values)}" for name, values in found.items())
    return f"Made with {made}." if made else "Made with hf_fip."
