"""Two gloo processes take the same path as one."""

import json

import pytest
from safetensors.torch import load_file

from hf_fip import ModelGraph
from tests.testing_utils import assert_same_weights, run_processes


SCRIPT = """
from hf_fip import FIPTrainer
from tests.testing_utils import arguments, case, texts

folder, kind, per_device, accumulation = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
budget = float(sys.argv[5]) or None
arguments_of = case(kind)
if kind == "sequence-classification":
    arguments_of["heldout_dataset"] = texts(15, seed=9, labels=None)
if budget:
    arguments_of["model"] = arguments_of["model"].double()
trainer = FIPTrainer(
    args=arguments(
        folder,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        anchor_batch_size=7,
        optim="adamw_torch" if budget else "sgd",
        learning_rate=0.005 if budget else 0.05,
        beta=100.0 if budget else None,
        distance_budget=budget,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        save_strategy="steps",
        save_steps=3,
    ),
    **arguments_of,
)
trainer.train()
"""


def travel(tmp_path, name, kind, processes, per_device, accumulation=1, budget=0):
    arguments = tmp_path / name, kind, per_device, accumulation, budget
    run_processes(processes, tmp_path / "run.py", SCRIPT, *arguments)
    return ModelGraph.load(tmp_path / name / "graph")


@pytest.mark.parametrize("kind", ["sequence-classification", pytest.param("text-generation", marks=pytest.mark.slow)])
def test_two_processes_equal_one(kind, tmp_path):
    """Same batches, unevenly split anchors (7 over 2 and 4 parts), accumulation, recorded points."""
    one = travel(tmp_path, "one", kind, 1, 8)
    two = travel(tmp_path, "two", kind, 2, 2, accumulation=2)
    assert [node.step for node in two] == [0, 3, 6]
    for single, double in zip(one, two, strict=True):
        assert_same_weights(
            load_file(single.folder / "model.safetensors"),
            load_file(double.folder / "model.safetensors"),
            tolerance=2e-5,
        )
        if single.parent is None:
            continue
        assert single.functional_distance["root"] == pytest.approx(
            double.functional_distance["root"], rel=1e-3, abs=1e-7
        )
    state = json.loads((tmp_path / "two" / "checkpoint-6" / "fip_state.json").read_text())
    assert state["points"] == [3, 6]


def test_two_processes_come_back_into_the_budget_as_one(tmp_path):
    """
    In float64: Adam's steps have the size of the learning rate even where a gradient is nothing but rounding (the
    keys' biases), so in float32 two orders of summation part by several steps, as they do in any run with Adam.
    """
    one = travel(tmp_path, "one", "sequence-classification", 1, 8, budget=0.02)
    two = travel(tmp_path, "two", "sequence-classification", 2, 2, accumulation=2, budget=0.02)
    reports = [node.protocol["budget"] for node in list(two)[1:]]
    assert any(report["restoration_steps"] > 0 for report in reports)
    assert all(report["anchors"]["distance"] <= 0.02 for report in reports if not report["cap_hit"])
    assert not all(report["cap_hit"] for report in reports)
    for single, double in zip(one, two, strict=True):
        weights = [load_file(node.folder / "model.safetensors") for node in (single, double)]
        assert_same_weights(*weights, tolerance=1e-6)
        if single.parent is not None:
            steps = [node.protocol["budget"]["restoration_steps"] for node in (single, double)]
            assert steps[0] == steps[1]
