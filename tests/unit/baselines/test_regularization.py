"""L2 and elastic weight consolidation against brute force."""

import pytest
import torch

from hf_fip import InputError
from hf_fip.baselines.regularization import L2, ElasticWeightConsolidation, OnlineEWC, fisher_diagonal
from tests.unit.baselines.networks import NODES, SmallStart


def exact_fisher(start: SmallStart, indices: list[int]) -> torch.Tensor:
    """The expectation over the network's own labels, class by class."""
    total = torch.zeros(sum(p.numel() for p in start.parameters), dtype=torch.float64)
    for index in indices:
        log_p = start.anchor_outputs([index]).outputs[0].log_softmax(-1)
        for label in range(NODES):
            total += log_p[label].exp().detach() * start.gradient_of(log_p[label]).square() / len(indices)
    return total


def move(start: SmallStart) -> None:
    with torch.no_grad():
        for p in start.parameters:
            p += torch.randn_like(p)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def test_the_fisher_information_is_the_expectation_over_the_networks_own_labels():
    start = SmallStart()
    sampled = flat(fisher_diagonal(start, [1, 2, 4], start.parameters, draws=4000))
    exact = exact_fisher(start, [1, 2, 4])
    assert sampled.double() == pytest.approx(exact, rel=0.15, abs=2e-3)
    assert sampled.sum().item() == pytest.approx(exact.sum().item(), rel=0.03)


def test_a_confident_network_has_fisher_information_too():
    """Labels it would draw once in thousands of times carry nearly all of it."""
    start = SmallStart()
    with torch.no_grad():
        start.model.classifier.bias[0] += 9.0
    sampled = flat(fisher_diagonal(start, [0, 1], start.parameters, draws=60))
    assert sampled.sum().item() == pytest.approx(exact_fisher(start, [0, 1]).sum().item(), rel=0.15)


@pytest.mark.parametrize("term", [ElasticWeightConsolidation(7.0), OnlineEWC(7.0), L2(7.0)], ids=lambda t: t.name)
def test_the_gradient_is_that_of_the_quadratic_form(term):
    start = SmallStart()
    centres = [p.detach().clone() for p in start.parameters]
    fisher = term.importance(start, dict(start.model.named_parameters()))
    term.begin_path(start)
    move(start)
    penalty = sum((f * (p - c).square()).sum() / 2 for f, p, c in zip(fisher, start.parameters, centres, strict=True))
    expected = start.gradient_of(7.0 * penalty)
    term.add_gradient_(start.parameters)
    torch.testing.assert_close(start.summed_gradient(), expected)
    assert float(term.logs()[term.name]) == pytest.approx(penalty.item())


def test_l2_leaves_the_new_rows_of_the_head_free():
    start = SmallStart()
    term = L2(0.5)
    term.begin_path(start)
    before = {name: p.detach().clone() for name, p in start.model.named_parameters()}
    move(start)
    term.add_gradient_(start.parameters)
    for name, p in start.model.named_parameters():
        expected = 0.5 * (p.detach() - before[name])
        if name.startswith("classifier"):
            expected[2:] = 0
        torch.testing.assert_close(p.grad, expected)


def test_the_fisher_information_of_earlier_tasks_adds_up_and_fades_online():
    start = SmallStart([0, 0, 1, 1, 1, 2])
    parameters = dict(start.model.named_parameters())
    each = []
    for task in range(3):
        indices = [i for i, number in enumerate(start.anchor_tasks) if number == task]
        each.append(flat(fisher_diagonal(start, indices, start.parameters, draws=100)))
    plain = flat(ElasticWeightConsolidation(1.0, passes=600).importance(start, parameters))
    torch.testing.assert_close(plain, sum(each))
    online = flat(OnlineEWC(1.0, decay=0.5, passes=600).importance(start, parameters))
    torch.testing.assert_close(online, sum(0.5 ** (2 - age) * f / f.mean() for age, f in enumerate(each)))
    assert OnlineEWC(1.0, decay=0.0, passes=600).importance(start, parameters)[0].sum() > 0, "the last task counts"


def test_without_anchors_there_is_no_fisher_information():
    with pytest.raises(InputError, match="ewc needs anchor_dataset"):
        ElasticWeightConsolidation(1.0).begin_path(SmallStart([]))
