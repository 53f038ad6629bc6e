"""The head of the report: what was run, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_fip.report.budget import KINDS
from hf_fip.report.layout import branches, number, percent


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph

LABEL_POLICIES = {
    "append": "appended: each task has its own output nodes, and no task id is given",
    "shared": "shared: all tasks use the same output nodes",
    "per_task": "per task: each task has its own output nodes, and the task id is given",
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
    source = [dataset] if dataset != name else []
    if isinstance(task.get("classes"), list):
        source.append(f"classes {_words(task['classes'])}")
    return f"{name} ({', '.join(source)})" if source else name


def _label_words(protocol: Mapping[str, Any]) -> str:
    policy = protocol.get("label_policy") or protocol.get("label_space")
    return LABEL_POLICIES.get(policy, policy) if isinstance(policy, str) else ""


def _scenario_words(protocol: Mapping[str, Any]) -> str:
    scenario = protocol.get("scenario")
    return scenario if isinstance(scenario, str) else ""


def _anchor_words(protocol: Mapping[str, Any]) -> str:
    anchors = protocol.get("anchors")
    if not isinstance(anchors, Mapping) or not isinstance(anchors.get("number"), int):
        return _words(anchors or "")
    text = f"{anchors['number']:,} inputs"
    if isinstance(anchors.get("inputs"), int) and anchors["inputs"] > anchors["number"]:
        text += f" (with copies {anchors['inputs']:,})"
    if isinstance(anchors.get("tasks"), list):
        text += f" of {_words(anchors['tasks'])}"
    if isinstance(anchors.get("labels_used"), bool):
        text += " with their labels" if anchors["labels_used"] else " without labels"
    if isinstance(anchors.get("held_out"), int):
        text += f", {anchors['held_out']:,} more held out"
    return text


def _budget_words(protocol: Mapping[str, Any]) -> str:
    report = protocol.get("budget")
    asked = report.get("asked") if isinstance(report, Mapping) else None
    limits = {kind: number(asked.get(kind)) for kind in KINDS} if isinstance(asked, Mapping) else {}
    return ", ".join(f"{KINDS[kind]} at most {percent(limit)}" for kind, limit in limits.items() if limit is not None)


def _by_branch(graph: ModelGraph, words: Callable[[Mapping[str, Any]], str]) -> str:
    """What `words` says of the branches' last nodes; where it differs, with the branches it holds for."""
    said: dict[str, list[str]] = {}
    for branch, node_id in graph.endpoints.items():
        if text := words(graph.nodes[node_id].protocol):
            said.setdefault(text, []).append(branch)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{_words(names)}: {text}" for text, names in said.items())


def facts(graph: ModelGraph) -> list[tuple[str, str]]:
    """Terms and texts of the page's head: size, dates, and the protocol the nodes were made under."""
    nodes = list(graph.nodes.values())
    if not nodes:
        return [("Nodes", "none yet")]
    days = sorted({node.created[:10] for node in nodes if node.created}) or ["unknown"]
    listed = [node.protocol.get("tasks") for node in nodes]
    tasks = dict.fromkeys(_task_words(task) for some in listed if isinstance(some, list) for task in some)
    seeds = dict.fromkeys(str(node.protocol["seed"]) for node in nodes if "seed" in node.protocol)
    names = list(branches(graph))
    found = [
        ("Nodes", f"{len(nodes):,} on {len(names):,} {'branch' if len(names) == 1 else 'branches'}: {_words(names)}"),
        ("Made", f"{days[0]} to {days[-1]} (UTC)" if len(days) > 1 else f"{days[0]} (UTC)"),
        ("Tasks", " → ".join(tasks)),
        ("Scenario", _by_branch(graph, _scenario_words)),
        ("Labels", _by_branch(graph, _label_words)),
        ("Anchors", _by_branch(graph, _anchor_words)),
        ("Budget", _by_branch(graph, _budget_words)),
        ("Seed", _words(list(seeds))),
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
