"""
What pushing a family costs: requests per node, and the share of the time in which bytes are on the wire.

    python scripts/benchmarks/push.py [--json] [--nodes 4 8] [--megabytes 16] [--megabits 20] [--latency 0.1]

The Hub is the server of this checkout's tests, on this machine, behind a link of `--megabits` per second on which each
request waits for `--latency` seconds more; the client is the real one. `hf-fip push` runs in a process of its own, and
the time counts from its first request to its last answer. `wire_share` is the time that all bytes take at the speed of
the link, divided by that time: 1 would be a push that never keeps the link waiting. It grows with the size of a node;
`wait_per_node`, the rest of the time in units of the latency, does not. `again` pushes what is already there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hf_fip.graph import ModelGraph
from tests.hub.commands import start
from tests.hub.masked_family import masked_family
from tests.hub.server import Entry, HubServer


ARGUMENTS = ("--namespace", "tester", "--collection", "benchmark", "--private", "--json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--nodes", nargs="+", type=int, default=[4, 8], help="sizes of the families")
    parser.add_argument("--megabytes", type=float, default=16.0, help="weights of a node")
    parser.add_argument("--megabits", type=float, default=20.0, help="speed of the link, per second; 0: unlimited")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds that each request waits")
    options = parser.parse_args()
    rows = []
    for nodes in options.nodes:
        with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
            hub.link.speed = options.megabits * 1e6 / 8 or None
            hub.link.latency = options.latency
            graph = masked_family(
                Path(folder) / "graph", points=nodes - 1, branches=("fip",), **_size(options.megabytes)
            )
            for what in ("first", "again"):
                rows.append(_row(hub, graph, what, options.latency))
    result = {
        "benchmark": "push",
        "protocol": {name: getattr(options, name) for name in ("megabytes", "megabits", "latency")},
        "rows": rows,
    }
    sys.stdout.write((json.dumps(result) if options.json else _table(rows)) + "\n")


def _size(megabytes: float) -> dict[str, int]:
    """A BERT whose weights have about this size: nearly all of them in word embeddings of width 64."""
    return {"hidden_size": 64, "intermediate_size": 64, "vocab_size": max(64, int(megabytes * 1e6 / 4 / 64))}


def _row(hub: HubServer, graph: ModelGraph, what: str, latency: float) -> dict:
    hub.requests.clear()
    hub.link.busy = 0.0
    process = start(hub, graph.folder.parent / "home", "push", graph.folder, *ARGUMENTS)
    output, errors = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, output, errors)
    entries = list(hub.requests)
    seconds = max((entry.started + entry.seconds for entry in entries), default=0.0)
    seconds -= min((entry.started for entry in entries), default=0.0)
    nodes = len(graph)
    return {
        "nodes": nodes,
        "push": what,
        "requests": len(entries),
        "requests_per_node": round(len(entries) / nodes, 2),
        "requests_by_kind": _by_kind(entries),
        "megabytes": round(sum(entry.received + entry.sent for entry in entries) / 1e6, 2),
        "wire_share": round(hub.link.busy / seconds, 3) if seconds and hub.link.speed else None,
        "wait_per_node": round((seconds - hub.link.busy) / nodes / latency, 1) if latency else None,
    }


def _by_kind(entries: list[Entry]) -> dict[str, int]:
    kinds = ("repos/create", "validate-yaml", "preupload", "objects/batch", "/verify", "/lfs/", "/commit/", "/items",
             "/collections", "whoami", "/revision/", "/tree/", "/refs", "/tag/", "/api/models")  # fmt: skip
    counts: dict[str, int] = {}
    for entry in entries:
        name = f"{entry.method} {next((kind.strip('/') for kind in kinds if kind in entry.path), 'other')}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _table(rows: list[dict]) -> str:
    lines = ["| nodes | push | requests per node | MB | bytes on the wire | waiting per node, in round trips |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        share = "" if row["wire_share"] is None else f"{row['wire_share']:.0%} of the time"
        cells = (row["nodes"], row["push"], row["requests_per_node"], row["megabytes"], share, row["wait_per_node"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
