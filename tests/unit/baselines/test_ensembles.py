"""Members made by training: independent networks, FGE, SWAG, ADP."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_fip.baselines.adaptive_diversity import adaptive_diversity_ensemble, adp_loss
from hf_fip.baselines.ensembles import independent_networks, train
from hf_fip.baselines.fast_geometric import cyclical_rate, fast_geometric_ensemble
from hf_fip.baselines.swag import _Moments, swag_ensemble, update_batch_norms_
from hf_fip.errors import InputError
from hf_fip.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    FiveLayerCNNConfig,
    FiveLayerCNNForImageClassification,
)
from tests.testing_utils import images


CONFIG = FiveLayerCNNConfig(num_channels=3, image_size=8, channels=(4, 4), hidden_sizes=(16, 8), num_labels=4)


def make() -> FiveLayerCNNForImageClassification:
    return FiveLayerCNNForImageClassification(CONFIG)


def arguments(folder, **changes) -> TrainingArguments:
    options = {
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **{**options, **changes})


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def apart(members) -> bool:
    return all(not torch.equal(flat(a), flat(b)) for a, b in pairwise(members))


@pytest.fixture(scope="module")
def rows():
    return images(32, seed=1)


@pytest.fixture
def trained(tmp_path, rows):
    torch.manual_seed(0)
    return train(make(), rows, arguments(tmp_path), seed=0)


def test_independent_networks_are_those_of_their_seeds(tmp_path, rows):
    args = arguments(tmp_path)
    two = independent_networks(make, rows, args, [3, 4])
    again = independent_networks(make, rows, args, [4])
    assert apart(two) and torch.equal(flat(two[1]), flat(again[0]))
    assert not any(member.training for member in two) and args.seed == 42


def test_the_rate_falls_and_rises_within_each_cycle():
    rates = [cyclical_rate(step, 8, 0.1) for step in range(16)]
    assert rates[:8] == rates[8:]
    assert rates[3] == pytest.approx(0.1) == pytest.approx(min(rates)) and rates[7] == pytest.approx(1)
    assert rates[:4] == sorted(rates[:4], reverse=True) and rates[3:8] == sorted(rates[3:8])
    # A line: equal steps.
    assert rates[0] - rates[1] == pytest.approx(rates[2] - rates[3]) == pytest.approx(rates[5] - rates[4])


def test_fast_geometric_members_are_taken_where_the_rate_is_lowest(tmp_path, rows, trained):
    before = flat(trained)
    members = fast_geometric_ensemble(trained, rows, arguments(tmp_path), members=3, cycle=4)
    assert len(members) == 3 and apart(members) and torch.equal(flat(trained), before)
    # The first member is what half a cycle on the falling rate gives.
    short = fast_geometric_ensemble(trained, rows, arguments(tmp_path), members=1, cycle=4)
    assert torch.equal(flat(short[0]), flat(members[0]))


def test_swag_members_scatter_around_the_mean_of_the_weights_met(tmp_path, rows, trained):
    before = flat(trained)
    options = {"steps": 8, "every": 2, "rank": 3, "seed": 1}
    members = swag_ensemble(trained, rows, arguments(tmp_path), members=30, **options)
    still = swag_ensemble(trained, rows, arguments(tmp_path), members=2, scale=0.0, **options)
    assert torch.equal(flat(still[0]), flat(still[1])) and torch.equal(flat(trained), before)
    drawn = torch.stack([flat(member) for member in members])
    spread = (drawn - flat(still[0])).norm(dim=1).mean()
    off = (drawn.mean(0) - flat(still[0])).norm()
    assert off < 0.5 * spread and apart(members)
    again = swag_ensemble(trained, rows, arguments(tmp_path), members=1, **options)
    assert torch.equal(flat(again[0]), flat(members[0]))


def test_swag_sees_weights_scatter_that_hardly_move():
    """By 1e-4 around 1, as weights do at a low rate: in single precision a mean of squares does not show it."""
    moments, model = _Moments(1, 10), nn.Linear(40, 50, bias=False)
    met = 1 + 1e-4 * torch.randn(30, 50, 40, generator=torch.Generator().manual_seed(0))
    for step, weight in enumerate(met, 1):
        model.weight.data = weight
        moments.on_step_end(None, SimpleNamespace(global_step=step), None, model=model)
    torch.testing.assert_close(moments.mean, met.mean(0).flatten(), rtol=0, atol=1e-6)
    wanted = met.double().std(0, correction=0).flatten().float()
    torch.testing.assert_close((moments.scatter / moments.count).sqrt(), wanted, rtol=1e-2, atol=0)


def test_batch_norms_take_the_statistics_of_the_data(rows):
    torch.manual_seed(0)
    model = CifarResNetForImageClassification(CifarResNetConfig(image_size=8, num_labels=2)).eval()
    seen = []
    first = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    hook = first.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    update_batch_norms_(model, rows, batch_size=8)
    hook.remove()
    wanted = torch.stack([part.mean((0, 2, 3)) for part in seen]).mean(0)
    torch.testing.assert_close(first.running_mean, wanted, atol=1e-6, rtol=1e-4)
    assert not model.training and first.momentum == 0.1


def test_the_adp_loss_by_hand():
    # Two members, both right with 1/2, the rest on different wrong classes: a right angle, whose determinant is 1.
    probabilities = torch.tensor([[[0.5, 0.5, 0.0]], [[0.5, 0.0, 0.5]]])
    labels = torch.tensor([0])
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    wanted = 2 * math.log(2) - 2.0 * entropy
    found = adp_loss(probabilities.clamp(min=1e-12).log(), labels)
    assert found.item() == pytest.approx(wanted, abs=1e-4)
    # Where both err alike there is no volume, and the loss is higher.
    alike = torch.tensor([[[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]]]).clamp(min=1e-12).log()
    assert adp_loss(alike, labels) > found + 1
    assert adp_loss(alike, labels, alpha=0, beta=0).item() == pytest.approx(2 * math.log(2))


def test_adp_members_disagree_more_on_wrong_answers_than_members_trained_alike(tmp_path, rows):
    args = arguments(tmp_path, max_steps=40)
    diverse = adaptive_diversity_ensemble(make, rows, args, members=3)
    plain = adaptive_diversity_ensemble(make, rows, args, members=3, alpha=0.0, beta=0.0)
    batch = rows[:]

    def loss(members) -> float:
        with torch.no_grad():
            answers = torch.stack([member(batch["pixel_values"]).logits.log_softmax(-1) for member in members])
        return adp_loss(answers, batch["labels"]).item()

    assert loss(diverse) < loss(plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, r, a: fast_geometric_ensemble(m, r, a, members=0), "members=0"),
        (lambda m, r, a: fast_geometric_ensemble(m, r, a, cycle=1), "cycle=1"),
        (lambda m, r, a: swag_ensemble(m, r, a, steps=10, every=9), "at least 2 weights"),
        (lambda m, r, a: adaptive_diversity_ensemble(make, r, a, members=4), "members=4 of 4 classes"),
    ],
    ids=["members", "cycle", "swag", "adp"],
)
def test_bad_input_is_refused(tmp_path, rows, call, message):
    with pytest.raises(InputError, match=message):
        call(make(), rows, arguments(tmp_path))
