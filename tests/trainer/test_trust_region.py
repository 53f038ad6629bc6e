"""`solver="trust_region"`: every optimizer step is eq. 4's, and nothing else moves the weights."""

import pytest
import torch
from transformers import TrainerCallback

from hf_fip import FIPTrainer, InputError, ModelGraph
from hf_fip.geometry import MetricTensor
from hf_fip.geometry.steps import fip_step
from hf_fip.preservation import Preservation
from hf_fip.trust_region import ExactPreservation
from tests.testing_utils import KINDS, arguments, assert_same_weights, case, classifier, run_processes, texts, weights


KIND = "sequence-classification"


def exact(folder, **changes):
    return arguments(folder, solver="trust_region", **{"learning_rate": 0.05, **changes})


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


class Steps(TrainerCallback):
    """The weights before the first step and after each."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights.append(flat(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(flat(model))

    @property
    def moves(self):
        return [after - before for before, after in zip(self.weights[:-1], self.weights[1:], strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_the_length_of_the_learning_rate(kind, tmp_path):
    steps = Steps()
    trainer = FIPTrainer(
        args=exact(tmp_path, lr_scheduler_type="linear", warmup_steps=1, max_grad_norm=1.0),
        callbacks=[steps],
        **case(kind),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "step_products" in log or "loss_task" in log]
    rates = [log["learning_rate"] for log in logs]
    assert rates[0] == 0.0 and len(set(rates)) == 6
    lengths = [float(move.norm()) for move in steps.moves]
    assert lengths == pytest.approx(rates, rel=1e-3, abs=1e-9)
    for log in logs[1:]:
        assert 1 <= log["step_products"] <= 14
        assert 0 < log["step_forward_backwards"] <= 30
    assert trainer.graph["fip"].protocol["solver"] == {"name": "trust_region", "max_products": 14}


class Gradient(TrainerCallback):
    """The task's gradient at the first weights, on the batch of the first step."""

    def __init__(self, trainer):
        self.gradient = None
        original = trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            if self.gradient is None:
                trained = [p for p in model.parameters() if p.requires_grad]
                found = torch.autograd.grad(model.eval()(**inputs).loss, trained, allow_unused=True)
                found = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]
                self.gradient = torch.cat([g.reshape(-1) for g in found])
                model.train()
            return original(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss


def test_a_step_is_that_of_eq_4_on_all_anchors(tmp_path):
    """In the unit of the distance, with the metric of all 12 anchors and beta as asked; frozen weights stay."""
    arguments_of = case(KIND)
    model = arguments_of["model"].double()
    model.bert.requires_grad_(False)
    steps = Steps()
    trainer = FIPTrainer(
        args=exact(tmp_path, max_steps=1, path_points=1, anchor_batch_size=12, beta=0.7),
        callbacks=[steps],
        **arguments_of,
    )
    spy = Gradient(trainer)
    before = weights(model)
    trainer.train()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if not p.requires_grad)
    moved = steps.moves[0]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(before[next(name for name, q in model.named_parameters() if q is p)])
    preservation = trainer.preservation
    metric = MetricTensor(model, preservation.anchors.inputs(range(12)))
    unit = preservation.distance.unit
    # D is in shares of the outputs' variance: dividing g by it multiplies beta.
    expected = fip_step(metric, spy.gradient, 0.05, beta=0.7 * unit, method="dual")
    torch.testing.assert_close(moved, expected.theta, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("distance", ["l2", "kl"])
@pytest.mark.parametrize("kind", [KIND, "fill-mask", "text-generation"])
def test_the_metric_is_that_of_the_functional_distance(kind, distance, tmp_path):
    """theta^T g theta is the distance that a small step makes, whatever the number of scored positions per anchor."""
    arguments_of = case(kind)
    arguments_of["model"] = arguments_of["model"].double()
    trainer = FIPTrainer(args=exact(tmp_path, max_steps=1, functional_distance=distance), **arguments_of)
    trainer.train()
    preservation, model = trainer.preservation, trainer.model
    preservation.refer()
    metric = preservation.metric(list(range(12)))
    torch.manual_seed(3)
    direction = torch.randn(metric.shape[0], dtype=torch.float64)
    direction *= (0.02 if distance == "l2" else 0.1) / direction.norm()
    expected = float(direction @ (metric @ direction))
    with torch.no_grad():
        own = dict(model.named_parameters())
        for name, part in metric.jacobian.unflatten(direction).items():
            own[name].add_(part)
    assert preservation.drift(preservation.anchors).distance == pytest.approx(expected, rel=0.1)


def test_accumulation_does_not_change_the_trajectory(tmp_path):
    results = []
    for batch, accumulation in ((8, 1), (2, 4)):
        arguments_of = case(KIND)
        arguments_of["model"] = arguments_of["model"].double()
        trainer = FIPTrainer(
            args=exact(
                tmp_path / str(batch),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                anchor_batch_size=7,
                max_steps=3,
            ),
            **arguments_of,
        )
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results, tolerance=1e-6)


