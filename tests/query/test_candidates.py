"""Who can score the data, and what is said of the others; bad input is one line before anything is run."""

import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from hf_fip.errors import InputError
from hf_fip.graph import ModelGraph, Node
from hf_fip.query import query
from hf_fip.query.data import load_examples
from hf_fip.query.labels import CannotScore, outputs_of_labels

from .families import add, family, model_of, sentences, words


TEXTS = sentences(16)


def other_words():
    """Another tokenizer with as many tokens: the same words under other numbers."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, **{f"w{i}": 66 - i for i in range(3, 64)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = words().backend_tokenizer.pre_tokenizer
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def data(names, labels=None, texts=TEXTS):
    types = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    labels = [i % len(names) for i in range(len(texts))] if labels is None else labels
    return Dataset.from_dict({"text": texts, "label": labels}, types)


def named(names, seed=0):
    model = model_of("sequence-classification", seed)
    if len(names) != model.config.num_labels:
        model.classifier = torch.nn.Linear(16, len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def reasons(result):
    return {row["node"]: row["reason"] for row in result.unscored}


def test_nodes_of_other_tasks_and_tokenizers_are_listed_with_reasons(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 3, task="fill-mask", processor=words())
    add(graph, "classifier", model_of("sequence-classification"), words(), parent="fip-0")
    add(graph, "causal", model_of("text-generation"), words(), parent="fip-0")
    add(graph, "image", model_of("image-classification"), parent="fip-0")
    add(graph, "other-words", model_of("fill-mask"), other_words(), parent="fip-0")
    add(graph, "wordless", model_of("fill-mask"), parent="fip-0")
    result = query(graph, TEXTS)
    assert {row["node"] for row in result.ranking} == {"fip-0", "fip-1", "fip-2"}
    found = reasons(result)
    assert set(found) == set(graph.nodes) - {"fip-0", "fip-1", "fip-2"}
    assert found["classifier"] == "is a sequence-classification model, and the data have no labels"
    assert found["causal"] == "is a text-generation model; those of the query are fill-mask models"
    assert found["image"] == "is a model for image-classification, which does not score texts"
    assert "different tokens cannot be compared" in found["other-words"]
    assert found["wordless"] == "has no tokenizer"
    only = query(graph, TEXTS, nodes=["other-words"])
    assert [row["node"] for row in only.ranking] == ["other-words"] and not only.unscored
    with pytest.raises(InputError, match="f1 is a metric of classifiers"):
        query(graph, TEXTS, metric="f1", nodes=["fip"])


def test_equal_tokenizers_with_other_settings_are_one(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 2, task="fill-mask", processor=words())
    shorter = words()
    shorter.model_max_length = 9
    add(graph, "shorter", model_of("fill-mask"), shorter, parent="fip-0", task="fill-mask")
    result = query(graph, TEXTS)
    assert len(result.ranking) == 3
    # One length for all: the texts are the same for everyone.
    assert result.protocol["max_length"] == 9 and result.protocol["texts_at_max_length"] > 0


def test_causal_models_of_several_tokenizers_are_compared_per_character(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, "one", model_of("text-generation"), words(), task="text-generation")
    add(graph, "two", model_of("text-generation"), other_words(), parent="one", task="text-generation")
    result = query(graph, TEXTS)
    assert result.protocol["per"] == "character" and "per character" in result.notes[0]
    assert "perplexity per character" in result.table()
    tokenizer, model, nll, characters = words(), graph["one"].load_model(), 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            nll += float(cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum"))
        characters += len(text) - len(text.split()[0])
    value = next(row["value"] for row in result.ranking if row["node"] == "one")
    assert value == pytest.approx(math.exp(nll / characters), rel=1e-5)


def node_with(tasks=(), space=None):
    return Node(id="n", protocol={"tasks": list(tasks), "label_space": space or {}})


def examples(names, split="test", name="imdb", labels=None):
    found = load_examples(data(names, labels))
    return type(found)(**{**vars(found), "name": name, "split": split})


YELP = {"name": "yelp", "dataset": "fancyzhx/yelp_polarity"}
IMDB = {"name": "imdb", "dataset": "stanfordnlp/imdb"}
OUTPUTS = {0: "1", 1: "2", 2: "neg", 3: "pos"}


@pytest.mark.parametrize(
    ("node", "id2label", "names", "name", "expected"),
    [
        # The node has learned the data set: by its protocol, whatever the names are.
        (node_with([YELP, IMDB], {"yelp": [0, 1], "imdb": [3, 2]}), OUTPUTS, ["neg", "pos"], "x/imdb", [[3], [2]]),
        (node_with([YELP], {"yelp": [1, 0]}), {0: "b", 1: "a"}, ["1", "2"], "data/yelp_polarity", [[1], [0]]),
        (node_with([IMDB], {"imdb": [1, 0]}), {0: "b", 1: "a"}, ["u", "v"], "../imdb/test.parquet", [[1], [0]]),
        # Another data set: by names; a label that several tasks have is each of their outputs.
        (node_with([YELP], {"yelp": [0, 1]}), {0: "Pos", 1: "neg"}, ["neg", "pos"], "imdb", [[1], [0]]),
        (
            node_with(),
            {0: "bad", 1: "good", 2: "films: bad", 3: "films: good"},
            ["good", "bad"],
            "imdb",
            [[1, 3], [0, 2]],
        ),
        # Names that say nothing: by position.
        (node_with(), {0: "LABEL_0", 1: "LABEL_1"}, ["neg", "pos"], "imdb", [[0], [1]]),
        (node_with(), {0: "neg", 1: "pos"}, ["0", "1"], "imdb", [[0], [1]]),
        # A part of the data set's classes, each with a place of its own.
        (
            node_with([{**IMDB, "classes": ["c", "a"]}], {"imdb": [5, 4]}),
            dict(enumerate("uvwxyz")),
            ["a", "b", "c"],
            "imdb",
            [[4], [], [5]],
        ),
    ],
)
def test_labels_are_matched_to_outputs(node, id2label, names, name, expected):
    occurring = [place for place, outputs in enumerate(expected) if outputs] * 8
    found, _ = outputs_of_labels(node, id2label, examples(names, name=name, labels=occurring[:16]))
    assert found == expected


@pytest.mark.parametrize(
    "id2label", [{0: "neg", 1: "neutral"}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, {0: "cat", 1: "dog"}]
)
def test_a_label_without_an_output_is_a_reason(id2label):
    with pytest.raises(CannotScore, match="no output for the label '(neg|pos)'"):
        outputs_of_labels(node_with(), id2label, examples(["neg", "pos"]))


def test_probabilities_of_outputs_for_one_label_are_added_and_other_outputs_count_as_wrong(tmp_path):
    names = ["bad", "good", "films: bad", "films: good", "cat"]
    graph = ModelGraph(tmp_path / "graph")
    add(graph, "base", named(names), words())
    labelled = data(["good", "bad"])
    tokenizer, model = words(), graph.root.load_model()
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    with torch.no_grad():
        shares = torch.cat([model(row).logits for row in rows]).double().softmax(-1)
    summed = torch.stack([shares[:, 1] + shares[:, 3], shares[:, 0] + shares[:, 2], shares[:, 4]], dim=1)
    truth = torch.tensor(labelled["label"][:])
    right = summed[torch.arange(16), truth]
    row = query(graph, labelled).ranking[0]
    assert row["value"] == pytest.approx(math.exp(-right.log().mean()), rel=1e-5)
    correct = (summed.argmax(-1) == truth).double().mean()
    assert query(graph, labelled, metric="accuracy").ranking[0]["value"] == pytest.approx(float(correct))


def test_classifiers_with_other_labels_are_listed(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, "base", named(["neg", "pos"]), words())
    add(graph, "animals", named(["cat", "dog", "cow"]), words(), parent="base")
    add(graph, "regression", named(["score"]), words(), parent="base")
    result = query(graph, data(["neg", "pos"]))
    assert [row["node"] for row in result.ranking] == ["base"]
    assert reasons(result)["animals"] == "no output for the label 'neg' (its outputs: cat, dog, cow)"
    with pytest.raises(InputError, match="no node can score .*animals .*no output for the label"):
        query(graph, data(["neg", "pos"]), nodes=["animals"])


def test_samples_and_unlabelled_rows(tmp_path):
    whole = load_examples(data(["neg", "pos"], [-1, *[0, 1] * 7, 1]))
    assert len(whole) == 15 and whole.left_out == 1 and whole.index[0] == 1
    part = load_examples(data(["neg", "pos"]), max_samples=5, seed=1)
    assert len(part) == 5 and list(part.index) == sorted(set(part.index))
    assert part.labels == [["neg", "pos"][row % 2] for row in part.index]
    assert not np.array_equal(part.index, load_examples(data(["neg", "pos"]), max_samples=5, seed=2).index)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "graph"
    return family(folder, lambda seed: named(["neg", "pos"]), 2, task="sequence-classification", processor=words())


BAD = [
    ({"metric": "perplexty"}, "metric='perplexty' is none of perplexity, accuracy, "),
    ({"metric": "functional_distance"}, "names no node"),
    ({"metric": "functional_distance:nobody"}, "no node 'nobody'"),
    ({"metric": "functional_distance:fip-0:l3"}, "functional_distance='l3' is unknown"),
    ({"strategy": "sprint"}, "strategy='sprint' is unknown: use one of full, racing"),
    ({"strategy": "racing", "metric": "f1"}, "strategy='racing' needs a mean over examples"),
    ({"max_samples": 1}, "max_samples=1: give at least 2 examples"),
    ({"text_column": "body"}, "text_column='body' does not exist: the columns are text, label"),
    ({"label_column": "stars"}, "label_column='stars' does not exist"),
    ({"split": "test"}, "split='test' goes with the name of a data set"),
    ({"top": 0}, "top=0"),
    ({"confidence": 1.0}, "confidence=1.0"),
    ({"budget": 0}, "budget=0"),
    ({"mask_probability": 0}, "mask_probability=0"),
    ({"max_length": 1}, "max_length=1: give at least 3 tokens"),
    ({"nodes": ["nobody"]}, "nodes: no node 'nobody'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_one_clear_line(graph, arguments, message):
    with pytest.raises(InputError) as error:
        query(graph, data(["neg", "pos"]), **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        ([], {}, "dataset='given' is empty"),
        (["", "  "], {}, "has 0 usable rows in column 'text'"),
        (["one"], {}, "has 1 usable rows"),
        (42, {}, "dataset is a int"),
        (TEXTS, {}, "no node can score dataset='given': fip-0 and 1 more is a sequence-classification model, and the"),
        ("embedded:films", {"split": "dev"}, "split='dev' does not exist in dataset='embedded:films'"),
        ("embedded:film", {}, "dataset='embedded:film' does not exist"),
        (Dataset.from_dict({"a": ["x", "y"], "b": ["x", "y"]}), {}, "text_column"),
    ],
)
def test_bad_data_is_one_clear_line(graph, dataset, arguments, message):
    with pytest.raises(InputError) as error:
        query(graph, dataset, **arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_empty_graph_is_refused(tmp_path):
    with pytest.raises(InputError, match="graph is empty"):
        query(ModelGraph(tmp_path / "graph"), TEXTS)
