"""Losses and predictions within the output nodes of a known task."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction

from hf_fip import InputError
from hf_fip.functional.budget import predictions_changed
from hf_fip.functional.penalty import anchor_label_losses, anchor_prediction_losses
from hf_fip.functional.task_nodes import accuracy, node_table, nodes_of_labels, task_loss_within, within
from hf_fip.terms import OutputBatch


TASKS = [[0, 1], [4, 2], [3, 5, 6]]
TABLE = node_table(TASKS, 7)
LABELS = torch.tensor([1, 4, 6, 2, 0])


@pytest.fixture
def outputs():
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)


def reference_losses(outputs, smoothing=0.0):
    """Each row's cross-entropy with the other tasks' outputs taken away."""
    losses = []
    for row, label in zip(outputs, LABELS.tolist(), strict=True):
        nodes = next(nodes for nodes in TASKS if label in nodes)
        place = torch.tensor([nodes.index(label)])
        losses.append(cross_entropy(row[nodes][None], place, label_smoothing=smoothing))
    return torch.stack(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_task_loss_is_the_cross_entropy_of_the_tasks_own_outputs(smoothing, outputs):
    loss = task_loss_within(TABLE, smoothing=smoothing)
    expected = reference_losses(outputs, smoothing)
    torch.testing.assert_close(loss({"logits": outputs}, LABELS), expected.mean())
    torch.testing.assert_close(loss({"logits": outputs}, LABELS, num_items_in_batch=10), expected.sum() / 10)
    (gradient,) = torch.autograd.grad(loss({"logits": outputs}, LABELS), outputs)
    assert (gradient[~nodes_of_labels(TABLE, LABELS)] == 0).all()
    assert torch.isfinite(gradient).all()


def test_rows_without_a_label_are_passed_over(outputs):
    loss = task_loss_within(TABLE)
    labels = torch.cat([LABELS[:4], torch.tensor([-100])])
    torch.testing.assert_close(loss({"logits": outputs}, labels), reference_losses(outputs)[:4].mean())


def test_anchor_labels_are_scored_within_the_task(outputs):
    batch = OutputBatch(outputs, labels=LABELS, examples=5, nodes=nodes_of_labels(TABLE, LABELS))
    torch.testing.assert_close(anchor_label_losses(batch), reference_losses(outputs))


def test_accuracy_is_that_of_the_best_output_of_the_task():
    logits = np.zeros((3, 7), dtype=np.float32)
    # The largest output of all is another task's; within the task the label wins, wins, loses.
    logits[:, 0] = 9.0
    logits[0, 4], logits[1, 6], logits[2, 5] = 1.0, 1.0, 1.0
    prediction = EvalPrediction(predictions=logits, label_ids=np.array([4, 6, 3]))
    assert accuracy(prediction, TABLE)["accuracy"] == pytest.approx(2 / 3)
    assert accuracy(prediction)["accuracy"] == 0.0


def test_a_prediction_changes_within_its_task_only():
    outputs, reference = torch.zeros(2, 7), torch.zeros(2, 7)
    outputs[:, 6], reference[:, 0] = 5.0, 5.0
    outputs[0, 1], reference[0, 1] = 1.0, 6.0
    outputs[1, 1] = 1.0
    nodes = TABLE[[0, 0]]
    assert predictions_changed(outputs, reference).tolist() == [True, True]
    assert predictions_changed(within(outputs, nodes), within(reference, nodes)).tolist() == [False, True]


@pytest.mark.parametrize("tasks", [[[0, 1], [1, 2]], [[0, 7]], [[-1, 0]]], ids=["shared", "beyond", "negative"])
def test_nodes_that_no_one_task_has_are_refused(tasks):
    with pytest.raises(InputError, match="task_nodes=.*belongs to one task"):
        node_table(tasks, 7)


def predicted(outputs, reference, reference_nodes=None, nodes=None):
    batch = OutputBatch(
        outputs, reference=reference, examples=len(outputs), nodes=nodes, reference_nodes=reference_nodes
    )
    return anchor_prediction_losses(batch)


def test_nodes_that_the_reference_lacked_had_no_probability_there():
    """Kullback-Leibler divergence to the reference's classes, plus the entropy they had, plus −log of what is left."""
    outputs, reference = torch.randn(5, 4), torch.randn(5, 4)
    old = torch.tensor([True, True, False, False]).expand(5, 4)
    p, log_q = reference[:, :2].softmax(dim=-1), outputs.log_softmax(dim=-1)[:, :2]
    torch.testing.assert_close(predicted(outputs, reference, old), -(p * log_q).sum(dim=-1))
    # Whatever the reference's rows hold at those nodes.
    torch.testing.assert_close(
        predicted(outputs, reference + torch.tensor([0, 0, 9.0, -9]), old), -(p * log_q).sum(-1)
    )


def test_a_sure_reference_is_a_label():
    outputs, sure = torch.randn(6, 5), 1e4 * torch.eye(5)[torch.arange(6) % 3]
    old = torch.tensor([True, True, True, False, False]).expand(6, 5)
    expected = cross_entropy(outputs, torch.arange(6) % 3, reduction="none")
    torch.testing.assert_close(predicted(outputs, sure, old), expected)


def test_predictions_within_a_known_task_have_finite_gradients():
    outputs, reference = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)
    mine = torch.tensor([True, True, False, False]).expand(4, 4)
    losses = predicted(outputs, reference, mine, mine)
    losses.sum().backward()
    expected = outputs[:, :2].softmax(dim=-1) - reference[:, :2].softmax(dim=-1)
    torch.testing.assert_close(outputs.grad[:, :2], expected.detach())
    assert torch.equal(outputs.grad[:, 2:], torch.zeros(4, 2))
