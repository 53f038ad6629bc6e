"""How far apart two nodes are equals what one computes from their models, on any inputs and across graphs."""

import pytest
import torch

from hf_fip.errors import InputError
from hf_fip.graph.distances import euclidean_distance
from hf_fip.query import query

from .families import add, family, model_of, sentences, words


TEXTS = sentences(24)


def classifiers(folder, seed=0):
    return family(
        folder,
        lambda _: model_of("sequence-classification", seed),
        task="sequence-classification",
        processor=words(),
        spread=0.1,
    )


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return classifiers(tmp_path_factory.mktemp("distance") / "graph")


def outputs(node):
    tokenizer, model = words(), node.load_model()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([tokenizer(text)["input_ids"]])).logits for text in TEXTS])


def test_both_distances_are_those_of_the_models(graph):
    kept, moved = outputs(graph["fip-0"]), outputs(graph["fip-2"])
    found = graph.distance("fip-2", "fip-0", TEXTS)
    squares = (moved - kept).square().sum(-1) / kept.var(dim=0, correction=0).sum()
    assert found.functional == pytest.approx(float(squares.mean()), rel=1e-4)
    assert found.standard_error == pytest.approx(float(squares.std()) / len(TEXTS) ** 0.5, rel=0.05)
    assert (found.unit, found.samples) == ("share of output variance", len(TEXTS))
    assert found.euclidean == euclidean_distance(graph["fip-2"].folder, graph["fip-0"].folder) > 0


def test_changed_predictions_are_counted(graph):
    kept, moved = outputs(graph["fip-0"]), outputs(graph["fip-2"])
    changed = float((kept.argmax(-1) != moved.argmax(-1)).double().mean())
    found = graph.distance(graph["fip-2"], "fip-0", TEXTS, functional_distance="changed_predictions")
    assert 0 < changed == pytest.approx(found.functional) and found.unit == "share of predictions"
    ranking = query(graph, TEXTS, metric="functional_distance:fip-0:changed_predictions").ranking
    assert {row["node"]: row["value"] for row in ranking}["fip-2"] == pytest.approx(changed)


def test_nodes_of_two_graphs_may_have_one_id(graph, tmp_path):
    same, other = classifiers(tmp_path / "same"), classifiers(tmp_path / "other", seed=1)
    assert graph.distance("fip-1", same["fip-1"], TEXTS).functional == 0
    assert graph.distance("fip-1", other["fip-1"], TEXTS).functional > 0


def test_networks_of_other_shapes_have_no_distance_in_weight_space(graph, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    from tests.testing_utils import BERT

    torch.manual_seed(0)
    wide = BertForSequenceClassification(BertConfig(**{**BERT, "hidden_size": 24, "num_labels": 2}))
    other = classifiers(tmp_path / "graph")
    node = add(other, "wide", wide, words(), task="sequence-classification", parent="fip-0")
    found = graph.distance(node, "fip-0", TEXTS)
    assert found.functional > 0 and found.euclidean is None


def test_what_cannot_be_compared_is_refused(graph, tmp_path):
    with pytest.raises(InputError, match="no node 'nobody'"):
        graph.distance("fip-0", "nobody", TEXTS)
    language = family(
        tmp_path / "graph", lambda _: model_of("fill-mask"), 1, task="fill-mask", processor=words(), name="language"
    )
    with pytest.raises(InputError, match="is a .* model"):
        graph.distance(language["language-0"], "fip-0", TEXTS)
