"""The rivals in the trainer: accumulation, resuming, cached outputs of the new task, adapters."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_fip import FIPTrainer, InputError, ModelGraph
from hf_fip.baselines import METHODS
from hf_fip.baselines.distillation import LearningWithoutForgetting
from hf_fip.baselines.lora import fresh_adapter
from hf_fip.models.heads import grow_head
from hf_fip.models.loading import load_model
from hf_fip.starting_network import TASK_COLUMN
from hf_fip.terms import Term
from tests.testing_utils import (
    arguments,
    assert_same_weights,
    case,
    classifier,
    run_processes,
    texts,
    tokenizer,
    weights,
)


# Not FDR: a norm has no gradient where it is zero, so its first step follows the sign of rounding errors.
RIVALS = ["l2", "osf", "ewc", "online_ewc", "lwf", "er", "gem", "agem", "der", "derpp"]
OLD_NODES = [0, 1]


def rival(method, folder, *, terms=(), model=None, **changes) -> FIPTrainer:
    """A classifier with two old and two new output nodes, and labelled anchors of two earlier tasks."""
    chosen = METHODS[method]
    anchors = texts(12, seed=2)
    own = chosen.terms(**({"passes": 24} if "ewc" in method else {}))
    return FIPTrainer(
        model=model or classifier(num_labels=4),
        args=arguments(folder, **{**chosen.arguments, **changes}),
        train_dataset=texts(32, seed=1).map(lambda row: {"labels": row["labels"] + 2}),
        anchor_dataset=anchors.add_column(TASK_COLUMN, [0] * 5 + [1] * 7),
        processing_class=tokenizer(),
        terms=[*own, *terms],
        preserve=chosen.preserve,
    )


@pytest.mark.parametrize("method", RIVALS)
def test_accumulation_does_not_change_a_rivals_steps(method, tmp_path):
    results = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = rival(
            method,
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            anchor_batch_size=7,
            max_steps=3,
            path_points=1,
            optim="sgd",
            learning_rate=0.02,
        )
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results, tolerance=2e-5)


@pytest.mark.parametrize("method", ["l2", "osf", "ewc", "online_ewc", "lwf", "gem"])
def test_a_resumed_rival_ends_with_the_same_weights(method, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = rival(method, tmp_path / "whole", **saving)
    whole.train()
    broken = rival(method, tmp_path / "broken", **saving)
    broken.add_callback(_StopAt(3))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = rival(method, tmp_path / "broken", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    assert whole.graph["fip"].protocol == resumed.graph["fip"].protocol


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["gem", "agem", "ewc", "lwf"])
def test_rivals_run_in_bfloat16(method, tmp_path):
    trainer = rival(method, tmp_path, bf16=True, max_steps=2, path_points=1)
    trainer.train()
    assert trainer.graph["fip"].step == 2


def test_the_new_tasks_first_outputs_are_found_by_example(tmp_path):
    model = classifier(num_labels=4).eval()
    trainer = rival("lwf", tmp_path, model=model, max_steps=2, path_points=1)
    rows = [trainer.train_dataset[i]["input_ids"] for i in range(32)]
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row])).logits for row in rows])
    trainer.train()
    torch.testing.assert_close(trainer._start.task_reference(torch.arange(32)), expected, rtol=1e-5, atol=1e-5)
    # The first step's batch is shuffled and padded: any other row's outputs would be far away.
    first, second = [log for log in trainer.state.log_history if "lwf" in log]
    assert first["lwf"] == pytest.approx(0, abs=1e-6)
    assert second["lwf"] > 0.01
    assert trainer.graph["fip"].protocol["lwf"]["nodes"] == OLD_NODES


class _Watch(Term):
    """Keeps the outputs and references of each step."""

    name = "watch"

    def __init__(self):
        self.steps = []

    def loss(self, step):
        self.steps.append(step)


def test_lwf_is_the_papers_cross_entropy_of_softened_old_outputs(tmp_path):
    watch = _Watch()
    trainer = rival("lwf", tmp_path, terms=[watch], max_steps=3, path_points=1)
    trainer.train()
    logged = [log["lwf"] for log in trainer.state.log_history if "lwf" in log]
    for step, value in zip(watch.steps, logged, strict=True):
        old, new = (rows[:, OLD_NODES] / 2 for rows in (step.task.reference, step.task.outputs.detach()))
        entropy = -(old.softmax(-1) * old.log_softmax(-1)).sum(-1).mean()
        softened = -(old.softmax(-1) * new.log_softmax(-1)).sum(-1).mean()
        assert value == pytest.approx(4 * (softened - entropy).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["der", "derpp", "fdr", "er"])
def test_replay_minimises_its_formula(method, tmp_path):
    watch = _Watch()
    trainer = rival(method, tmp_path, terms=[watch], max_steps=3, path_points=1)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss_task" in log]
    chosen = METHODS[method].terms() or trainer.preservation.terms()
    by_name = {term.name: term.weight for term in chosen}
    variance = trainer.preservation.anchors.all_reference.var(0, correction=0).sum()
    for step, log in zip(watch.steps, logs, strict=True):
        outputs, reference = step.anchors.outputs.detach(), step.anchors.reference
        formulas = {
            "der": (outputs - reference).square().sum(-1).mean() / variance,
            "fdr": (outputs.softmax(-1) - reference.softmax(-1)).norm(dim=-1).mean(),
            "er": torch.nn.functional.cross_entropy(outputs, step.anchors.labels),
        }
        expected = 0.0
        if method != "er":
            kept = formulas["fdr" if method == "fdr" else "der"].item()
            expected += by_name["functional_distance"] * kept
        if method in ("er", "derpp"):
            expected += by_name["loss_anchor_labels"] * formulas["er"].item()
        assert log["loss"] == pytest.approx(log["loss_task"] + expected, rel=1e-4, abs=1e-5)


def test_a_shared_head_is_distilled_whole(tmp_path):
    arguments_of = case("sequence-classification")
    trainer = FIPTrainer(
        args=arguments(tmp_path, max_steps=1, path_points=1), terms=[LearningWithoutForgetting()], **arguments_of
    )
    trainer.train()
    assert trainer.graph["fip"].protocol["lwf"]["nodes"] == [0, 1]


@pytest.mark.parametrize("kind", ["fill-mask", "text-generation"])
def test_lwf_refuses_outputs_per_token(kind, tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path), terms=[LearningWithoutForgetting()], **case(kind))
    with pytest.raises(InputError, match="one output row per example"):
        trainer.train()


@pytest.mark.parametrize("kind", ["fill-mask", "text-generation", "image-classification"])
def test_weight_penalties_serve_every_kind_of_model(kind, tmp_path):
    terms = [*METHODS["ewc"].terms(passes=12), *METHODS["l2"].terms()]
    trainer = FIPTrainer(
        args=arguments(tmp_path, max_steps=2, path_points=1), terms=terms, preserve=False, **case(kind)
    )
    trainer.train()
    assert trainer.graph["fip"].protocol["ewc"]["fisher"]["passes"] == 12
    assert all(log["ewc"] > 0 for log in trainer.state.log_history[1:2])


# ---- One adapter per task -------------------------------------------------------------------------------------------


def test_a_fresh_adapter_learns_without_touching_the_base(tmp_path):
    classifier().save_pretrained(tmp_path / "base")
    base = grow_head(load_model(tmp_path / "base"), ["a", "b"])
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    before = base(**inputs).logits.detach()
    model = fresh_adapter(base, rank=2)
    assert torch.equal(model.eval()(**inputs).logits, before)
    trainer = rival("naive", tmp_path / "first", model=model)
    trainer.train()
    learned = trainer.graph["fip"].load_model()
    assert torch.equal(learned(**inputs).logits, trainer.model.eval()(**inputs).logits)
    assert not torch.allclose(learned(**inputs).logits, before)
    with learned.disable_adapter():
        assert torch.equal(learned(**inputs).logits[:, OLD_NODES], before[:, OLD_NODES])
    second = fresh_adapter(learned, rank=2).eval()
    assert torch.equal(second(**inputs).logits[:, OLD_NODES], before[:, OLD_NODES])


def test_an_adapter_without_rank_is_refused():
    with pytest.raises(InputError, match="rank=0"):
        fresh_adapter(classifier(), rank=0)


# ---- Two processes --------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
from tests.trainer.test_rivals import rival
folder, method, per_device = sys.argv[1], sys.argv[2], int(sys.argv[3])
rival(
    method,
    folder,
    per_device_train_batch_size=per_device,
    anchor_batch_size=7,
    optim="sgd",
    learning_rate=0.02,
    max_steps=3,
    path_points=1,
    ddp_backend="gloo" if per_device == 4 else None,
).train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gem", "agem", "ewc", "lwf"])
def test_two_processes_take_a_rivals_steps_as_one(method, tmp_path):
    found = []
    for processes, per_device in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        run_processes(processes, tmp_path / "run.py", TWO_PROCESSES, folder, method, per_device)
        found.append(load_file(ModelGraph.load(folder / "graph")["fip"].folder / "model.safetensors"))
    assert_same_weights(*found, tolerance=2e-5)
