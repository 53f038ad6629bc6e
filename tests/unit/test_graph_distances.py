"""Distances and sparsity measured in the nodes' files equal those of the dense weights."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from hf_fip.errors import InputError
from hf_fip.graph.distances import euclidean_distance, measure, sparsity


def bert(seed: int = 0, labels: int = 2, head: type = BertForSequenceClassification):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=labels,
    )
    return head(config)


def reference_distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum().detach()) for name in a))


@pytest.mark.parametrize("head", [BertForSequenceClassification, BertForMaskedLM])
@pytest.mark.parametrize("shard", ["5GB", "8KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_distance_equals_the_dense_reference(tmp_path, head, shard, dtype):
    models = [bert(seed, head=head).to(dtype) for seed in (0, 1)]
    for model, name in zip(models, "ab", strict=True):
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
    assert (tmp_path / "a" / "model.safetensors").exists() == (shard == "5GB")
    parameters = [dict(model.named_parameters()) for model in models]
    distance = euclidean_distance(tmp_path / "a", tmp_path / "b")
    assert distance == pytest.approx(reference_distance(*parameters), rel=1e-7)
    assert euclidean_distance(tmp_path / "b", tmp_path / "a") == distance
    assert euclidean_distance(tmp_path / "a", tmp_path / "a") == 0.0


def test_distance_of_weights_larger_than_what_is_read_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fip.graph.weights._CHUNK", 100)
    for name, seed in (("a", 0), ("b", 1)):
        bert(seed).save_pretrained(tmp_path / name)
    tensors = [load_file(tmp_path / name / "model.safetensors") for name in "ab"]
    expected = reference_distance(*tensors)
    assert euclidean_distance(tmp_path / "a", tmp_path / "b") == pytest.approx(expected, rel=1e-7)
    monkeypatch.undo()
    assert euclidean_distance(tmp_path / "a", tmp_path / "b") == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("dtype", "step"), [(torch.float16, 2**-10), (torch.float32, 2**-23), (torch.float64, 2**-50)]
)
def test_a_tiny_step_is_measured_exactly(tmp_path, dtype, step):
    weight = torch.ones(1000, 1000, dtype=dtype)
    for name, change in (("a", 0.0), ("b", step)):
        (tmp_path / name).mkdir()
        save_file({"weight": weight + change}, tmp_path / name / "model.safetensors")
    assert euclidean_distance(tmp_path / "a", tmp_path / "b") == pytest.approx(1000 * step, rel=1e-12, abs=0)


def test_new_rows_of_a_grown_head_count_from_zero(tmp_path):
    small, grown = bert(labels=2), bert(labels=5)
    grown.load_state_dict(
        {name: t for name, t in small.state_dict().items() if "classifier" not in name}, strict=False
    )
    with torch.no_grad():
        grown.classifier.weight[:2], grown.classifier.bias[:2] = small.classifier.weight, small.classifier.bias
        grown.classifier.bias[2:] = 3.0
    for model, name in ((small, "small"), (grown, "grown")):
        model.save_pretrained(tmp_path / name)
    added = math.sqrt(float(grown.classifier.weight[2:].detach().double().square().sum()) + 3 * 9.0)
    assert euclidean_distance(tmp_path / "small", tmp_path / "grown") == pytest.approx(added, rel=1e-7)
    assert euclidean_distance(tmp_path / "grown", tmp_path / "small") == pytest.approx(added, rel=1e-7)


def test_adapters_are_compared_by_their_own_weights(tmp_path):
    tensors = []
    for seed, name in ((0, "a"), (1, "b")):
        model = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        model.save_pretrained(tmp_path / name)
        tensors.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    expected = reference_distance(*tensors)
    assert euclidean_distance(tmp_path / "a", tmp_path / "b") == pytest.approx(expected, rel=1e-7)
    bert().save_pretrained(tmp_path / "full")
    with pytest.raises(InputError, match="no tensor in common"):
        euclidean_distance(tmp_path / "a", tmp_path / "full")
    measured = measure(tmp_path / "a", tmp_path / "b", tmp_path / "full")["euclidean_distance"]
    assert measured == {"parent": pytest.approx(expected), "root": None}


def test_buffers_nobody_trains_do_not_count(tmp_path):
    for name, value in (("a", 0), ("b", 5)):
        torch.manual_seed(0)
        norm = torch.nn.BatchNorm1d(4)
        norm.running_mean += value
        norm.num_batches_tracked += value
        (tmp_path / name).mkdir()
        save_file(norm.state_dict(), tmp_path / name / "model.safetensors")
    assert euclidean_distance(tmp_path / "a", tmp_path / "b") == 0.0


def test_models_of_other_shapes_are_refused_and_measured_as_none(tmp_path):
    for name, columns in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        save_file({"weight": torch.ones(2, columns)}, tmp_path / name / "model.safetensors")
    with pytest.raises(InputError, match=r"'weight' has shape \[2, 3\].*\[2, 4\]"):
        euclidean_distance(tmp_path / "a", tmp_path / "b")
    assert measure(tmp_path / "a", tmp_path / "b", tmp_path / "b")["euclidean_distance"] == {
        "parent": None,
        "root": None,
    }


def test_sparsity_counts_exact_zeros_of_matrices(tmp_path):
    tensors = {
        "matrix": torch.tensor([[0.0, 1.0], [-0.0, 1e-30]]),
        "kernel": torch.zeros(1, 2, 3, 2),
        "bias": torch.zeros(100),
        "positions": torch.zeros(10, 10, dtype=torch.long),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert sparsity(tmp_path) == 14 / 16
    save_file({"bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert sparsity(tmp_path) == 0.0


def test_an_empty_or_scalar_tensor_is_no_obstacle(tmp_path):
    tensors = {"weight": torch.ones(2, 2), "scale": torch.tensor(2.0), "none": torch.zeros(0, 3)}
    for name, scale in (("a", 1.0), ("b", 2.5)):
        (tmp_path / name).mkdir()
        save_file({**tensors, "scale": tensors["scale"] * scale}, tmp_path / name / "model.safetensors")
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert euclidean_distance(tmp_path / "a", tmp_path / "b") == 3.0
    assert euclidean_distance(tmp_path / "a", tmp_path) == 2.0


@pytest.mark.parametrize(
    "weight_map", [{"w": "../model.safetensors"}, {"w": "/etc/passwd"}, {"w": ".."}, {"w": 1}, {}, None, ["w"]]
)
def test_an_index_of_shards_cannot_lead_out_of_the_folder(tmp_path, weight_map):
    save_file({"w": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="weight_map"):
        sparsity(tmp_path / "node")


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 64])
def test_missing_or_damaged_weights_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        sparsity(tmp_path)
