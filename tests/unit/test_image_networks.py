"""The package's own networks with norms: their sizes, what they compute, and that they train and come back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import batch_norm, conv2d, group_norm, pad
from transformers import AutoModelForImageClassification

from hf_fip import Compression, Task, begin_graph
from hf_fip.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    CifarVGGConfig,
    CifarVGGForImageClassification,
    FiveLayerCNNConfig,
    FiveLayerCNNForImageClassification,
    LeNet300100Config,
    LeNet300100ForImageClassification,
    load_model,
)
from hf_fip.models.embedded import grey_image_processor
from tests.testing_utils import run_python, weights


def resnet(**config) -> CifarResNetForImageClassification:
    torch.manual_seed(0)
    return used(CifarResNetForImageClassification(CifarResNetConfig(**{"depth": 8, "width": 4, **config})))


def vgg(**config) -> CifarVGGForImageClassification:
    torch.manual_seed(0)
    return used(CifarVGGForImageClassification(CifarVGGConfig(**{"stages": [[4], [8, 8]], **config})))


@torch.no_grad()
def used(model):
    """With batch norms that have seen images."""
    size = model.config.image_size
    for _ in range(3):
        model.train()(2 * torch.randn(4, model.config.num_channels, size, size) + 1)
    return model.eval()


def number_of_weights(model) -> tuple[int, int]:
    filters = sum(p.numel() for p in model.parameters() if p.ndim == 4)
    return filters, sum(p.numel() for p in model.parameters())


def test_the_networks_have_the_sizes_of_their_papers():
    resnet_20 = CifarResNetForImageClassification(CifarResNetConfig(num_labels=10))
    assert number_of_weights(resnet_20) == (267_696, 269_722)
    layers = [m for m in resnet_20.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == resnet_20.config.depth == 20
    with torch.device("meta"):
        vgg_16 = CifarVGGForImageClassification(CifarVGGConfig(num_labels=10))
    assert number_of_weights(vgg_16)[0] == 14_710_464
    assert len(vgg_16.convolutions) == 13


def normed(states, norm):
    return batch_norm(states, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def test_a_residual_block_adds_its_input_without_weights():
    model = resnet().double()
    block = model.blocks[1]
    assert block.conv1.stride == (2, 2) and block.conv2.out_channels == 2 * block.conv1.in_channels
    states = torch.randn(2, 4, 32, 32, dtype=torch.float64)
    inner = normed(conv2d(states, block.conv1.weight, stride=2, padding=1), block.norm1).relu()
    inner = normed(conv2d(inner, block.conv2.weight, padding=1), block.norm2)
    shortcut = pad(states[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    torch.testing.assert_close(block(states), (inner + shortcut).relu())


def test_group_norms_take_the_place_of_batch_norms():
    model = resnet(norm="group", width=12).double()
    block = model.blocks[0]
    states = torch.randn(2, 12, 8, 8, dtype=torch.float64)
    inner = group_norm(conv2d(states, block.conv1.weight, padding=1), 4, block.norm1.weight, block.norm1.bias).relu()
    inner = group_norm(conv2d(inner, block.conv2.weight, padding=1), 4, block.norm2.weight, block.norm2.bias)
    torch.testing.assert_close(block(states), (inner + states).relu())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    # One image's outputs do not depend on the others of its batch, in training either.
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model.train()(images).logits[:1], model.eval()(images[:1]).logits)


def test_the_residual_network_averages_what_its_last_block_sees():
    model = resnet().double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    states = normed(conv2d(images, model.convolution.weight, padding=1), model.norm).relu()
    for block in model.blocks:
        states = block(states)
    assert states.shape == (2, 16, 8, 8)
    expected = states.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(images).logits, expected)


def test_the_deep_convolutional_network_pools_after_each_stage():
    model = vgg(image_size=8).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    states = images
    for index, (convolution, norm) in enumerate(zip(model.convolutions, model.norms, strict=True)):
        states = normed(conv2d(states, convolution.weight, padding=1), norm).relu()
        if index in (0, 2):
            states = torch.nn.functional.max_pool2d(states, 2)
    expected = states.flatten(1) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(images).logits, expected)


@pytest.mark.parametrize(
    ("config", "bad", "named"),
    [
        (CifarResNetConfig, {"depth": 21}, "depth=21"),
        (CifarResNetConfig, {"depth": 2}, "depth=2"),
        (CifarResNetConfig, {"width": 0}, "width=0"),
        (CifarResNetConfig, {"norm": "layer"}, "norm='layer' is unknown"),
        (CifarVGGConfig, {"stages": []}, "stages=.*at least one"),
        (CifarVGGConfig, {"stages": [[8], []]}, "stages=.*at least one"),
        (CifarVGGConfig, {"image_size": 16}, "image_size=16 cannot be halved in each of 5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_sizes_are_refused(config, bad, named):
    with pytest.raises(Exception, match=named):
        config(**bad)


def test_a_fresh_process_loads_the_networks_once_hf_fip_is_imported(tmp_path):
    models = {"resnet": resnet(), "vgg": vgg()}
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    expected = {}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            expected[name] = model(images).logits
    script = tmp_path / "script.py"
    script.write_text(f"""
