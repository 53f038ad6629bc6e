"""Loading any model folder as what it was, and the five-layer CNN."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fip.errors import InputError
from hf_fip.models import (
    FiveLayerCNNConfig,
    FiveLayerCNNForImageClassification,
    load_model,
    load_processor,
    save_model,
    task_of,
)
from hf_fip.models.embedded import grey_image_processor
from hf_fip.models.pretraining import train_tokenizer


BERT = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
)
GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16)
VIT = ViTConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    image_size=8,
    patch_size=4,
    num_channels=1,
)
CNN = FiveLayerCNNConfig(image_size=12, channels=(4, 4), hidden_sizes=(16, 8), num_labels=5)
TASKS = [
    (BertForSequenceClassification, BERT, "sequence-classification"),
    (BertForTokenClassification, BERT, "token-classification"),
    (BertForMaskedLM, BERT, "fill-mask"),
    (BertLMHeadModel, BertConfig(**{**BERT.to_dict(), "is_decoder": True}), "text-generation"),
    (GPT2LMHeadModel, GPT2, "text-generation"),
    (ViTForImageClassification, VIT, "image-classification"),
    (FiveLayerCNNForImageClassification, CNN, "image-classification"),
    (BertModel, BERT, "other"),
]


def assert_same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=0)


def python(code: str, **environment: str) -> str:
    """Runs code in a fresh process and returns what it printed."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    return result.stdout.strip()


@pytest.mark.parametrize(("model_class", "config", "task"), TASKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_gives_back_the_model_that_was_saved(model_class, config, task, tmp_path):
    model = model_class(config)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is model_class and not loaded.training
    assert_same_weights(loaded, model)
    assert task_of(loaded) == task


def test_a_model_can_be_loaded_for_another_task(tmp_path):
    save_model(BertForMaskedLM(BERT), tmp_path)
    model = load_model(tmp_path, task="sequence-classification", num_labels=4, dtype=torch.bfloat16)
    assert type(model) is BertForSequenceClassification
    assert model.classifier.out_features == 4 and model.dtype == torch.bfloat16


def test_an_adapter_folder_gives_back_adapter_and_base(tmp_path):
    save_model(BertForSequenceClassification(BERT), tmp_path / "base")
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, init_lora_weights=False)
    model = get_peft_model(load_model(tmp_path / "base"), config)
    save_model(model, tmp_path / "node")

    assert not (tmp_path / "node" / "model.safetensors").exists()
    loaded = load_model(tmp_path / "node")
    assert isinstance(loaded, PeftModel) and task_of(loaded) == "sequence-classification"
    assert_same_weights(loaded, model)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = load_model(tmp_path / "node", is_trainable=True)
    assert any(parameter.requires_grad for parameter in trainable.parameters()) and not trainable.training

    ids = torch.arange(8)[None]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "node").eval()
    torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits)


def test_an_adapter_finds_a_base_without_its_head(tmp_path):
    save_model(BertForMaskedLM(BERT), tmp_path / "base")
    base = load_model(tmp_path / "base", task="sequence-classification", num_labels=4)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, init_lora_weights=False, modules_to_save=["pooler"])
    model = get_peft_model(base, config).eval()
    save_model(model, tmp_path / "node")
    ids = torch.arange(8)[None]
    torch.testing.assert_close(load_model(tmp_path / "node")(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_an_adapter_without_weights_that_its_base_lacks_is_refused(tmp_path):
    save_model(BertForMaskedLM(BERT), tmp_path / "base")
    base = load_model(tmp_path / "base", task="sequence-classification")
    save_model(get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=2)), tmp_path / "node")
    with pytest.raises(InputError, match="pooler.*modules_to_save"):
        load_model(tmp_path / "node")


def test_an_adapter_on_the_packages_own_network(tmp_path):
    save_model(FiveLayerCNNForImageClassification(CNN), tmp_path / "base")
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["hidden.0"], modules_to_save=["classifier"])
    model = get_peft_model(load_model(tmp_path / "base"), config)
    save_model(model, tmp_path / "node")
    assert_same_weights(load_model(tmp_path / "node"), model)


