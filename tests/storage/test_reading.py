"""Distances and pictures read nodes in any format as if they were dense."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_fip.errors import InputError
from hf_fip.graph.distances import euclidean_distance, measure, sparsity
from hf_fip.graph.weights import open_weights
from hf_fip.models import save_model
from hf_fip.report.pca import weight_pca
from hf_fip.storage import save_compressed
from tests.storage.models import bert, quantize, silence, sparsify, vit


FORMS = {
    "sparse": lambda model, folder: save_model(sparsify(model, 0.9), folder),
    "sharded": lambda model, folder: save_compressed(sparsify(model, 0.9), folder, max_shard_size="20KB"),
    "quantized": lambda model, folder: save_model(quantize(model), folder),
    "sparse and quantized": lambda model, folder: save_model(sparsify(quantize(model), 0.5), folder),
    "structured": lambda model, folder: save_model(silence(model), folder, sparse_format="structured"),
    "structured and sparse": lambda model, folder: save_model(
        sparsify(silence(model), 0.5), folder, sparse_format="structured"
    ),
}


@pytest.fixture(
    params=[(make, form) for make in (bert, vit) for form in FORMS],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def pair(request, tmp_path):
    """The same model in an unusual format, and dense; and another one."""
    make, form = request.param
    model = make()
    FORMS[form](model, tmp_path / "small")
    model.save_pretrained(tmp_path / "dense")
    torch.manual_seed(1)
    sparsify(make(), 0.3).save_pretrained(tmp_path / "other")
    return tmp_path


def test_all_rows_of_all_tensors_are_read(pair):
    expected = load_file(pair / "dense" / "model.safetensors")
    with ExitStack() as stack:
        found = open_weights(pair / "small", stack)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            weight = found[name]
            assert (weight.shape, weight.is_floating_point) == (list(tensor.shape), True)
            removed = weight.read() == 0
            # Weights that fed a removed structure are gone; all others are what they were.
            assert torch.equal(torch.where(removed, 0.0, tensor), weight.read())
            middle = weight.rows // 3, 2 * weight.rows // 3
            assert torch.equal(weight.read(*middle), weight.read()[slice(*middle)])


def test_distances_and_sparsity_are_those_of_the_dense_model(pair):
    assert euclidean_distance(pair / "small", pair / "dense") == pytest.approx(0, abs=1e-6)
    expected = measure(pair / "dense", pair / "other")
    found = measure(pair / "small", pair / "other")
    assert found["sparsity"] == expected["sparsity"] == sparsity(pair / "dense")
    assert found["euclidean_distance"]["parent"] == pytest.approx(expected["euclidean_distance"]["parent"])


def test_the_picture_in_weight_space_is_that_of_the_dense_model(pair):
    folders = {name: pair / name for name in ("dense", "other", "small")}
    picture = weight_pca(folders, "other")
    points = dict(zip(picture.ids, picture.coordinates, strict=True))
    assert not picture.left_out and not picture.grown
    np.testing.assert_allclose(points["small"], points["dense"], atol=1e-4 * np.abs(points["dense"]).max())


def test_damage_shows_when_the_tensor_is_read(tmp_path):
    save_model(sparsify(bert(), 0.6), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file({**tensors, f"{name}:values": tensors[f"{name}:values"][1:].clone()}, file)
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as error:
        sparsity(tmp_path)
    assert "\n" not in str(error.value)
    save_file({key: value for key, value in tensors.items() if key != f"{name}:shape"}, file)
    with pytest.raises(InputError, match=name.replace(".", r"\.")), ExitStack() as stack:
        open_weights(tmp_path, stack)
