"""
Two gloo processes compress as one: each adds the analytic gradient once and whole, and both hold the same zeros.
"""

import pytest
import torch

from hf_fip import ModelGraph
from tests.testing_utils import assert_same_weights, run_processes, weights


SCRIPT = """
from hf_fip import FIPTrainer
from hf_fip.objectives import Pull, TaskLoss, get_projection
from tests.testing_utils import arguments, case

folder, decoupled, per_device, accumulation = sys.argv[1], sys.argv[2] == "decoupled", *map(int, sys.argv[3:])
checked = []


class Checked(Pull):
    def add_gradient_(self, parameters):
        before = {name: weight.grad.clone() for name, weight in self.weights.items()}
        super().add_gradient_(parameters)
        adds = self.code is not None and not self.frozen and not self.decoupled
        for name, weight in self.weights.items():
            analytic = self.strength * weight.detach() * self.code.pruned[name] if adds else torch.zeros_like(weight)
            torch.testing.assert_close(weight.grad - before[name], analytic, rtol=1e-9, atol=1e-12)
        checked.append(adds)


arguments_of = case("sequence-classification")
arguments_of["model"] = arguments_of["model"].double()
pull = Checked(get_projection("unstructured"), [0.4, 0.6], [3, 6], decoupled=decoupled, refresh=1)
trainer = FIPTrainer(
    args=arguments(
        folder,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        anchor_batch_size=7,
        learning_rate=5e-3,
        weight_decay=0.1,
        distance_budget=0.02,
        restoration_steps=6,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    ),
    objective=[TaskLoss(), pull],
    **arguments_of,
)
trainer.train()
assert len(checked) >= 4 and any(checked) is not decoupled
if "WORLD_SIZE" in os.environ:
    # The other process holds the same weights, though only the first one writes them.
    for p in trainer.unwrapped.parameters():
        other = p.detach().clone()
        torch.distributed.broadcast(other, 1)
        assert torch.equal(other, p)
"""


def travel(tmp_path, name, pull, processes, per_device, accumulation=1):
    arguments = tmp_path / name, pull, per_device, accumulation
    run_processes(processes, tmp_path / "run.py", SCRIPT, *arguments)
    return ModelGraph.load(tmp_path / name / "graph")


@pytest.mark.slow
@pytest.mark.parametrize("pull", ["decoupled", "gradient"])
def test_two_processes_compress_as_one(pull, tmp_path):
    """In float64, restoring the budget included."""
    one = travel(tmp_path, "one", pull, 1, 8)
    two = travel(tmp_path, "two", pull, 2, 2, accumulation=2)
    assert [node.step for node in two] == [0, 3, 6]
    for single, double in zip(one, two, strict=True):
        found = [weights(node.load_model(dtype=torch.float64)) for node in (single, double)]
        assert_same_weights(*found, tolerance=1e-6)
        if single.parent is not None:
            assert single.protocol["compression"] == double.protocol["compression"]
            for name, weight in found[0].items():
                assert torch.equal(weight == 0, found[1][name] == 0)
            assert double.protocol["budget"]["restoration_steps"] == single.protocol["budget"]["restoration_steps"] > 0
