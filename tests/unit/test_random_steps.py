"""Random steps, and the operator that is made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import set_seed

from hf_fip import Diversification, Ensemble, ModelGraph, Task, begin_graph
from hf_fip.errors import InputError
from hf_fip.models import FiveLayerCNNConfig, FiveLayerCNNForImageClassification
from hf_fip.models.embedded import grey_image_processor
from hf_fip.objectives.random_steps import RandomSteps


def network(seed: int = 0) -> FiveLayerCNNForImageClassification:
    set_seed(seed)
    config = FiveLayerCNNConfig(
        num_channels=1, image_size=8, channels=(8, 16), paddings=(1, 1), hidden_sizes=(32, 16), num_labels=10
    )
    return FiveLayerCNNForImageClassification(config)


def stepped(steps: list[int], **options) -> tuple[dict, dict]:
    model = network()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    term = RandomSteps(**{"length": 0.6, "points": [5, 10, 15], **options})
    term.begin_segment(model)
    for step in steps:
        term.move_weights_(list(model.parameters()), step)
    return before, dict(model.named_parameters())


def test_a_step_turns_each_layer_by_its_angle_and_keeps_its_norm():
    before, after = stepped([1])
    for name, weight in after.items():
        if weight.ndim == 1:
            assert torch.equal(weight, before[name])
            continue
        cosine = torch.cosine_similarity(weight.flatten(), before[name].flatten(), dim=0)
        # To the accuracy at which a random direction is at a right angle.
        off = 4 / math.sqrt(weight.numel())
        assert cosine.item() == pytest.approx(0.8, abs=off)
        assert (weight.norm() / before[name].norm()).item() == pytest.approx(1, abs=off)


def test_only_the_first_step_of_a_segment_is_random():
    before, after = stepped([2, 3, 5, 7, 10, 12, 15, 16])
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    for step in (1, 6, 11):
        before, after = stepped([step])
        assert not torch.equal(before["hidden.0.weight"], after["hidden.0.weight"])


def test_steps_follow_from_seed_and_place_alone():
    same, again = stepped([1, 6])[1], stepped([1, 6])[1]
    assert all(torch.equal(weight, again[name]) for name, weight in same.items())
    other, later = stepped([1, 6], seed=1)[1], stepped([1, 11])[1]
    for found in (other, later):
        assert not torch.equal(found["hidden.0.weight"], same["hidden.0.weight"])


@pytest.mark.parametrize("length", [0, -0.1, 1.5, float("nan")])
def test_a_length_that_is_no_share_is_refused(length):
    with pytest.raises(InputError, match="length="):
        RandomSteps(length, points=[1])


def test_a_random_step_beside_a_repulsion_is_refused():
    with pytest.raises(InputError, match="repulsion=None"):
        Diversification(random_step=0.6)
    with pytest.raises(InputError, match="length=2"):
        Diversification(repulsion=None, random_step=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small network that has learned the digits of the demo."""
    folder = tmp_path_factory.mktemp("random_steps")
    network().save_pretrained(folder / "fresh")
    grey_image_processor(8, 0.3, 0.38).save_pretrained(folder / "fresh")
    training = {"max_steps": 250, "batch_size": 32, "learning_rate": 5e-3, "save_strategy": "no", "disable_tqdm": True}
    return begin_graph(
        ModelGraph(folder / "graph"),
        model=str(folder / "fresh"),
        task=Task("digits", "embedded:digits"),
        training={**training, "use_cpu": True},
    )


def test_points_lie_far_apart_and_answer_alike(base):
    training = {"learning_rate": 1e-2, "batch_size": 32, "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    operator = Diversification(
        repulsion=None, random_step=0.6, path_points=3, steps=450, anchors=1000, branch="random", training=training
    )
    path = operator(base)
    accuracy = base.metrics["digits/accuracy"]
    assert accuracy > 0.85
    cosines = [node.protocol["displacement"]["cosine"] for node in path]
    assert cosines == sorted(cosines, reverse=True) and cosines[-1] < 0.7
    assert all(node.metrics["digits/accuracy"] > accuracy - 0.1 for node in path)
    # In shares of the outputs' variance: right after a step it is about a half.
    assert all(node.functional_distance["root"] < 0.03 for node in path)
    assert path.end.protocol["random_steps"] == {"length": 0.6} and path.end.parameters["random_step"] == 0.6
    assert path.end.protocol["training_labels_used"] is False
    ensemble = Ensemble.from_nodes(path)
    assert ensemble.config.nodes == [node.id for node in path]
    # The path is in the graph: applied again, the operator finds it.
    assert [node.id for node in operator(base)] == [node.id for node in path]


def test_the_ensemble_reads_what_the_nodes_processor_gives(base):
    picture = Image.fromarray(np.full((8, 8), 200, dtype=np.uint8))
    read = base.load_processor()([picture], return_tensors="pt")
    assert Ensemble.from_nodes([base])(**read).logits.shape == (1, 10)
