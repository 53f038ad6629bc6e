"""Growing and replacing a classifier's last layer: what was learned stays, in every architecture."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fip.errors import InputError
from hf_fip.models import (
    FiveLayerCNNConfig,
    FiveLayerCNNForImageClassification,
    grow_head,
    label_names_of,
    load_model,
    output_head,
    replace_head,
    save_model,
)


TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {"id2label": {0: "yelp neg", 1: "yelp pos", 2: "yelp odd"}}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**TEXT, max_position_embeddings=16, **LABELS))


def distilbert() -> PreTrainedModel:
    config = DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=16, **LABELS)
    return DistilBertForSequenceClassification(config)


def roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(RobertaConfig(**TEXT, max_position_embeddings=20, **LABELS))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=0, **LABELS)
    return GPT2ForSequenceClassification(config)


def vit() -> PreTrainedModel:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
        **LABELS,
    )
    return ViTForImageClassification(config)


def resnet() -> PreTrainedModel:
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS
    )
    return ResNetForImageClassification(config)


def cnn() -> PreTrainedModel:
    config = FiveLayerCNNConfig(image_size=12, channels=(8, 8), hidden_sizes=(32, 32), **LABELS)
    return FiveLayerCNNForImageClassification(config)


HEADS = {
    bert: "classifier",
    distilbert: "classifier",
    roberta: "classifier.out_proj",
    gpt2: "score",
    vit: "classifier",
    resnet: "classifier.1",
    cnn: "classifier",
}
models = pytest.mark.parametrize("make", list(HEADS), ids=lambda make: make.__name__)


def adapter(make) -> PeftModel:
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, init_lora_weights=False)
    return get_peft_model(make(), config)


def inputs(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if hasattr(model.config, "image_size") or model.config.model_type == "resnet":
        size = getattr(model.config, "image_size", 16)
        return {"pixel_values": torch.randn(5, 1, size, size, generator=generator)}
    return {"input_ids": torch.randint(1, 40, (5, 8), generator=generator)}


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    return model.eval()(**inputs(model)).logits


@models
def test_the_head_is_found(make):
    assert output_head(make()) == HEADS[make]


@models
def test_old_nodes_stay_and_new_ones_follow(make, tmp_path):
    torch.manual_seed(0)
    model = make()
    before, head = outputs(model), model.get_submodule(output_head(model))
    weight, bias = head.weight.clone(), None if head.bias is None else head.bias.clone()

    assert grow_head(model, ["imdb neg", "imdb pos"]) is model

    assert head.weight.shape[0] == head.out_features == model.num_labels == model.config.num_labels == 5
    torch.testing.assert_close(head.weight[:3], weight, rtol=0, atol=0)
    if bias is not None:
        torch.testing.assert_close(head.bias[:3], bias, rtol=0, atol=0)
        assert not head.bias[3:].any()
    # The matrix product of another width may sum in another order; nothing else may differ.
    torch.testing.assert_close(outputs(model)[:, :3], before, rtol=1e-5, atol=1e-6)
    assert label_names_of(model) == ["yelp neg", "yelp pos", "yelp odd", "imdb neg", "imdb pos"]
    assert model.config.label2id["imdb pos"] == 4

    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=0)
    assert label_names_of(loaded) == label_names_of(model)


@models
def test_a_grown_head_learns_the_new_labels(make):
    torch.manual_seed(0)
    model = grow_head(make().train(), ["imdb neg", "imdb pos"])
    loss = model(**inputs(model), labels=torch.tensor([0, 3, 4, 1, 3])).loss
    loss.backward()
    rows = model.get_submodule(output_head(model)).weight.grad.abs().sum(1)
    assert model.config.problem_type == "single_label_classification" and (rows > 0).all()


@pytest.mark.parametrize("make", [bert, roberta, distilbert], ids=lambda make: make.__name__)
def test_an_adapter_grows_the_copy_that_it_trains(make, tmp_path):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=2, init_lora_weights=False, target_modules=r".*(query|value|q_lin|v_lin)"
    )
    model = get_peft_model(load_model(tmp_path / "base"), config)
    head = model.get_submodule(output_head(model))
    assert "modules_to_save.default" in output_head(model) and head.weight.requires_grad
    with torch.no_grad():
        head.weight.add_(1.0)
    before = outputs(model)

    grow_head(model, ["imdb neg", "imdb pos"])

    assert head.weight.requires_grad and head.weight.shape == (5, 16)
    torch.testing.assert_close(outputs(model)[:, :3], before, rtol=1e-5, atol=1e-6)
    with model.disable_adapter():
        assert outputs(model).shape == (5, 5)

    save_model(model, tmp_path / "grown")
    loaded = load_model(tmp_path / "grown")
    assert isinstance(loaded, PeftModel) and label_names_of(loaded) == label_names_of(model)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=0)


def test_an_adapter_that_leaves_the_head_alone_is_refused():
    model = get_peft_model(bert(), LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(InputError, match="modules_to_save"):
        grow_head(model, ["imdb neg"])


def test_new_rows_are_a_function_of_the_generator():
    def rows(seed: int, dtype=torch.float32) -> torch.Tensor:
        model = bert().to(dtype)
        return grow_head(model, ["a", "b"], generator=torch.Generator().manual_seed(seed)).classifier.weight[3:]

    torch.testing.assert_close(rows(1), rows(1), rtol=0, atol=0)
    assert (rows(1) - rows(2)).abs().max() > 1e-3
    assert rows(1, torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(rows(1, torch.float64), rows(1).double())


def test_new_rows_have_the_spread_of_the_configuration():
    model = bert()
    model.config.initializer_range = 0.3
    grow_head(model, [f"new {i}" for i in range(200)], generator=torch.Generator().manual_seed(0))
    assert model.classifier.weight[3:].std().item() == pytest.approx(0.3, rel=0.05)


def test_the_new_bias_can_be_chosen():
    one = grow_head(bert(), ["a", "b"], bias=-4.0)
    each = grow_head(bert(), ["a", "b"], bias=torch.tensor([1.0, 2.0]))
    assert one.classifier.bias[3:].tolist() == [-4.0, -4.0] and each.classifier.bias[3:].tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="no bias"):
        grow_head(gpt2(), ["a"], bias=1.0)


@models
def test_a_replaced_head_has_the_new_labels_only(make, tmp_path):
    model = replace_head(make(), ["left", "right"], generator=torch.Generator().manual_seed(0))
    assert outputs(model).shape == (5, 2) and label_names_of(model) == ["left", "right"]
    save_model(model, tmp_path)
    torch.testing.assert_close(outputs(load_model(tmp_path)), outputs(model), rtol=0, atol=0)


def test_a_replaced_head_takes_a_regression_model_to_classes():
    model = BertForSequenceClassification(BertConfig(**TEXT, num_labels=1, problem_type="regression"))
    with pytest.raises(InputError, match="regression"):
        grow_head(model, ["a"])
    replace_head(model, ["a", "b"])
    loss = model(**inputs(model), labels=torch.tensor([0, 1, 0, 1, 1])).loss
    assert loss.item() == pytest.approx(0.69, abs=0.2)


def test_a_multi_label_head_stays_one():
    model = BertForSequenceClassification(BertConfig(**TEXT, num_labels=2, problem_type="multi_label_classification"))
    assert grow_head(model, ["a"]).config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    ("change", "names"),
    [(grow_head, ["yelp neg"]), (grow_head, ["a", "a"]), (replace_head, ["a", "b", "a"])],
)
def test_label_names_are_unique(change, names):
    model = bert()
    with pytest.raises(InputError, match="own name"):
        change(model, names)
    assert label_names_of(model) == list(LABELS["id2label"].values()) and model.classifier.out_features == 3


def test_a_model_without_a_head_is_refused():
    with pytest.raises(InputError, match="classification head"):
        grow_head(BertModel(BertConfig(**TEXT, **LABELS)), ["a"])
    with pytest.raises(InputError, match="empty"):
        replace_head(bert(), [])
