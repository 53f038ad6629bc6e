"""Orthogonal subspace fine-tuning against its formula, and against the layers of PEFT."""

import pytest
import torch
from peft.tuners.osf import OSFConfig
from peft.tuners.osf.layer import Linear
from torch import nn

from hf_fip import InputError
from hf_fip.baselines.lora import fresh_adapter
from hf_fip.baselines.subspace import Matrix, OrthogonalSubspace
from hf_fip.terms import apply_weight_terms
from tests.testing_utils import classifier
from tests.unit.baselines.networks import SmallStart


def test_a_matrix_changes_outside_of_its_largest_singular_directions_alone():
    start = SmallStart()
    term = OrthogonalSubspace(0.7)
    term.begin_path(start)
    first, before = start.model.first, start.model.first.weight.detach().clone()
    left, _, right = torch.linalg.svd(before)
    # Two of three directions, as 0.7 * 3 is rounded down.
    projections = torch.eye(5).double() - left[:, :2] @ left[:, :2].T, torch.eye(3).double() - right[:2].T @ right[:2]
    moved = torch.randn_like(before)
    with torch.no_grad():
        first.weight += moved
    apply_weight_terms([term], start.parameters, step=1)
    torch.testing.assert_close(first.weight.detach(), before + projections[0] @ moved @ projections[1])
    settled = first.weight.detach().clone()
    apply_weight_terms([term], start.parameters, step=2)
    torch.testing.assert_close(first.weight.detach(), settled)


def test_other_weights_stay_but_for_the_new_rows_of_the_head():
    for old_nodes, free in ([0, 1], [2, 3]), ([0, 1, 2, 3], [0, 1, 2, 3]):
        start = SmallStart()
        start.old_nodes = old_nodes
        term = OrthogonalSubspace()
        term.begin_path(start)
        before = {name: p.detach().clone() for name, p in start.model.named_parameters()}
        with torch.no_grad():
            for p in start.parameters:
                p += 1
        apply_weight_terms([term], start.parameters, step=1)
        for name in ("classifier.weight", "classifier.bias"):
            moved = start.model.get_parameter(name).detach() - before[name]
            assert (moved[free] == 1).all() and moved.sum() == moved[free].sum()
        assert torch.equal(start.model.first.bias, before["first.bias"])


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)], ids=str)
def test_weights_that_pefts_layer_reaches_are_left_as_they_are(shape):
    torch.manual_seed(0)
    base = nn.Linear(shape[1], shape[0], bias=False).double()
    matrix = Matrix.of(base.weight, 0.5)
    layer = Linear(base, "default", OSFConfig(), effective_rank=min(shape) // 2).double()
    trained = list(layer.osf_svd_params["default"].parameters())
    inputs, targets = torch.randn(20, shape[1]).double(), torch.randn(20, shape[0]).double()
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (layer(inputs) - targets).square().mean().backward()
        optimizer.step()
    reached = (matrix.origin + layer.get_delta_weight("default")).detach()
    assert (reached - matrix.origin).norm() > 0.1
    with torch.no_grad():
        base.weight.copy_(reached)
        matrix.project_()
    # PEFT decomposes in single precision.
    torch.testing.assert_close(base.weight.detach(), reached, atol=1e-6, rtol=1e-6)


def test_filters_are_the_rows_of_a_matrix():
    weight = nn.Conv2d(3, 4, 2).weight
    matrix = Matrix.of(weight, 0.5)
    assert matrix.left.shape == (4, 2) and matrix.right.shape == (2, 12)
    with torch.no_grad():
        weight += torch.randn_like(weight)
        matrix.project_()
    moved = (weight - matrix.origin).detach().flatten(1)
    assert moved.norm() > 0.1
    torch.testing.assert_close(matrix.left.T @ moved, torch.zeros(2, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved @ matrix.right.T, torch.zeros(4, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 8])
def test_a_rank_that_is_no_share_is_refused(rank):
    with pytest.raises(InputError, match=f"effective_rank={rank} has to lie between 0 and 1"):
        OrthogonalSubspace(rank)


def test_an_adapter_is_refused():
    start = SmallStart()
    start.model = fresh_adapter(classifier(), rank=2)
    with pytest.raises(InputError, match="method 'osf' divides the weights themselves"):
        OrthogonalSubspace().begin_path(start)
