"""A classifier that has grown keeps its old outputs on the new task's inputs too."""

import pytest
import torch

from hf_fip import FIPConfig, FIPTrainer, InputError
from hf_fip.baselines import METHODS
from hf_fip.functional.distances import get_distance
from hf_fip.functional.penalty import NewInputDistance
from hf_fip.terms import OutputBatch, Step
from tests.testing_utils import arguments, assert_same_weights, classifier, texts, tokenizer, weights


def grown(folder, *, known_outputs=2, preserve=True, train=None, **changes) -> FIPTrainer:
    """Two old and two new output nodes."""
    return FIPTrainer(
        model=classifier(num_labels=4),
        args=arguments(
            folder, **{"max_steps": 6, "path_points": 1, "logging_steps": 1, "new_input_weight": 0.5, **changes}
        ),
        train_dataset=train or texts(32, seed=1).map(lambda row: {"labels": row["labels"] + 2}),
        anchor_dataset=texts(12, seed=2, labels=None),
        processing_class=tokenizer(),
        known_outputs=known_outputs,
        preserve=preserve,
    )


def test_it_is_the_distance_between_the_old_nodes_in_the_anchors_unit():
    outputs, reference = torch.randn(5, 4), torch.randn(5, 4)
    term = NewInputDistance(get_distance("l2"), nodes=3, unit=7.0, weight=2.0)
    step = Step(0, task=OutputBatch(outputs, reference=reference, examples=5, share=1 / 5))
    expected = (outputs - reference)[:, :3].square().sum(1).mean() / 7
    torch.testing.assert_close(term.loss(step), expected)
    assert term.loss(Step(0)) is None


def test_the_old_outputs_move_less_on_the_new_tasks_inputs(tmp_path):
    moved = {}
    for weight in (0.0, 10.0):
        trainer = grown(tmp_path / str(weight), new_input_weight=weight, max_steps=30, learning_rate=2e-3)
        start = outputs_of(trainer)
        trainer.train()
        moved[weight] = (outputs_of(trainer) - start)[:, :2].square().sum(1).mean().item()
        if weight:
            logged = [log["new_input_distance"] for log in trainer.state.log_history if "new_input_distance" in log]
            assert logged[0] == pytest.approx(0, abs=1e-6) and logged[-1] > 0
            assert trainer.graph["fip"].protocol["new_inputs"] == {"weight": 10.0, "nodes": 2}
    assert moved[10.0] < moved[0.0] / 3


def outputs_of(trainer) -> torch.Tensor:
    rows = texts(32, seed=1, labels=None)
    batch = trainer.data_collator([rows[i] for i in range(len(rows))])
    with torch.no_grad():
        return trainer.model.eval()(**batch).logits


def test_its_weight_is_a_share_of_the_distances(tmp_path):
    trainer = grown(tmp_path, new_input_weight=0.5, distance_budget=0.02)
    trainer._begin_path(None)
    found = {term.name: term.weight for term in trainer.terms}
    assert found["new_input_distance"] == pytest.approx(0.5 * found["functional_distance"])


@pytest.mark.parametrize("change", [{"known_outputs": None}, {"new_input_weight": 0.0}, {"preserve": False}])
def test_where_nothing_has_grown_or_is_asked_for_there_is_no_such_term(change, tmp_path):
    trainer = grown(tmp_path, **change)
    trainer._begin_path(None)
    assert "new_input_distance" not in [term.name for term in trainer.terms]


def test_accumulation_does_not_change_the_step(tmp_path):
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = grown(
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            anchor_batch_size=7,
            max_steps=3,
            optim="sgd",
            learning_rate=0.02,
        )
        trainer.train()
        found.append(weights(trainer.model))
    assert_same_weights(*found, tolerance=2e-5)


def test_a_rival_keeps_no_new_inputs_and_a_path_only_where_it_is_asked(tmp_path):
    assert FIPConfig(str(tmp_path)).new_input_weight == 0
    assert METHODS["derpp"].arguments["new_input_weight"] == 0


def test_a_negative_weight_is_refused(tmp_path):
    with pytest.raises(InputError, match="new_input_weight=-1"):
        FIPConfig(str(tmp_path), new_input_weight=-1)
