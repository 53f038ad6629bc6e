"""Exchanged weights give the model that `load_model` gives."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hf_fip.graph import ModelGraph, Node
from hf_fip.models.loading import save_model
from hf_fip.query import query
from hf_fip.query.skeleton import Skeletons, read
from tests.testing_utils import BERT, classifier

from .families import add, family, model_of, sentences, words


CPU = torch.device("cpu")


def assert_same_model(first, second):
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name, weight in left.items():
        assert weight.dtype == right[name].dtype and torch.equal(weight, right[name]), name


@pytest.mark.parametrize("kind", ["fill-mask", "sequence-classification", "text-generation", "image-classification"])
def test_each_node_is_as_loaded_in_one_model_object(tmp_path, kind):
    graph = family(tmp_path / "graph", lambda seed: model_of(kind), 4, task=kind)
    skeletons = Skeletons(CPU)
    objects = set()
    for node in [*graph, graph.root]:
        model = skeletons.model(read(node))
        objects.add(id(model))
        assert not model.training
        assert_same_model(model, node.load_model())
    assert len(objects) == 1


def test_old_names_and_tied_weights_are_among_the_cases(tmp_path):
    vit = family(tmp_path / "vit", lambda seed: model_of("image-classification"), 1, task="image-classification")
    stored = load_file(vit.root.folder / "model.safetensors").keys()
    assert set(vit.root.load_model().state_dict()) - set(stored)
    gpt = family(tmp_path / "gpt", lambda seed: model_of("text-generation"), 1, task="text-generation")
    assert "lm_head.weight" not in load_file(gpt.root.folder / "model.safetensors")


def test_half_precision_stays_half(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask").bfloat16(), 2, task="fill-mask")
    skeletons = Skeletons(CPU)
    for node in graph:
        model = skeletons.model(read(node))
        assert model.dtype == torch.bfloat16
        assert_same_model(model, node.load_model())


def test_shards_and_heads_of_several_sizes(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, "two", classifier(seed=0))
    parent = "two"
    for seed in (1, 2):
        sharded = classifier(seed=seed, num_labels=4)
        node = Node(id=f"four-{seed}", parent=parent, operator="test")
        graph.add(node, lambda folder, model=sharded: model.save_pretrained(folder, max_shard_size="4KB"))
        parent = node.id
    assert (graph["four-1"].folder / "model.safetensors.index.json").is_file()
    skeletons = Skeletons(CPU)
    for name in ("four-1", "two", "four-2", "two"):
        model = skeletons.model(read(graph[name]))
        assert_same_model(model, graph[name].load_model())


def test_adapters_and_sparse_nodes_are_scored_like_any(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    base = classifier(seed=0).eval()
    add(graph, "base", base, words(), task="sequence-classification")
    sparse = classifier(seed=1)
    with torch.no_grad():
        for weight in sparse.parameters():
            if weight.ndim > 1:
                weight[torch.rand(weight.shape) < 0.8] = 0.0
    node = Node(id="sparse", parent="base", operator="test", task="sequence-classification")

    def write_sparse(folder):
        save_model(sparse, folder, sparse_format="bitmask")
        words().save_pretrained(folder)

    graph.add(node, write_sparse)
    assert "quantization_config" in json.loads((graph["sparse"].folder / "config.json").read_text())
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    adapted = get_peft_model(graph["base"].load_model(), settings)
    adapted.peft_config["default"].base_model_name_or_path = str(graph["base"].folder)

    def write_adapter(folder):
        save_model(adapted, folder)
        words().save_pretrained(folder)

    graph.add(Node(id="adapter", parent="base", operator="test", task="sequence-classification"), write_adapter)
    texts = sentences(12)
    result = query(graph, texts, metric="functional_distance:base")
    assert {row["node"] for row in result.ranking} == {"sparse", "adapter"} and len(result.unscored) == 1
    tokenizer = words()
    for name in ("sparse", "adapter"):
        again = query(graph, texts, metric="functional_distance:base", nodes=[name])
        value = next(row["value"] for row in result.ranking if row["node"] == name)
        assert again.ranking[0]["value"] == pytest.approx(value, rel=1e-6)
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    with torch.no_grad():
        kept, moved = (
            torch.cat([model(row).logits for row in rows]) for model in (base, graph["adapter"].load_model())
        )
    expected = (moved - kept).square().sum(-1).mean() / kept.var(dim=0, correction=0).sum()
    value = next(row["value"] for row in result.ranking if row["node"] == "adapter")
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_a_node_whose_files_lack_weights_is_listed_with_the_reason(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: classifier(), 3, task="sequence-classification", processor=words())
    path = graph["fip-1"].folder / "model.safetensors"
    weights = load_file(path)
    del weights["classifier.weight"]
    path.unlink()
    save_file(weights, path, {"format": "pt"})
    (graph["fip-2"].folder / "model.safetensors").unlink()
    (graph["fip-2"].folder / "model.safetensors").write_bytes(b"damaged")
    data = {"text": sentences(10), "label": ["LABEL_0", "LABEL_1"] * 5}
    result = query(graph, Dataset.from_dict(data))
    assert [row["node"] for row in result.ranking] == ["fip-0"]
    reasons = {row["node"]: row["reason"] for row in result.unscored}
    assert "lack classifier.weight" in reasons["fip-1"]
    assert "not a readable safetensors file" in reasons["fip-2"]


def test_damaged_tokenizers_and_tokens_without_vectors_are_reasons(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 3, task="fill-mask", processor=words())
    for name, change in {"fip-1": '{"model": 3}', "fip-2": '{"vocab_size": 9}'}.items():
        file = graph[name].folder / ("tokenizer.json" if name == "fip-1" else "config.json")
        text = change if name == "fip-1" else json.dumps({**json.loads(file.read_text()), **json.loads(change)})
        file.unlink()
        file.write_text(text)
    result = query(graph, sentences(10))
    reasons = {row["node"]: row["reason"] for row in result.unscored}
    assert [row["node"] for row in result.ranking] == ["fip-0"]
    assert "tokenizer or image processor cannot be loaded" in reasons["fip-1"]
    assert "cannot be loaded" in reasons["fip-2"] and "\n" not in reasons["fip-2"]


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_a_reason(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 2, task="fill-mask", processor=words())
    torch.manual_seed(0)
    small = type(graph.root.load_model())(type(graph.root.load_model().config)(**{**BERT, "vocab_size": 9}))
    add(graph, "small", small, words(), parent="fip-0", task="fill-mask")
    result = query(graph, sentences(10))
    assert len(result.ranking) == 2
    assert "fails on the data (index out of range" in result.unscored[0]["reason"]
