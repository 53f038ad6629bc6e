"""Forgetting control: the budget holds at every recorded point, and what is claimed of unseen inputs is true."""

import pytest
import torch

from hf_fip import FIPConfig, FIPTrainer, InputError, preservation
from hf_fip.functional.budget import Budget, Drift, predictions_changed
from tests.testing_utils import arguments, case, texts


def travel(tmp_path, number=50, anchors=None, **changes):
    options = {"max_steps": 40, "path_points": 4, "learning_rate": 5e-3, "restoration_steps": 300}
    trainer = FIPTrainer(
        args=arguments(tmp_path, **{**options, **changes}),
        heldout_dataset=texts(number, seed=8, labels=None),
        **case("sequence-classification") | ({} if anchors is None else {"anchor_dataset": anchors}),
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


def test_what_was_gained_is_kept_on_no_more_inputs_than_memory_affords(tmp_path, monkeypatch):
    many = travel(tmp_path / "many", max_steps=1, path_points=1).preservation
    outputs = many.anchors.all_reference.shape[-1]
    assert len(many._new_task_now()) == min(512, len(many.trainer.train_dataset))
    monkeypatch.setattr(preservation, "AFFORDABLE_VALUES", 3 * outputs)
    few = travel(tmp_path / "few", max_steps=1, path_points=1).preservation
    assert len(few._new_task_now()) == 3


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


def test_calibrating_inputs_control_what_held_out_inputs_certify(tmp_path):
    free = {"beta": 1e3, "max_steps": 12, "path_points": 1, "number": 400, "anchors": texts(400, seed=9, labels=None)}
    going_on = travel(tmp_path / "going on", restoration_steps=0, disagreement_budget=0.9, **free).graph["fip"]
    controlled = travel(tmp_path / "controlled", disagreement_budget=0.3, calibration_share=0.5, **free)
    node = controlled.graph["fip"]
    changed, report = disagreement(node), node.protocol["budget"]
    assert disagreement(going_on)["value"] > 0.3 and disagreement(going_on)["inputs"] == 400
    assert changed["certified"] and changed["inputs"] == 200
    assert report["restoration_steps"] > 0 and not report["cap_hit"]
    kept, used = controlled.preservation.heldout, controlled.preservation.calibrating
    assert len(kept) == len(used) == 200
    # Of the 400 inputs each is in one part.
    together = [tuple(part.inputs([i])["input_ids"][0].tolist()) for part in (kept, used) for i in range(200)]
    rows = {tuple(row) for row in texts(400, seed=8, labels=None)["input_ids"]}
    assert {tuple(token for token in row if token) for row in together} == rows


def disagreement(node) -> dict:
    return next(entry for entry in node.protocol["budget"]["held_out"] if entry["kind"] == "disagreement")


def test_anchors_alone_do_not_answer_for_the_calibrating_inputs(tmp_path):
    still = {"max_steps": 1, "path_points": 1, "learning_rate": 1e-12}
    trainer = travel(tmp_path, number=100, disagreement_budget=0.5, calibration_share=0.5, **still)
    preservation = trainer.preservation
    drift = preservation.drift(preservation.anchors)
    assert preservation._outside(drift) == ""
    far = preservation.calibrating.all_reference
    preservation.calibrating.remember(far.flip(-1) * 100)
    assert not preservation.args.budget.exceeded(drift)
    assert preservation._outside(drift) == "the calibrating inputs"


@pytest.mark.parametrize("missing", ["a budget", "heldout_dataset"])
def test_control_needs_a_budget_and_inputs(missing, tmp_path):
    changes = {} if missing == "a budget" else {"distance_budget": 0.1}
    heldout = texts(50, seed=8, labels=None) if missing == "a budget" else None
    with pytest.raises(InputError, match=f"calibration_share=0.5 needs {missing}"):
        FIPTrainer(
            args=arguments(tmp_path, calibration_share=0.5, max_steps=1, **changes),
            heldout_dataset=heldout,
            **case("sequence-classification"),
        )


def test_too_few_calibrating_inputs_are_refused_with_the_number_that_would_do(tmp_path):
    with pytest.raises(InputError, match="of 50 held-out inputs are 25: of them the budget needs 342"):
        travel(tmp_path, disagreement_budget=0.02, calibration_share=0.5)
    with pytest.raises(InputError, match="calibration_share=1"):
        FIPConfig(str(tmp_path), calibration_share=1.0)


def test_the_way_back_keeps_what_was_gained(tmp_path):
    """Restoration is held by the present outputs on the new task, and lets go of them afterwards."""
    trainer = travel(tmp_path, distance_budget=1e-4, beta=1e3, max_steps=8, path_points=1, restoration_steps=0)
    preservation = trainer.preservation
    gained = preservation._new_task_now()
    assert preservation.drift(gained).distance == pytest.approx(0, abs=1e-9)
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    lost = {}
    for keeping in (None, gained):
        trainer.model.load_state_dict(start)
        preservation._gained = keeping
        optimizer = torch.optim.Adam(trainer.model.parameters(), lr=2e-3)
        for number in range(40):
            preservation._restoration_step(optimizer, number)
        lost[keeping is not None] = preservation.drift(gained).distance
    assert lost[True] < lost[False] / 2
    assert preservation.restore()[1]["restoration_steps"] == 0 and preservation._gained is None


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
