"""Heads, neurons and filters without influence are really gone, and the model computes the same."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    DeiTConfig,
    DeiTForImageClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_fip.errors import InputError
from hf_fip.graph.distances import euclidean_distance, sparsity
from hf_fip.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    CifarVGGConfig,
    CifarVGGForImageClassification,
    FiveLayerCNNConfig,
    FiveLayerCNNForImageClassification,
    load_model,
    save_model,
)
from hf_fip.objectives import get_projection
from hf_fip.storage import shrink, structure_groups
from hf_fip.storage.layout import format_ranges, parse_ranges
from tests.storage.models import BERT, VIT, bert, pixels, silence, vit, weight_bytes, words
from tests.testing_utils import assert_same_weights, weights


DISTILBERT = {"vocab_size": 600, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "initializer_range": 0.3}
MODELS = {
    "bert": (bert, words),
    "roberta": (lambda: RobertaForMaskedLM(RobertaConfig(**BERT)), words),
    "electra": (lambda: ElectraForPreTraining(ElectraConfig(**BERT, embedding_size=32)), words),
    "distilbert": (lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT)), words),
    "vit": (vit, pixels),
    "deit": (lambda: DeiTForImageClassification(DeiTConfig(**VIT)), pixels),
    "cnn": (lambda: FiveLayerCNNForImageClassification(FiveLayerCNNConfig()), lambda: pixels(28, 1)),
    "resnet": (lambda: used(CifarResNetForImageClassification(CifarResNetConfig(depth=8))), pixels),
    "vgg": (
        lambda: used(CifarVGGForImageClassification(CifarVGGConfig(stages=[[8, 8], [16], [16, 32]]))),
        pixels,
    ),
}


@torch.no_grad()
def used(model):
    """With batch norms that have seen something."""
    model.train()
    for _ in range(3):
        model(3 * torch.randn(4, 3, 32, 32) + 1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()
    return model.eval()


def output(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs)[0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_smaller_model_computes_the_same_before_and_after_loading(tmp_path, kind):
    make, inputs = MODELS[kind]
    torch.manual_seed(0)
    model = silence(make())
    before = weights(model)
    expected = output(model, inputs())
    smaller = shrink(model)
    assert_same_weights(before, weights(model))
    assert smaller.num_parameters() < 0.9 * model.num_parameters()
    torch.testing.assert_close(output(smaller, inputs()), expected, rtol=1e-4, atol=1e-5)

    save_model(model, tmp_path / "small", sparse_format="structured")
    model.save_pretrained(tmp_path / "full")
    smaller.save_pretrained(tmp_path / "again")
    assert weight_bytes(tmp_path / "small") < 0.9 * weight_bytes(tmp_path / "full")
    for folder in ("small", "again"):
        loaded = type(model).from_pretrained(tmp_path / folder)
        assert_same_weights(weights(smaller), weights(loaded))
        torch.testing.assert_close(output(loaded, inputs()), expected, rtol=1e-4, atol=1e-5)
        # In weight space nothing has moved.
        assert euclidean_distance(tmp_path / folder, tmp_path / "full") == 0
        assert sparsity(tmp_path / folder) == sparsity(tmp_path / "full")


def test_what_is_gone_is_gone_from_modules_and_file(tmp_path):
    model = bert()
    with torch.no_grad():
        attention, layer = model.bert.encoder.layer[0].attention, model.bert.encoder.layer[1]
        attention.output.dense.weight[:, 16:48] = 0  # heads 1 and 2 of four
        layer.intermediate.dense.weight[5] = 0
        layer.intermediate.dense.bias[5] = 0  # its column stays: GELU of zero is zero
    save_model(model, tmp_path, sparse_format="structured")
    groups = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["groups"]
    assert [(group["kind"], group["count"], group["kept"]) for group in groups] == [
        ("heads", 4, "0,3"),
        ("neurons", 128, "0-4,6-127"),
    ]
    shapes = {name: list(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert shapes["bert.encoder.layer.0.attention.self.query.weight"] == [32, 64]
    assert shapes["bert.encoder.layer.0.attention.self.query.bias"] == [32]
    assert shapes["bert.encoder.layer.0.attention.output.dense.weight"] == [64, 32]
    assert shapes["bert.encoder.layer.1.output.dense.weight"] == [64, 127]
    loaded = load_model(tmp_path)
    assert loaded.bert.encoder.layer[0].attention.self.num_attention_heads == 2
    assert loaded.bert.encoder.layer[0].attention.self.query.out_features == 32
    torch.testing.assert_close(output(loaded, words()), output(model, words()))


def test_a_head_without_query_and_key_still_averages_and_stays():
    model = bert()
    with torch.no_grad():
        attention = model.bert.encoder.layer[0].attention.self
        for layer in (attention.query, attention.key):
            layer.weight[:16] = 0
            layer.bias[:16] = 0
    assert not hasattr(shrink(model).config, "quantization_config")


def test_the_last_structure_of_a_layer_stays():
    model = bert()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.output.dense.weight.zero_()
    smaller = shrink(model)
    assert {len(group.kept) for group in structure_groups(smaller)} == {1}
    torch.testing.assert_close(output(smaller, words()), output(model, words()))


def test_shrinking_twice_counts_from_the_first_model(tmp_path):
    model = silence(bert())
    once = shrink(model)
    assert shrink(once).config.quantization_config == once.config.quantization_config
    with torch.no_grad():
        once.bert.encoder.layer[0].output.dense.weight[:, -3:] = 0
    twice = shrink(once)
    assert twice.num_parameters() < once.num_parameters()
    twice.save_pretrained(tmp_path / "twice")
    loaded = load_model(tmp_path / "twice")
    torch.testing.assert_close(output(loaded, words()), output(once, words()))
    # Loaded as a body, named otherwise, and made smaller again.
    body = AutoModel.from_pretrained(tmp_path / "twice")
    with torch.no_grad():
        body.encoder.layer[1].output.dense.weight[:, 0] = 0
    shrink(body).save_pretrained(tmp_path / "body")
    torch.testing.assert_close(output(AutoModel.from_pretrained(tmp_path / "body"), words()), output(body, words()))


@pytest.mark.parametrize("kind", ["bert", "vit", "cnn", "resnet", "vgg"])
def test_what_the_structured_projection_zeroes_is_removed(kind):
    make, inputs = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    projection = get_projection("structured").for_model(model, list(matrices))
    with torch.no_grad():
        for name, value in projection(matrices, 0.5).items():
            matrices[name].copy_(value)
    smaller = shrink(model)
    assert smaller.num_parameters() < 0.8 * model.num_parameters()
    torch.testing.assert_close(output(smaller, inputs()), output(model, inputs()), rtol=1e-4, atol=1e-5)


def test_what_the_quantization_projection_gives_is_stored_as_integers(tmp_path):
    model = vit()
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    with torch.no_grad():
        for name, value in get_projection("quantization")(matrices, 1.0).items():
            matrices[name].copy_(value)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["vit.encoder.layer.0.attention.attention.query.weight:codes"].dtype == torch.int8
    assert_same_weights(weights(model), weights(load_model(tmp_path)))


def test_unstructured_zeros_and_removed_structures_go_together(tmp_path):
    model = silence(bert())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.masked_fill_(torch.rand(weight.shape) < 0.8, 0.0)
    save_model(model, tmp_path / "small", sparse_format="structured")
    save_model(model, tmp_path / "full", sparse_format="dense")
    assert weight_bytes(tmp_path / "small") < 0.3 * weight_bytes(tmp_path / "full")
    torch.testing.assert_close(output(load_model(tmp_path / "small"), words()), output(model, words()))
    assert euclidean_distance(tmp_path / "small", tmp_path / "full") == 0


def test_unknown_structures_are_refused():
    with pytest.raises(InputError, match="GPT2LMHeadModel"):
        shrink(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)))


def test_a_model_with_tied_embeddings(tmp_path):
    model = silence(BertForMaskedLM(BertConfig(**BERT)).eval())
    save_model(model, tmp_path, sparse_format="structured")
    torch.testing.assert_close(output(load_model(tmp_path), words()), output(model, words()))


@pytest.mark.parametrize("numbers", [[0], [0, 1, 2, 5], [3, 4, 9], list(range(100)), [7]])
def test_ranges(numbers):
    assert parse_ranges(format_ranges(numbers), 100) == tuple(numbers)


@pytest.mark.parametrize("text", ["", "1-", "-1", "5-2", "1,1", "3,2", "100", "a", "²", "0--1", "1e1"])
def test_bad_ranges_are_refused(text):
    with pytest.raises(InputError):
        parse_ranges(text, 100)


def test_gathered_weights_are_those_made_smaller(tmp_path):
    model = bert()
    gathered = weights(silence(bert()))
    save_model(model, tmp_path, sparse_format="structured", state_dict=gathered)
    loaded = load_model(tmp_path)
    assert loaded.num_parameters() < 0.9 * model.num_parameters()
    model.load_state_dict(gathered)
    torch.testing.assert_close(output(loaded, words()), output(model, words()))