def test_without_a_task_it_walks_where_the_outputs_do_not_move(tmp_path):
    steps = Steps()
    trainer = FIPTrainer(
        model=classifier(),
        args=exact(tmp_path, max_steps=12, learning_rate=0.2, lr_scheduler_type="constant", anchor_batch_size=12),
        anchor_dataset=texts(12, seed=2, labels=None),
        processing_class=case(KIND)["processing_class"],
        callbacks=[steps],
    )
    trainer.train()
    node = trainer.graph["fip"]
    assert node.functional_distance["root"] < 0.02
    # Successive directions agree: independent ones would end up at 0.2 * sqrt(12) = 0.7.
    assert node.euclidean_distance["root"] > 1.2
    first = trainer.preservation
    assert isinstance(first, ExactPreservation)


def test_the_way_back_into_the_budget(tmp_path):
    """Gauss-Newton steps, since Adam's rate has nothing to do with a length of steps."""
    trainer = FIPTrainer(
        args=exact(
            tmp_path,
            learning_rate=0.5,
            lr_scheduler_type="constant",
            distance_budget=0.001,
            beta=5.0,
            anchor_batch_size=6,
            restoration_steps=30,
        ),
        **case(KIND),
    )
    trainer.train()
    budgets = [node.protocol["budget"] for node in list(trainer.graph)[1:]]
    assert any(budget["restoration_steps"] > 0 for budget in budgets)
    for budget in budgets:
        assert not budget["cap_hit"]
        assert budget["anchors"]["distance"] <= 0.001
        assert budget["before_restoration"]["distance"] >= budget["anchors"]["distance"]


def test_a_resumed_run_takes_the_same_steps(tmp_path):
    """Without a task, where the direction of the last step is part of the state."""

    def trainer(folder):
        return FIPTrainer(
            model=classifier(),
            args=exact(folder, max_steps=6, save_strategy="steps", save_steps=3, lr_scheduler_type="constant"),
            anchor_dataset=texts(12, seed=2, labels=None),
            processing_class=case(KIND)["processing_class"],
        )

    whole = trainer(tmp_path / "run")
    whole.train()
    again = trainer(tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_same_weights(weights(whole.model), weights(again.model), tolerance=1e-6)


def test_an_optimizer_that_would_change_the_steps_is_refused(tmp_path):
    for make in (
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ):
        arguments_of = case(KIND)
        optimizer = make(arguments_of["model"].parameters())
        trainer = FIPTrainer(args=exact(tmp_path), optimizers=(optimizer, None), **arguments_of)
        with pytest.raises(InputError, match="optimizers: .*SGD without momentum"):
            trainer.train()


def test_steps_without_a_length_are_refused(tmp_path):
    with pytest.raises(InputError, match="learning_rate=0.0 has to be above 0") as error:
        FIPTrainer(args=exact(tmp_path, learning_rate=0.0), **case(KIND)).train()
    assert "\n" not in str(error.value)


def test_a_method_that_preserves_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="preserve=False"):
        FIPTrainer(args=exact(tmp_path), preserve=False, **case(KIND)).train()


def test_the_penalty_is_the_default(tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path, max_steps=1), **case(KIND))
    trainer.train()
    assert type(trainer.preservation) is Preservation


SCRIPT = """
from hf_fip import FIPTrainer
from tests.testing_utils import arguments, case

folder, per_device, accumulation = sys.argv[1], *map(int, sys.argv[2:])
arguments_of = case("sequence-classification")
arguments_of["model"] = arguments_of["model"].double()
FIPTrainer(
    args=arguments(
        folder,
        solver="trust_region",
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        anchor_batch_size=7,
        learning_rate=0.2,
        max_steps=4,
        distance_budget=0.0005,
        restoration_steps=4,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
    ),
    **arguments_of,
).train()
"""


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """In float64, the way back into the budget included."""
    graphs = []
    for processes, sizes in ((1, (8, 1)), (2, (2, 2))):
        run_processes(processes, tmp_path / "run.py", SCRIPT, tmp_path / str(processes), *sizes)
        graphs.append(ModelGraph.load(tmp_path / str(processes) / "graph"))
    for single, double in zip(*graphs, strict=True):
        found = [weights(node.load_model(dtype=torch.float64)) for node in (single, double)]
        assert_same_weights(*found, tolerance=1e-6)
        if single.parent is not None:
            steps = [node.protocol["budget"]["restoration_steps"] for node in (single, double)]
            assert steps[0] == steps[1] > 0