def test_an_adapter_moved_together_with_its_base_is_loaded(tmp_path):
    here = tmp_path / "here"
    save_model(BertForSequenceClassification(BERT), here / "base")
    train_tokenizer(["a few words"], 30, 16).save_pretrained(here / "base")
    model = get_peft_model(load_model(here / "base"), LoraConfig(task_type=TaskType.SEQ_CLS, r=2))
    save_model(model, here / "node")
    shutil.move(here, tmp_path / "there")
    assert_same_weights(load_model(tmp_path / "there" / "node"), model)
    assert load_processor(tmp_path / "there" / "node") is not None


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    def refused(expected: str, folder: Path, **kwargs):
        with pytest.raises(InputError, match=expected) as caught:
            load_model(folder, **kwargs)
        assert "\n" not in str(caught.value)

    refused("missing", tmp_path / "a" / "missing")
    (tmp_path / "empty").mkdir()
    refused("config.json", tmp_path / "empty")

    model = BertForSequenceClassification(BERT)
    save_model(model, tmp_path / "good")
    refused("trust_remote_code", tmp_path / "good", trust_remote_code=True)
    refused("use one of sequence-classification", tmp_path / "good", task="classification")

    shutil.copytree(tmp_path / "good", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    refused("safetensors", tmp_path / "pickled")

    for name, architectures, expected in (
        ("unknown", ["NoSuchModel"], "NoSuchModel"),
        ("no_model", ["Trainer"], "Trainer"),
        ("nameless", [], "names no architecture"),
    ):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
        refused(expected, tmp_path / name)

    adapter = get_peft_model(load_model(tmp_path / "good"), LoraConfig(task_type=TaskType.SEQ_CLS, r=2))
    adapter.save_pretrained(tmp_path / "pickled_adapter", safe_serialization=False)
    (tmp_path / "pickled_adapter" / "adapter_model.safetensors").unlink(missing_ok=True)
    refused("safetensors", tmp_path / "pickled_adapter")


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    save_model(BertForSequenceClassification(BERT), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(InputError):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_processor_is_found_whatever_it_is(tmp_path):
    save_model(BertForMaskedLM(BERT), tmp_path / "text")
    assert load_processor(tmp_path / "text") is None
    train_tokenizer(["good food", "good film"], 40, 16).save_pretrained(tmp_path / "text")
    assert load_processor(tmp_path / "text")("Good food")["input_ids"]
    save_model(FiveLayerCNNForImageClassification(CNN), tmp_path / "image")
    grey_image_processor(12, 0.1, 0.3).save_pretrained(tmp_path / "image")
    assert load_processor(tmp_path / "image").size["height"] == 12
    with pytest.raises(InputError, match="missing"):
        load_processor(tmp_path / "a" / "missing")


def test_grey_images_become_normalised_pixels():
    greys = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    images = [Image.fromarray(grey) for grey in greys]
    pixels = grey_image_processor(28, 0.1307, 0.3081)(images, return_tensors="pt")["pixel_values"]
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 1, 28, 28)
    np.testing.assert_allclose(pixels[:, 0], (greys / 255 - 0.1307) / 0.3081, atol=1e-5)
    assert grey_image_processor(8, 0.3, 0.4)(images, return_tensors="pt")["pixel_values"].shape == (3, 1, 8, 8)


def test_auto_classes_know_the_network_in_a_fresh_process_without_torchvision(tmp_path):
    save_model(FiveLayerCNNForImageClassification(CNN), tmp_path)
    grey_image_processor(12, 0.1, 0.3).save_pretrained(tmp_path)
    code = f"""
import sys
sys.modules["torchvision"] = None
import hf_fip.models
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained({str(tmp_path)!r})
processor = AutoImageProcessor.from_pretrained({str(tmp_path)!r})
print(tuple(model(**processor([Image.new("L", (20, 20))] * 2, return_tensors="pt")).logits.shape))
"""
    assert python(code) == "(2, 5)"


def test_the_papers_network_has_the_papers_size():
    model = FiveLayerCNNForImageClassification(FiveLayerCNNConfig(num_labels=20))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_476_356
    assert model(torch.zeros(2, 1, 28, 28)).logits.shape == (2, 20)


def test_the_network_computes_two_convolutions_and_three_layers():
    torch.manual_seed(0)
    model = FiveLayerCNNForImageClassification(CNN).double()
    images = torch.randn(4, 1, 12, 12, dtype=torch.float64)
    state, relu, pool = images, torch.relu, torch.nn.functional.max_pool2d
    for layer in model.convolutions:
        state = pool(relu(layer(state)), 2)
    state = state.flatten(1)
    for layer in model.hidden:
        state = relu(state @ layer.weight.T + layer.bias)
    expected = state @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(images).logits, expected)


def test_the_network_gives_the_loss_that_the_trainer_asks_for():
    model = FiveLayerCNNForImageClassification(CNN)
    images, labels = torch.randn(4, 1, 12, 12), torch.tensor([0, 4, 2, 2])
    output = model(images, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)
    # Under gradient accumulation the Trainer gives the number of labels in the whole step.
    torch.testing.assert_close(model(images, labels=labels, num_items_in_batch=8).loss, expected / 2)
    loss, logits = model(images, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, output.logits)


def test_the_network_refuses_images_of_another_size():
    model = FiveLayerCNNForImageClassification(CNN)
    with pytest.raises(ValueError, match=r"\(2, 3, 12, 12\).*\(1, 12, 12\)"):
        model(torch.zeros(2, 3, 12, 12))


@pytest.mark.parametrize("bad", [{"paddings": (1,)}, {"image_size": 5}])
def test_impossible_layouts_are_refused(bad):
    with pytest.raises(Exception, match="paddings|image_size"):
        FiveLayerCNNConfig(**bad)


def test_a_fresh_network_starts_as_pytorch_starts_its_layers():
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(FiveLayerCNNConfig())
    weight, bias = model.hidden[0].weight, model.hidden[0].bias
    bound = weight.shape[1] ** -0.5
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert bias.abs().max() <= bound and bias.std() > bound / 3
