"""What compression is compared with: lottery tickets and random networks; and the recipes that compare on images."""

from __future__ import annotations

import pytest
import torch

from hf_fip import ModelGraph
from hf_fip.baselines.compression import LotteryTickets, random_network
from hf_fip.errors import InputError
from hf_fip.models import LeNet300100Config, LeNet300100ForImageClassification
from hf_fip.objectives import get_projection
from hf_fip.recipes import load_recipe
from hf_fip.recipes.runner import run
from tests.testing_utils import assert_same_weights, weights


def network(seed: int = 0) -> LeNet300100ForImageClassification:
    torch.manual_seed(seed)
    return LeNet300100ForImageClassification(LeNet300100Config(image_size=8, hidden_sizes=(40, 20), num_labels=5))


def share_of_zeros(model) -> float:
    matrices = [model.hidden[0].weight, model.hidden[1].weight]
    return sum(int((m == 0).sum()) for m in matrices) / sum(m.numel() for m in matrices)


def walk(targets: list[float], points: list[int]) -> tuple[list[float], list[bool]]:
    """Zeros after each step of a training by chance, and whether the step ended with a rewind."""
    model = network()
    start = weights(model)
    tickets = LotteryTickets(get_projection("unstructured"), targets, points)
    tickets.begin_segment(model)
    zeros, rewound = [], []
    for step in range(1, points[-1] + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        tickets.move_weights_([], step)
        tickets.constrain_weights_([])
        zeros.append(share_of_zeros(model))
        kept = {name: value for name, value in weights(model).items() if "bias" in name or value.ndim == 1}
        rewound.append(all(torch.equal(value, start[name]) for name, value in kept.items()))
        if step in points:
            tickets.end_segment(model)
            tickets.begin_segment(model)
    return zeros, rewound


def test_tickets_are_drawn_in_rounds_that_cut_at_most_half_and_train_last_the_longest():
    zeros, rewound = walk([0.9], [40])
    cuts = [step for step, is_rewound in enumerate(rewound, start=1) if is_rewound]
    left = [1 - zeros[step - 1] for step in cuts]
    assert len(cuts) == 4 and cuts[-1] <= 22
    assert all(later >= 0.5 * earlier for earlier, later in zip([1, *left], left, strict=False))
    assert left[-1] == pytest.approx(0.1, abs=1e-3)
    assert zeros[cuts[-1] - 1 :] == [zeros[-1]] * (41 - cuts[-1])


def test_a_later_ticket_is_drawn_from_the_network_that_the_earlier_one_became():
    zeros, rewound = walk([0.5, 0.7], [10, 20])
    assert [step for step, is_rewound in enumerate(rewound, start=1) if is_rewound] == [1, 11]
    assert zeros[9] == pytest.approx(0.5, abs=1e-3) and zeros[19] == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_tickets_reach_their_target_in_any_number_of_steps(steps):
    assert walk([0.99], [steps])[0][-1] == pytest.approx(0.99, abs=1e-3)


def test_a_random_network_has_its_zeros_anywhere():
    model = network()
    before = weights(model)
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    sparse = random_network(model, 0.9, seed=5, include=["classifier"])
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
    assert_same_weights(weights(model), before)
    matrices = [p for p in sparse.parameters() if p.ndim == 2]
    zeros, size = sum(int((m == 0).sum()) for m in matrices), sum(m.numel() for m in matrices)
    assert abs(zeros - 0.9 * size) <= 1 and not sparse.training
    # No layer and no size of weights is preferred.
    first = sparse.hidden[0].weight.detach()
    kept = first[first != 0].abs()
    assert len(kept) / first.numel() == pytest.approx(0.1, abs=0.02)
    assert kept.mean() == pytest.approx(model.hidden[0].weight.abs().mean().item(), rel=0.15)
    assert_same_weights(weights(sparse), weights(random_network(model, 0.9, seed=5, include=["classifier"])))
    other = random_network(model, 0.9, seed=6, include=["classifier"])
    assert not torch.equal(weights(other)["hidden.0.weight"], weights(sparse)["hidden.0.weight"])


def test_a_random_network_needs_something_to_prune():
    with pytest.raises(InputError, match="nothing is left to compress"):
        random_network(network(), 0.5, exclude=["*"])


@pytest.mark.parametrize(
    ("name", "task", "sparsity"), [("lenet_mnist", "mnist", 0.994), ("resnet20_cifar10", "cifar10", 0.95)]
)
def test_the_recipes_of_images_end_in_sparse_networks_of_each_method(name, task, sparsity, tmp_path):
    overrides = [f"tasks.{task}={{dataset: embedded:digits, max_train: 48, max_test: 16}}", "base={max_steps: 2}"]
    overrides += ["training.batch_size=8", "anchor_batch_size=8", "path.0.steps=2", "baselines=[gmp]", "branches={}"]
    recipe = load_recipe(name, overrides)
    assert recipe.path[0].settings["sparsity"][-1] == sparsity
    recipe = load_recipe(name, [*overrides, f"path.0.sparsity=[0.5, {sparsity}]", "report=false"])
    graph = ModelGraph.load(run(recipe, tmp_path)["graph"])
    assert graph.endpoints.keys() == {"base", "fip", "gmp"}
    for branch in ("fip", "gmp"):
        node = graph[graph.endpoints[branch]]
        record = node.protocol["compression"]
        assert record["sparsity"] == pytest.approx(sparsity, abs=1e-4)
        assert record["over"]["weights"] == {"lenet_mnist": 266_200, "resnet20_cifar10": 267_696}[name]
        assert 0 <= node.metrics[f"{task}/accuracy"] <= 1
