"""Operators: from a node to a path of nodes, on real (embedded) data sets with tiny models."""

import os
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM

from hf_fip import ContinualLearning, InputError, ModelGraph, Task, begin_graph
from hf_fip.baselines import METHODS
from hf_fip.tasks import resolve_dataset
from tests.testing_utils import data_root, needs_real_data, weights


OLD = Task(name="restaurants", dataset="embedded:restaurants", max_train=320, max_test=48)
NEW = Task(name="films", dataset="embedded:films", max_train=96, max_test=48)
QUICK = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A small untrained masked language model with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    texts = resolve_dataset("embedded:restaurants")["text"][:300] + resolve_dataset("embedded:films")["text"][:300]
    words = sorted({word for text in texts for word in text.lower().replace(".", " ").replace(",", " ").split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + words)}, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=32
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def begun(language_model, tmp_path_factory):
    """A graph with a trained base node, to be copied by each test."""
    graph = ModelGraph(tmp_path_factory.mktemp("begun") / "graph")
    begin_graph(graph, model=str(language_model), task=OLD, training={**QUICK, "epochs": 8})
    return graph


@pytest.fixture
def graph(begun, tmp_path):
    shutil.copytree(begun.folder, tmp_path / "graph")
    return ModelGraph.load(tmp_path / "graph")


def learn(graph, **changes):
    options = {"anchors": 24, "path_points": 2, "training": QUICK, **changes}
    return ContinualLearning(options.pop("task", NEW), **options)(graph["base"])


def test_the_base_node_has_learned_the_first_task(graph):
    base = graph.root
    assert base.metrics["restaurants/accuracy"] > 0.7
    assert base.load_model().config.id2label == {0: "negative", 1: "positive"}
    assert [task.name for task in base.tasks] == ["restaurants"]


def test_appended_nodes_leave_the_old_ones_in_place(graph):
    path = learn(graph)
    assert [node.step for node in path] == [3, 6]
    model = path.end.load_model()
    assert model.config.id2label == {0: "negative", 1: "positive", 2: "films: negative", 3: "films: positive"}
    assert path.end.protocol["label_space"] == {"restaurants": [0, 1], "films": [2, 3]}
    assert {"restaurants/accuracy", "films/accuracy"} <= path.end.metrics.keys()
    assert path.end.protocol["budget"]["held_out"][0]["inputs"] == 48
    assert [node.id for node in ModelGraph.load(graph.folder).lineage(path.end)] == [
        graph.root.id,
        *(node.id for node in path),
    ]


def test_shared_labels_keep_the_head(graph):
    path = learn(graph, label_space="shared")
    assert path.end.load_model().config.num_labels == 2
    assert path.end.protocol["label_space"]["films"] == [0, 1]


def test_shared_labels_in_another_order_are_mapped_by_name(graph, tmp_path):
    rows = resolve_dataset("embedded:films")
    flipped = rows.map(lambda row: {"label": 1 - row["label"]}).cast_column(
        "label", rows.features["label"].__class__(names=["positive", "negative"])
    )
    (tmp_path / "films").mkdir()
    for split in ("train", "test"):
        flipped.select(range(96)).to_parquet(tmp_path / "films" / f"{split}.parquet")
    task = Task(name="films", dataset=str(tmp_path / "films"))
    path = learn(graph, task=task, label_space="shared")
    assert path.end.protocol["label_space"]["films"] == [1, 0]


def test_shared_labels_that_differ_are_refused(graph):
    task = Task(name="films", dataset="embedded:films", class_names=["bad", "good"])
    with pytest.raises(InputError, match="label_space='shared'.*bad.*class_names"):
        learn(graph, task=task, label_space="shared")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_one_switch_away(method, graph):
    path = learn(graph, method=method, path_points=1)
    assert path.end.name == method
    assert path.end.protocol["anchors"]["labels_used"] == METHODS[method].uses_labels
    steps = 26 if method == "joint" else 6
    assert path.end.step == steps


def test_operators_compose_from_right_to_left(graph):
    again = Task(name="more", dataset="embedded:films", max_train=48, max_test=24)
    second = ContinualLearning(again, anchors=24, path_points=1, branch="second", training=QUICK)
    first = ContinualLearning(NEW, anchors=24, path_points=1, branch="first", training=QUICK)
    path = (second @ first)(graph.root)
    assert [node.name for node in path] == ["first", "second"]
    assert path.end.load_model().config.num_labels == 6
    assert [task.name for task in path.end.tasks] == ["restaurants", "films", "more"]
    assert path.end.protocol["anchors"]["tasks"] == ["restaurants", "films"]
    assert path.end.functional_distance["root"] is not None


def test_a_finished_path_is_not_travelled_again(graph):
    path = learn(graph)
    before = {node.id: os.stat(node.folder / "model.safetensors").st_mtime_ns for node in path}
    again = learn(ModelGraph.load(graph.folder))
    assert {node.id: os.stat(node.folder / "model.safetensors").st_mtime_ns for node in again} == before


def test_the_same_path_from_another_seed_is_another_path(graph):
    first, second = learn(graph, seed=0), learn(graph, seed=1)
    assert first.end.id != second.end.id
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            weights(first.end.load_model()).values(), weights(second.end.load_model()).values(), strict=True
        )
    )


def test_another_base_in_the_same_folder_is_refused(graph, language_model):
    with pytest.raises(InputError, match="holds another graph"):
        begin_graph(graph, model=str(language_model), task=OLD, training={**QUICK, "epochs": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method='magic'.*fip.*naive"),
        ({"label_space": "both"}, "label_space='both'"),
        ({"anchors": 1}, "anchors=1"),
        ({"distance_budget": -1}, "distance_budget=-1"),
        ({"anchor_shift": 2}, "anchor_shift=2 shifts images"),
        ({"anchor_mix": 2}, "anchor_mix=2 mixes images"),
        ({"training": {"epoch": 3}}, "training: .*epoch"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, message, graph):
    with pytest.raises(InputError, match=message):
        learn(graph, **options)


def test_a_task_learned_already_is_refused(graph):
    with pytest.raises(InputError, match="has learned a task 'restaurants' already"):
        learn(graph, task=OLD)


def test_a_data_set_without_labels_is_refused(graph, tmp_path):
    Dataset.from_dict({"text": ["a film", "a book"]}).to_parquet(tmp_path / "train.parquet")
    Dataset.from_dict({"text": ["a film", "a book"]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(InputError, match="no labels"):
        learn(graph, task=Task(name="plain", dataset=str(tmp_path)))


@needs_real_data
def test_hub_ids_are_found_in_a_local_folder(graph):
    task = Task(name="yelp", dataset="fancyzhx/yelp_polarity", max_train=32, max_test=16)
    path = learn(graph, task=task, data_root=str(data_root()), path_points=1)
    assert "yelp/accuracy" in path.end.metrics
