"""The notebook on the geometry of a network."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hf_fip import ModelGraph
from hf_fip.geometry import load_spectra
from tests.notebooks.test_notebooks import run


@pytest.mark.slow
def test_a_network_is_measured_stepped_and_walked(tmp_path: Path):
    printed = run("geometry_of_a_network.ipynb", tmp_path, os.environ, epochs=2)
    predicted, measured = map(float, re.search(r"([\d.e-]+) predicted, ([\d.e-]+) measured", printed).groups())
    assert predicted == pytest.approx(measured, rel=0.1)

    graph = ModelGraph.load(tmp_path / "geometry" / "graph")
    spectra = load_spectra(graph.folder)[graph.root.id]
    assert {found.metric: found.rank for found in spectra} == {"l2": 400, "fisher": 360}
    assert "application/vnd.plotly" in printed

    moved = {name: float(value) for name, value in re.findall(r"(eq. 4|descent):.*?moved by ([\d.]+)", printed)}
    assert moved["eq. 4"] < moved["descent"] / 5 and "converged: True" in printed
    assert len(graph) == 5 and "functional length" in printed