import hf_fip, json, torch
from transformers import AutoModelForImageClassification
images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
found = {{}}
for name in ("resnet", "vgg"):
    model = AutoModelForImageClassification.from_pretrained(r"{tmp_path}/" + name).eval()
    with torch.no_grad():
        found[name] = model(images).logits.tolist()
print(json.dumps(found))
""")
    done = run_python(script)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, logits in json.loads(done.stdout).items():
        torch.testing.assert_close(torch.tensor(logits), expected[name])


@pytest.mark.parametrize("make", [resnet, vgg])
def test_bfloat16_weights_read_the_processors_float32(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    narrow = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        logits = narrow(images).logits
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), model(images).logits, rtol=0.1, atol=0.1)


def test_batch_norms_learn_with_the_base_and_along_a_path_of_compression(tmp_path):
    model = CifarResNetForImageClassification(CifarResNetConfig(num_channels=1, image_size=8, depth=8, width=4))
    model.save_pretrained(tmp_path / "model")
    grey_image_processor(8, 0.305, 0.376).save_pretrained(tmp_path / "model")
    task = Task(name="digits", dataset="embedded:digits", max_train=96, max_test=64)
    training = {"batch_size": 32, "learning_rate": 1e-2, "disable_tqdm": True, "save_strategy": "no"}
    base = begin_graph(
        tmp_path / "graph", model=str(tmp_path / "model"), task=task, training={**training, "max_steps": 6}
    )
    start = weights(base.load_model())
    assert start["norm.num_batches_tracked"] == 6
    assert start["norm.running_mean"].abs().max() > 1e-3

    path = Compression([0.3, 0.5], steps=4, anchors=64, training=training)(base)
    end = weights(path.end.load_model())
    assert end["norm.num_batches_tracked"] == 6 + 4, "one for each step, none for references, drift and metrics"
    for name in ("blocks.0.conv1.weight", "norm.weight", "blocks.1.norm1.running_mean", "blocks.1.norm1.running_var"):
        assert not torch.equal(start[name], end[name]), name
    zeros = sum(int((end[name] == 0).sum()) for name in end if end[name].ndim == 4)
    assert zeros == round(0.5 * number_of_weights(model)[0])
    # What was measured in training is what the node gives when it is loaded.
    assert accuracy_of(path.end, task) == pytest.approx(path.end.metrics["digits/accuracy"])


@torch.no_grad()
def accuracy_of(node, task) -> float:
    rows, processor, model = task.load("test", None, 0), node.load_processor(), load_model(node.folder)
    pixels = processor([image.convert("L") for image in rows["image"]], return_tensors="pt")["pixel_values"]
    return float((model(pixels).logits.argmax(1) == torch.tensor(rows["label"])).float().mean())


@pytest.mark.parametrize(
    ("model_class", "config", "names"),
    [
        (
            FiveLayerCNNForImageClassification,
            {"model_type": "five_layer_cnn", "image_size": 12, "channels": [4, 4], "hidden_sizes": [16, 8]},
            "classifier convolutions.0 convolutions.1 hidden.0 hidden.1",
        ),
        (
            LeNet300100ForImageClassification,
            {"model_type": "lenet_300_100", "image_size": 12, "hidden_sizes": [16, 8], "initializer_range": 0.1},
            "classifier hidden.0 hidden.1",
        ),
    ],
    ids=["cnn", "lenet"],
)
def test_files_of_earlier_versions_are_read(model_class, config, names, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [model_class.__name__], **config}))
    torch.manual_seed(0)
    kind = {"five_layer_cnn": FiveLayerCNNConfig, "lenet_300_100": LeNet300100Config}[config["model_type"]]
    model = model_class(kind(**{key: value for key, value in config.items() if key != "model_type"}))
    assert sorted(model.state_dict()) == [f"{name}.{part}" for name in names.split() for part in ("bias", "weight")]
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(tmp_path)
    assert type(loaded) is model_class
    torch.testing.assert_close(weights(loaded), weights(model), rtol=0, atol=0)
