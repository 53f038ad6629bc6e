"""GEM and A-GEM against their formulas and a general-purpose optimizer."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hf_fip import InputError
from hf_fip.baselines.projection import GEM, AveragedGEM, gem_multipliers
from hf_fip.functional.penalty import anchor_label_losses
from hf_fip.terms import Step
from tests.unit.baselines.networks import SmallStart


def take_step(term, start: SmallStart, *, parts=None, helps: bool = False) -> torch.Tensor:
    """
    One step on a task that is at odds with the anchors (or helps them); returns the plain gradient. The anchors come
    in the given parts, as under accumulation.
    """
    every = list(range(len(start.anchor_tasks)))
    batch = start.anchor_outputs(every)
    kept = torch.nn.functional.cross_entropy(batch.outputs, batch.labels)
    task = kept if helps else torch.nn.functional.cross_entropy(batch.outputs, batch.labels + 2) - kept
    term.begin_path(start)
    for indices in parts or [every]:
        assert term.loss(Step(0, anchors=start.anchor_outputs(indices))) is None
    plain = start.gradient_of(task)
    task.backward()
    term.constrain_gradient_(start.parameters)
    return plain


def task_gradients(start: SmallStart) -> torch.Tensor:
    losses = anchor_label_losses(start.anchor_outputs(range(len(start.anchor_tasks)))).double()
    tasks = torch.tensor(start.anchor_tasks)
    return torch.stack([start.gradient_of(losses[tasks == task].mean()) for task in tasks.unique()])


def test_agem_takes_out_what_the_anchors_disagree_with():
    start = SmallStart()
    plain = take_step(AveragedGEM(), start)
    reference = start.gradient_of(anchor_label_losses(start.anchor_outputs(range(6))).mean())
    assert plain @ reference < 0
    expected = plain - (plain @ reference) / (reference @ reference) * reference
    torch.testing.assert_close(start.summed_gradient(), expected, rtol=1e-5, atol=1e-7)
    assert abs(start.summed_gradient() @ reference) < 1e-6


@pytest.mark.parametrize("method", [AveragedGEM, GEM])
def test_a_gradient_that_helps_the_anchors_is_left_alone(method):
    start = SmallStart()
    term = method()
    plain = take_step(term, start, helps=True)
    torch.testing.assert_close(start.summed_gradient(), plain)
    assert float(term.logs()["projected_steps"]) == 0


def test_gem_agrees_with_every_task():
    start = SmallStart([0, 0, 0, 1, 1, 2, 2, 2])
    plain = take_step(GEM(0.0), start)
    memory = task_gradients(start)
    assert (memory @ plain).min() < 0
    assert (memory @ start.summed_gradient()).min() > -1e-6
    factors = gem_multipliers((memory @ memory.T).numpy(), (memory @ plain).numpy())
    expected = plain + torch.from_numpy(factors) @ memory
    torch.testing.assert_close(start.summed_gradient(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [AveragedGEM, GEM])
def test_anchors_in_unequal_parts_give_the_same_step(method):
    results = []
    for parts in (None, [[0], [1, 2, 3, 4], [5, 6, 7]]):
        start = SmallStart([0, 0, 0, 1, 1, 2, 2, 2])
        take_step(method(), start, parts=parts)
        results.append(start.summed_gradient())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_projection_is_the_closest_gradient_that_agrees(tasks, seed):
    rng = np.random.default_rng(seed)
    memory, gradient = rng.normal(size=(tasks, 6)), rng.normal(size=6)
    # Gradients of very different sizes are the rule: old tasks are learned, so theirs are small.
    memory *= 10.0 ** -np.arange(tasks)[:, None]
    found = gradient + gem_multipliers(memory @ memory.T, memory @ gradient) @ memory
    directions = memory / np.linalg.norm(memory, axis=1, keepdims=True)
    assert (directions @ found).min() > -1e-6
    best = minimize(
        lambda z: ((z - gradient) ** 2).sum() / 2,
        np.zeros(6),
        jac=lambda z: z - gradient,
        constraints={"type": "ineq", "fun": lambda z: directions @ z, "jac": lambda z: directions},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found == pytest.approx(best.x, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_with_a_margin_the_multipliers_are_those_of_the_bounded_dual(seed):
    rng = np.random.default_rng(seed)
    memory, gradient = rng.normal(size=(3, 6)), rng.normal(size=6)
    gram, products = memory @ memory.T, memory @ gradient - 1.0
    found = gem_multipliers(gram, products, margin=0.5)
    best = minimize(lambda v: v @ gram @ v / 2 + products @ v, np.ones(3), bounds=[(0.5, None)] * 3)
    assert found == pytest.approx(best.x, abs=1e-3)


def test_tasks_without_a_gradient_do_not_constrain():
    memory = np.array([[0.0, 0.0], [-1.0, 0.0]])
    factors = gem_multipliers(memory @ memory.T, memory @ np.array([1.0, 1.0]))
    assert factors == pytest.approx([0.0, 1.0])


def test_float16_and_anchors_without_labels_are_refused():
    start = SmallStart()
    start.model.float()
    start.inputs = start.inputs.float()
    term = AveragedGEM()
    term.begin_path(start)
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(InputError, match="fp16=True.*bf16=True"),
    ):
        term.loss(Step(0, anchors=start.anchor_outputs([0, 1])))
    anchors = start.anchor_outputs([0, 1])
    anchors.labels = None
    with pytest.raises(InputError, match="anchor_dataset has no labels"):
        term.loss(Step(0, anchors=anchors))
