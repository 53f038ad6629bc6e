"""What `hf-fip push`, `pull` and `show` do with the Hub, and what they print."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..graph import ModelGraph, describe
from ..graph.show import plain_text
from .naming import looks_like_hub_id
from .plan import readable_size
from .pulling import pull
from .remote import HubGraph
from .retry import HubError


def open_graph(name: str) -> ModelGraph:
    """
    The graph that a user names.

    Args:
        name (`str`): a local folder, the output folder of a run, or else a Collection or a model on the Hub.

    Raises:
        `InputError`: none of these.
        `HubError`: there is no such folder, and the Hub cannot be reached.
    """
    path = Path(name).expanduser()
    if (path / "graph").is_dir():
        return ModelGraph.load(path / "graph")
    if path.exists() or not ("://" in name or ("/" in name and looks_like_hub_id(name))):
        return ModelGraph.load(name)
    try:
        return HubGraph.open(name)
    except InputError as error:
        raise InputError(f"folder {name!r} does not exist, and on the Hub: {error}") from error
    except HubError as error:
        raise HubError(f"folder {name!r} does not exist, and the Hub: {error}", unreachable=True) from error


def run_push(graph: ModelGraph, args: argparse.Namespace) -> tuple[str, bool]:
    """
    Publishes a graph.

    Args:
        graph (`ModelGraph`): a local graph.
        args (`argparse.Namespace`): the command's arguments.

    Returns:
        `tuple[str, bool]`: the text for standard output, and whether every node is published.
    """
    result = graph.push_to_hub(
        args.namespace,
        collection=args.collection,
        private=args.private,
        select=args.select,
        layout=args.layout,
        dry_run=args.dry_run,
    )
    return json.dumps(result) if args.json else _push_summary(result), not result["failed"]


def run_pull(args: argparse.Namespace) -> str:
    """
    Downloads a family.

    Args:
        args (`argparse.Namespace`): the command's arguments.

    Returns:
        `str`: the text for standard output.
    """
    remote = HubGraph.open(args.source)
    graph = pull(remote, args.folder)
    if args.json:
        return json.dumps({"collection": remote.place, **describe(graph), "unreadable": remote.unreadable})
    return f"graph       {plain_text(graph.place)}  ({len(graph)} nodes from {plain_text(remote.place)})"


def _push_summary(result: dict[str, Any]) -> str:
    lines = []
    if result.get("dry_run"):
        lines += [f"{node:<24}  {result['repos'][node]}" for node in result["pending"]]
        size = readable_size(result["bytes"])
        lines += ["", f"would publish  {len(result['pending'])} nodes, {size}, about {result['requests']} requests"]
    else:
        lines += [f"pushed      {len(result['pushed'])}"]
    lines += [f"skipped     {len(result['skipped'])}  (published before)"] if result["skipped"] else []
    lines += [f"failed      {node}: {reason}" for node, reason in result["errors"].items()]
    lines += [f"collection  {result['url']}"] if result["url"] else []
    return "\n".join(lines)
