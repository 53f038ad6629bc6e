"""One optimizer step: what is minimised, on which inputs, in which mode."""

import copy

import pytest
import torch

from hf_fip import FIPTrainer, InputError
from hf_fip.functional import get_distance
from hf_fip.functional.anchors import Anchors, anchor_batch, join_inputs
from hf_fip.terms import Term
from tests.testing_utils import KINDS, arguments, assert_same_weights, case, classifier, texts, tokenizer, weights


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_travels_and_is_recorded(kind, tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path), **case(kind))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "functional_distance" in log]
    assert len(logs) == 6
    assert logs[0]["functional_distance"] == pytest.approx(0, abs=1e-9)
    assert logs[-1]["functional_distance"] > 0
    assert logs[0]["loss"] == pytest.approx(logs[0]["loss_task"] + logs[0]["functional_distance"] / logs[0]["beta"])
    assert [node.step for node in trainer.graph] == [0, 3, 6]
    assert trainer.graph["fip"].task == kind
    assert_same_weights(weights(trainer.graph["fip"].load_model()), weights(trainer.model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_loss_is_the_models_own(kind, tmp_path):
    """The loss taken from the joint forward equals the one the model computes from the task batch alone."""
    arguments_of = case(kind)
    model = copy.deepcopy(arguments_of["model"]).eval()
    trainer = FIPTrainer(args=arguments(tmp_path, max_steps=1, path_points=1), **arguments_of)
    batch = next(iter(trainer.get_train_dataloader()))
    seen = {}
    trainer.add_callback(_BatchSpy(trainer, seen))
    trainer.train()
    with torch.no_grad():
        expected = model(**seen["inputs"]).loss
    assert batch.keys() == seen["inputs"].keys()
    assert trainer.state.log_history[0]["loss_task"] == pytest.approx(expected.item(), rel=1e-5)


class _BatchSpy:
    def __new__(cls, trainer, seen):
        from transformers import TrainerCallback

        original = trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            seen["inputs"] = {key: value.clone() for key, value in inputs.items()}
            return original(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss
        return TrainerCallback()


@pytest.mark.parametrize("kind", ["sequence-classification", "text-generation", "fill-mask", "image-classification"])
def test_accumulation_does_not_change_the_trajectory(kind, tmp_path):
    """8 x 1 and 1 x 8 see the same examples and anchors, so they take the same steps."""
    results = []
    for batch, accumulation in ((8, 1), (1, 8)):
        arguments_of = case(kind)
        if kind == "fill-mask":
            arguments_of = _fixed_masks(arguments_of)
        trainer = FIPTrainer(
            args=arguments(
                tmp_path / str(batch),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                anchor_batch_size=8,
                optim="sgd",
                learning_rate=0.05,
            ),
            **arguments_of,
        )
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results, tolerance=2e-5)


def _fixed_masks(arguments_of: dict) -> dict:
    """Masked once, so that both runs see the same masks."""
    from transformers import DataCollatorForTokenClassification

    collate = arguments_of["data_collator"]
    torch.manual_seed(5)

    def mask(row):
        batch = collate([row])
        return {"input_ids": batch["input_ids"][0].tolist(), "labels": batch["labels"][0].tolist()}

    for name in ("train_dataset", "anchor_dataset"):
        arguments_of[name] = arguments_of[name].map(mask, load_from_cache_file=False)
    arguments_of["data_collator"] = DataCollatorForTokenClassification(arguments_of["processing_class"])
    return arguments_of


def test_dropout_is_off_where_networks_are_compared(tmp_path):
    model = classifier(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    trainer = FIPTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1, path_points=1),
        train_dataset=texts(16, seed=1),
        anchor_dataset=texts(16, seed=2, labels=None),
        processing_class=tokenizer(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["functional_distance"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "changes", [{"activation_checkpointing": True}, {"bf16": True}], ids=["checkpointing", "bf16"]
)
def test_memory_savers_leave_the_origin_at_distance_zero(changes, tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path, **changes), **case("sequence-classification"))
    trainer.train()
    logs = [log["functional_distance"] for log in trainer.state.log_history if "functional_distance" in log]
    assert logs[0] == pytest.approx(0, abs=1e-6)
    assert logs[-1] > 0


def test_checkpointed_activations_give_the_same_path(tmp_path):
    results = []
    for checkpointing in (False, True):
        trainer = FIPTrainer(
            args=arguments(tmp_path / str(checkpointing), activation_checkpointing=checkpointing),
            **case("sequence-classification"),
        )
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results, tolerance=1e-6)


def test_recording_more_points_does_not_change_the_path(tmp_path):
    results = []
    for points in (1, 6):
        trainer = FIPTrainer(args=arguments(tmp_path / str(points), path_points=points), **case("fill-mask"))
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results)


