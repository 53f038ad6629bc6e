"""The report's sections on what was measured of nodes and stored beside the graph: spectra and ensembles."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_fip import ModelGraph
from hf_fip.ensembles import Ensemble
from hf_fip.ensembles.saved import EnsembleRecord, load_ensembles, measure_ensemble, save_ensemble
from hf_fip.errors import InputError
from hf_fip.geometry import MetricTensor, Spectrum, find_spectrum, save_spectrum
from hf_fip.report import ensemble, spectrum

from .test_report import page_of


@pytest.fixture
def graph(lenet, tmp_path):
    shutil.copytree(lenet.folder, tmp_path / "graph")
    return ModelGraph.load(tmp_path / "graph")


def pixels(number):
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_spectrum_stored_beside_the_graph_is_drawn_and_counted(graph):
    tensor = MetricTensor(graph.root.load_model(), {"pixel_values": pixels(6)})
    exact = find_spectrum(tensor)
    save_spectrum(graph.folder, graph.root.id, exact)
    section = spectrum.spectrum(graph)
    ranked = section.figure.data[0]
    known = np.array(exact.eigenvalues)
    assert ranked.y == pytest.approx(known[known > exact.noise])
    assert list(ranked.x) == list(range(1, exact.rank + 1))
    row = dict(zip(section.table.columns, section.table.rows[0], strict=True))
    assert row["rank"].sort == exact.rank <= row["rank at most"].sort == 6 * 5
    assert row["flat directions"].sort == exact.flat_share(1.0, 0.01 * exact.eigenvalues[0] ** 0.5)
    assert section.figure.layout.shapes[0].x0 == 30
    assert "spectrum" in page_of(graph).values("id", "section")


def test_an_estimated_spectrum_claims_no_rank(graph):
    about = {"dimension": 1000, "is_exact": False, "noise": 1e-6, "metric": "l2", "num_rows": 100, "num_outputs": 5}
    guessed = Spectrum(eigenvalues=(9.0, 4.0), tail=((0.5, 30.0), (0.0, 968.0)), rank_bound=500, **about)
    save_spectrum(graph.folder, graph.root.id, guessed)
    section = spectrum.spectrum(graph)
    assert section.table.rows[0][section.table.columns.index("rank")].text == "–"
    assert any("estimated" in note for note in section.notes)


def test_an_ensemble_is_measured_as_its_members_answer(graph):
    nodes = [node for node in graph if node.name == "sparse"]
    labels = torch.arange(12) % 5
    batches = [
        {"pixel_values": part, "labels": y} for part, y in zip(pixels(12).split(8), labels.split(8), strict=True)
    ]
    record = measure_ensemble(Ensemble.from_nodes(nodes), batches, name="path", dataset="noise")
    with torch.no_grad():
        answers = torch.stack([n.load_model()(pixel_values=pixels(12)).logits.softmax(-1) for n in nodes])
    assert record.members == [node.id for node in nodes] and record.examples == 12
    assert record.member_accuracies == [float((a.argmax(-1) == labels).double().mean()) for a in answers]
    assert record.accuracy == float((answers.mean(0).argmax(-1) == labels).double().mean())
    entropy = -(answers.mean(0) * answers.mean(0).log()).sum(-1).mean()
    assert record.predictive_entropy == pytest.approx(float(entropy), rel=1e-4)
    assert list(record.diversity) == ["hidden.0", "hidden.1", "classifier"]


def test_stored_ensembles_are_read_back_and_drawn(graph):
    members = [graph["sparse"].id, graph["again"].id]
    record = EnsembleRecord("pair", members, "digits", 50, 0.9, [0.8, 0.85], diversity={"hidden.0": 0.1, "b": 0.4})
    attacked = replace(record, name="robust", attacks={"PGD": 0.5}, member_attacks={"PGD": 0.2}, diversity={})
    for one in (record, attacked):
        save_ensemble(graph.folder, one)
    assert load_ensembles(graph.folder) == [record, attacked]
    section = ensemble.ensemble(graph)
    sums = [trace for trace in section.figure.data if trace.marker.symbol == "diamond"]
    assert [(trace.name, list(trace.x)) for trace in sums] == [("pair", [0.9]), ("robust", [0.9, 0.5])]
    assert [row[0].text for row in section.table.rows] == ["pair", "robust"]
    assert any("attack" in note for note in section.notes)
    assert "ensemble" in page_of(graph).values("id", "section")


def test_files_that_are_no_measurements_and_nodes_that_are_gone_are_left_out(graph):
    (graph.folder / "spectra").mkdir()
    (graph.folder / "ensembles").mkdir()
    good = EnsembleRecord("good", [graph.root.id, "gone"], "digits", 50, 0.9, [0.8, 0.85])
    for text in ("{", "[]", json.dumps({"name": "x", "node": graph.root.id, "eigenvalues": ["a"]})):
        name = f"{len(text)}.json"
        (graph.folder / "spectra" / name).write_text(text)
        (graph.folder / "ensembles" / name).write_text(text)
    save_ensemble(graph.folder, good)
    assert spectrum.spectrum(graph) is None and ensemble.ensemble(graph) is None
    assert load_ensembles(graph.folder) == [good]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "name='../x'"),
        ({"members": ["a"], "member_accuracies": [0.5]}, "two members"),
        ({"member_accuracies": [0.5]}, "one accuracy for each"),
        ({"accuracy": float("nan")}, "no finite number"),
    ],
    ids=["name", "one member", "accuracies", "nan"],
)
def test_records_that_cannot_be_are_refused(changes, message):
    fields = {"name": "pair", "members": ["a", "b"], "dataset": "digits", "examples": 5, "accuracy": 0.5}
    with pytest.raises(InputError, match=message):
        EnsembleRecord(**{**fields, "member_accuracies": [0.5, 0.4], **changes})
