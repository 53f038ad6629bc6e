"""The notebooks run from top to bottom, at small size."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from hf_fip import ModelGraph
from tests.hub.server import HubServer
from tests.testing_utils import ROOT


NOTEBOOKS = ROOT / "notebooks"


def run(name: str, folder: Path, environment: Mapping[str, str], *, epochs: int, **hooks: Any) -> str:
    """Runs a notebook in `folder`, in this environment; returns what its cells printed and showed."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}, **hooks)
    client.execute(env={**environment, "EPOCHS": str(epochs), "OMP_NUM_THREADS": "1"})
    return "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path):
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


def test_the_quickstart_reaches_its_report(tmp_path: Path):
    printed = run("quickstart.ipynb", tmp_path, os.environ, epochs=2)
    assert "naive" in printed and "report.html" in printed


@pytest.mark.slow
def test_forgetting_is_controlled_certified_and_priced(tmp_path: Path):
    printed = run("forgetting_control.ipynb", tmp_path, os.environ, epochs=1)
    assert "held-out inputs would do" in printed, "what is not certified says so, and why"
    assert printed.count("application/vnd.plotly") == 2
    graph = ModelGraph.load(tmp_path / "control" / "graph")
    assert list(graph.endpoints) == ["base", "naive", "fip", "fip-0.01", "fip-0.3", "er", "derpp"]
    assert graph["naive"].metrics["low/accuracy"] < 0.2 < graph["fip-0.01"].metrics["low/accuracy"]
    stream = ModelGraph.load(tmp_path / "stream" / "graph")
    assert [len(node.tasks) for node in stream] == [1, 2, 3, 2, 3]
    assert stream["fip"].protocol["scenario"] == "task-incremental"


@pytest.mark.slow
def test_compression_and_learning_compose_in_both_orders(tmp_path: Path):
    printed = run("compress_then_learn_or_learn_then_compress.ipynb", tmp_path, os.environ, epochs=1)
    found = re.findall(r"'functional': ([\d.]+), 'changed': [\d.]+, 'euclidean': ([\d.]+)", printed)
    assert len(found) == 2 and all(float(value) > 0 for pair in found for value in pair)
    assert "application/vnd.plotly" in printed
    graph = ModelGraph.load(tmp_path / "orders" / "graph")
    both = [node for node in graph if "films/accuracy" in node.metrics]
    assert len(both) == 5, "dense, and each sparsity in either order"


@pytest.mark.slow
def test_a_family_is_published_queried_by_somebody_else_and_deleted(tmp_path: Path):
    states: list[dict] = []
    with HubServer() as hub:
        printed = run(
            "publish_and_query_a_family.ipynb",
            tmp_path,
            {**hub.environment(tmp_path / "home"), "CLEAN_UP": "1"},
            epochs=1,
            on_cell_start=lambda cell, cell_index: states.append(hub.state()),
        )
        states.append(hub.state())
        graph = ModelGraph.load(tmp_path / "reviews" / "graph")
        assert list(graph.endpoints) == ["base", "naive", "fip", "sparse"]

        full = next(state for state in states if state["collections"])
        assert len(full["repos"]) == len(full["collections"][0]["items"]) == len(graph)
        assert all(repo["private"] for repo in full["repos"].values()) and full["collections"][0]["private"]
        assert not states[-1]["repos"] and not states[-1]["collections"], "the last cell deletes what was published"

    assert "0 files of weights downloaded" in printed
    winners = dict(re.findall(r"best on (\w+): (\w+)-\d*", printed))
    assert winners["restaurants"] != "naive" and winners["films"] != "base", "each suits what it has learned last"
    assert "application/vnd.plotly" in printed
    assert [node.id for node in ModelGraph.load(tmp_path / "stranger" / "graph")] == [node.id for node in graph]