def test_a_users_own_term_takes_part_by_name_and_by_gradient(tmp_path):
    class Pull(Term):
        name = "pull"
        calls = 0

        def add_gradient_(self, parameters):
            self.calls += 1
            for p in parameters:
                p.grad.add_(p, alpha=100.0)

    pull = Pull()
    arguments_of = case("sequence-classification")
    start = sum(p.square().sum() for p in arguments_of["model"].parameters()).item()
    trainer = FIPTrainer(
        args=arguments(tmp_path, gradient_accumulation_steps=2, optim="sgd", max_grad_norm=0, learning_rate=1e-3),
        terms=[pull],
        **arguments_of,
    )
    trainer.train()
    assert pull.calls == 6, "once an optimizer step, not once a micro-batch"
    assert sum(p.square().sum() for p in trainer.model.parameters()).item() < 0.6 * start


def test_a_path_without_a_task_follows_the_terms_alone(tmp_path):
    class Leave(Term):
        """Pushes away from the start."""

        name = "leave"
        is_objective = True

        def begin_segment(self, model):
            self.start = [p.detach().clone() for p in model.parameters()]

        def add_gradient_(self, parameters):
            for p, start in zip(parameters, self.start, strict=True):
                p.grad.sub_(p - start + 1e-3)

    arguments_of = case("sequence-classification")
    del arguments_of["train_dataset"]
    trainer = FIPTrainer(args=arguments(tmp_path), objective=Leave(), **arguments_of)
    trainer.train()
    node = trainer.graph["fip"]
    assert node.euclidean_distance["root"] > 0.1
    assert "loss_task" not in trainer.state.log_history[0]


def test_anchor_batches_are_a_pure_function_and_cover_all_anchors_equally():
    whole = [anchor_batch(10, 4, seed=3, step=step) for step in range(5)]
    assert whole == [anchor_batch(10, 4, seed=3, step=step) for step in range(5)]
    assert sorted(sum(whole, [])) == sorted(list(range(10)) * 2)
    for step in range(5):
        parts = [anchor_batch(10, 4, seed=3, step=step, part=i, parts=3) for i in range(3)]
        assert sum(parts, []) == whole[step]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_joining_pads_on_the_right_and_masks_the_padding():
    first = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    second = {"input_ids": torch.full((1, 5), 2), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    joined = join_inputs(first, second, {"input_ids": 9})
    assert joined["input_ids"].tolist() == [[1, 1, 1, 9, 9], [1, 1, 1, 9, 9], [2, 2, 2, 2, 2]]
    assert joined["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_only_masked_positions_of_anchors_are_kept_and_each_mask_is_fixed():
    arguments_of = case("fill-mask")
    made = [
        Anchors(arguments_of["anchor_dataset"], arguments_of["data_collator"], per_token=True, mask_token_id=2, seed=4)
        for _ in range(2)
    ]
    for anchors in made:
        assert anchors.rows < sum(map(len, arguments_of["anchor_dataset"]["input_ids"]))
    for i in range(len(made[0])):
        assert torch.equal(made[0].inputs([i])["input_ids"], made[1].inputs([i])["input_ids"])
    few = Anchors(
        arguments_of["anchor_dataset"], arguments_of["data_collator"], per_token=True, max_positions=1, seed=4
    )
    assert few.rows <= len(few)


def test_collating_anchors_leaves_the_random_state_alone():
    arguments_of = case("fill-mask")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Anchors(arguments_of["anchor_dataset"], arguments_of["data_collator"], per_token=True, mask_token_id=2)
    assert torch.equal(torch.rand(3), expected)


def test_the_distance_of_a_step_is_the_mean_over_its_anchors(tmp_path):
    arguments_of = case("sequence-classification")
    reference = copy.deepcopy(arguments_of["model"]).eval()
    trainer = FIPTrainer(args=arguments(tmp_path, anchor_batch_size=12), **arguments_of)
    trainer.train()
    anchors = trainer.preservation.anchors
    inputs = anchors.inputs(range(12))
    with torch.no_grad():
        moved, kept = trainer.model.eval()(**inputs).logits, reference(**inputs).logits
    l2 = get_distance("l2")
    expected = (l2.per_example(moved, kept) / l2.scale(kept)).mean().item()
    drift = trainer.preservation.drift(anchors)
    assert drift.distance == pytest.approx(expected, rel=1e-4)
    assert trainer.graph["fip"].functional_distance["root"] == pytest.approx(expected, rel=1e-4)


def test_a_task_batch_without_labels_is_refused(tmp_path):
    arguments_of = case("sequence-classification") | {"train_dataset": texts(8, seed=1, labels=None)}
    with pytest.raises(InputError, match="train_dataset.*labels"):
        FIPTrainer(args=arguments(tmp_path), **arguments_of).train()
