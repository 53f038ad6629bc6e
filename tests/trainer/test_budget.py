"""Forgetting control: the budget holds at every recorded point, and what is claimed of unseen inputs is true."""

import pytest
import torch

from hf_fip import FIPConfig, FIPTrainer, InputError
from hf_fip.functional.budget import Budget, Drift, predictions_changed
from tests.testing_utils import arguments, assert_same_weights, case, texts, weights


def travel(tmp_path, **changes):
    options = {"max_steps": 40, "path_points": 4, "learning_rate": 5e-3, "restoration_steps": 300}
    trainer = FIPTrainer(
        args=arguments(tmp_path, **{**options, **changes}),
        heldout_dataset=texts(50, seed=8, labels=None),
        **case("sequence-classification"),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("distance", ["l2", "kl"])
def test_a_distance_budget_holds_at_every_point(distance, tmp_path):
    free = travel(tmp_path / "free", functional_distance=distance, beta=100.0)
    spent = [node.protocol["budget"]["anchors"]["distance"] for node in list(free.graph)[1:]]
    budget = max(spent) / 10
    # A weak penalty, so that it is the restoration which has to keep the budget.
    kept = travel(tmp_path / "kept", functional_distance=distance, beta=100.0, distance_budget=budget)
    reports = [node.protocol["budget"] for node in list(kept.graph)[1:]]
    assert all(report["anchors"]["distance"] <= budget for report in reports)
    assert any(report["restoration_steps"] > 0 for report in reports)
    assert not any(report["cap_hit"] for report in reports)


def test_a_disagreement_budget_holds_at_every_point(tmp_path):
    kept = travel(tmp_path, disagreement_budget=0.1, beta=20.0)
    for node in list(kept.graph)[1:]:
        assert node.protocol["budget"]["anchors"]["disagreement"] <= 0.1


def test_a_cap_that_is_hit_is_reported(tmp_path):
    trainer = travel(tmp_path, distance_budget=1e-7, beta=1e4, restoration_steps=1)
    report = trainer.graph["fip"].protocol["budget"]
    assert report["cap_hit"] and report["restoration_steps"] == 1
    assert report["anchors"]["distance"] > 1e-7


def test_too_few_held_out_inputs_are_not_certified_and_enough_are_named(tmp_path):
    trainer = travel(tmp_path, disagreement_budget=0.02)
    disagreement, _ = trainer.graph["fip"].protocol["budget"]["held_out"]
    assert disagreement["certified"] is False, "50 inputs cannot certify 2 %"
    assert disagreement["inputs"] == 50
    assert "not certified" in disagreement["message"]
    if disagreement["value"] == 0:
        assert disagreement["inputs_needed"] == 183


def held_out(node) -> dict:
    (asked,) = (entry for entry in node.protocol["budget"]["held_out"] if entry["asked"] is not None)
    return asked


def test_a_path_stops_where_held_out_inputs_end_the_budget(tmp_path):
    # A weak penalty and no restoration: nothing but the stop can keep the budget.
    free = {"beta": 1e3, "restoration_steps": 0, "max_steps": 12, "path_points": 3}
    going_on = travel(tmp_path / "going on", distance_budget=1e-6, **free).graph
    budget = held_out(list(going_on)[1])["high"] / 3
    trainer = travel(tmp_path / "stopped", stop_at_budget=True, distance_budget=budget, **free)
    start, *points = trainer.graph
    (stop,) = points
    report = stop.protocol["budget"]
    assert 0 < report["stopped_at"] < 1 and stop.protocol["path"]["finished"]
    assert held_out(stop)["certified"]
    assert report["anchors"]["distance"] < list(going_on)[1].protocol["budget"]["anchors"]["distance"]
    first, there, end = (weights(node.load_model()) for node in (start, stop, list(going_on)[1]))
    expected = {name: torch.lerp(first[name], end[name], report["stopped_at"]) for name in first}
    assert_same_weights(there, expected, tolerance=1e-6)
    assert_same_weights(weights(trainer.model), there)


def test_a_path_that_keeps_its_budget_goes_to_its_end(tmp_path):
    trainer = travel(tmp_path, distance_budget=10.0, stop_at_budget=True, max_steps=8)
    assert [node.step for node in list(trainer.graph)[1:]] == [2, 4, 6, 8]
    assert "stopped_at" not in trainer.graph["fip"].protocol["budget"]


@pytest.mark.parametrize("missing", ["a budget", "heldout_dataset"])
def test_stopping_needs_a_budget_and_inputs_that_certify_it(missing, tmp_path):
    changes = {} if missing == "a budget" else {"distance_budget": 0.1}
    heldout = texts(50, seed=8, labels=None) if missing == "a budget" else None
    with pytest.raises(InputError, match=f"stop_at_budget=True needs {missing}"):
        FIPTrainer(
            args=arguments(tmp_path, stop_at_budget=True, max_steps=1, **changes),
            heldout_dataset=heldout,
            **case("sequence-classification"),
        )


@pytest.mark.parametrize(
    ("option", "value"),
    [("distance_budget", 0.0), ("distance_budget", -1.0), ("disagreement_budget", 0.0), ("disagreement_budget", 1.0)],
)
def test_impossible_budgets_are_refused_at_once(option, value, tmp_path):
    with pytest.raises(InputError, match=f"{option}="):
        FIPConfig(str(tmp_path), **{option: value})


def test_the_tighter_budget_sets_the_weight():
    assert Budget(distance=0.02).weight == pytest.approx(5.0)
    assert Budget(distance=0.02, disagreement=0.01).weight > Budget(distance=0.02).weight


def test_drift_says_what_changed():
    reference = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    changed = predictions_changed(outputs, reference)
    drift = Drift(torch.tensor([0.1, 0.4, 0.0]), changed)
    assert drift.disagreement == pytest.approx(1 / 3)
    assert Budget(disagreement=0.3).exceeded(drift)
    assert not Budget(disagreement=0.4).exceeded(drift)
    assert predictions_changed(torch.zeros(3, 1), torch.zeros(3, 1)) is None
