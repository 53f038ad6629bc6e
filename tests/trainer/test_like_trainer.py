"""What users of `transformers.Trainer` expect to work as it does there."""

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset as TorchDataset
from transformers import BertForSequenceClassification

from hf_fip import FIPConfig, FIPTrainer, ModelGraph
from tests.testing_utils import arguments, case, classifier, texts, tokenizer, weights


KIND = "sequence-classification"


def test_hyperparameter_search_gives_each_trial_a_graph_of_its_own(tmp_path):
    pytest.importorskip("optuna")
    arguments_of = case(KIND)
    del arguments_of["model"]
    trainer = FIPTrainer(
        model_init=lambda trial: classifier(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=6),
        eval_dataset=texts(8, seed=3),
        **arguments_of,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        n_trials=2,
        backend="optuna",
    )
    graphs = sorted(tmp_path.glob("run-*/graph"))
    assert len(graphs) == 2 and best.hyperparameters["learning_rate"] <= 1e-2
    assert all(len(ModelGraph.load(graph)) == 3 for graph in graphs)


def test_a_loss_function_of_the_users_own(tmp_path):
    def half(outputs, labels, num_items_in_batch=None):
        return 0.5 * cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    losses = []
    for function in (None, half):
        trainer = FIPTrainer(
            args=arguments(tmp_path / str(bool(function)), max_steps=1, gradient_accumulation_steps=2),
            compute_loss_func=function,
            **case(KIND),
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss_task"])
    assert losses[1] == pytest.approx(losses[0] / 2)


def test_label_smoothing_enters_the_task_loss(tmp_path):
    losses = []
    for smoothing in (0.0, 0.5):
        trainer = FIPTrainer(
            args=arguments(tmp_path / str(smoothing), max_steps=1, label_smoothing_factor=smoothing), **case(KIND)
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss_task"])
    assert losses[0] != pytest.approx(losses[1])


def test_a_regression_keeps_its_outputs(tmp_path):
    task = texts(16, seed=1).map(lambda row: {"labels": float(row["labels"])})
    trainer = FIPTrainer(
        model=BertForSequenceClassification(classifier(num_labels=1).config),
        args=arguments(tmp_path, distance_budget=0.5),
        train_dataset=task,
        anchor_dataset=texts(12, seed=2, labels=None),
        processing_class=tokenizer(),
    )
    trainer.train()
    budget = trainer.graph["fip"].protocol["budget"]
    assert budget["anchors"]["disagreement"] is None
    assert budget["anchors"]["distance"] <= 0.5


def test_several_labels_at_once(tmp_path):
    task = texts(16, seed=1).map(lambda row: {"labels": [1.0, 0.0, float(row["labels"])]})
    trainer = FIPTrainer(
        model=classifier(num_labels=3, problem_type="multi_label_classification"),
        args=arguments(tmp_path),
        train_dataset=task,
        anchor_dataset=texts(12, seed=2, labels=None),
        processing_class=tokenizer(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss_task"] > 0


def test_a_map_style_torch_data_set_serves_as_anchors_and_task(tmp_path):
    class Rows(TorchDataset):
        def __init__(self, rows: Dataset):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return self.rows[index]

    arguments_of = case(KIND)
    for name in ("train_dataset", "anchor_dataset"):
        arguments_of[name] = Rows(arguments_of[name])
    trainer = FIPTrainer(args=arguments(tmp_path), **arguments_of)
    trainer.train()
    assert len(trainer.graph) == 3


def test_a_folder_in_place_of_a_model_and_plain_fine_tuning_without_anchors(tmp_path):
    classifier().save_pretrained(tmp_path / "model")
    trainer = FIPTrainer(
        model=str(tmp_path / "model"),
        args=arguments(tmp_path / "run"),
        train_dataset=texts(16, seed=1),
        processing_class=tokenizer(),
    )
    trainer.train()
    assert "functional_distance" not in trainer.state.log_history[0]
    assert len(trainer.graph) == 3


def test_evaluation_is_the_plain_task_loss(tmp_path):
    arguments_of = case(KIND)
    held = texts(8, seed=3)
    trainer = FIPTrainer(args=arguments(tmp_path, functional_distance="kl"), eval_dataset=held, **arguments_of)
    trainer.train()
    found = trainer.evaluate()
    model = trainer.model.eval()
    batch = trainer.data_collator([held[i] for i in range(8)])
    with torch.no_grad():
        assert found["eval_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert "eval_accuracy" in found


def test_arguments_come_from_the_command_line_too(tmp_path):
    from transformers import HfArgumentParser

    (config,) = HfArgumentParser(FIPConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--distance_budget", "0.05", "--path_points", "3"]
    )
    assert config.distance_budget == 0.05 and config.path_points == 3
    assert config.distance_weight() == pytest.approx(2.0)


def test_anchor_labels_may_add_a_term(tmp_path):
    arguments_of = case(KIND) | {"anchor_dataset": texts(12, seed=2)}
    trainer = FIPTrainer(args=arguments(tmp_path, anchor_label_weight=0.5), **arguments_of)
    trainer.train()
    log = trainer.state.log_history[0]
    expected = log["loss_task"] + log["functional_distance"] / log["beta"] + 0.5 * log["loss_anchor_labels"]
    assert log["loss"] == pytest.approx(expected, rel=1e-5)


def test_frozen_weights_stay_where_they_are(tmp_path):
    arguments_of = case(KIND)
    arguments_of["model"].bert.embeddings.requires_grad_(False)
    before = weights(arguments_of["model"].bert.embeddings)
    trainer = FIPTrainer(args=arguments(tmp_path, distance_budget=1e-3), **arguments_of)
    trainer.train()
    for name, value in weights(trainer.model.bert.embeddings).items():
        assert torch.equal(value, before[name])


def test_a_token_never_reaches_a_file(tmp_path):
    secret = "hf_" + "s" * 34
    trainer = FIPTrainer(args=arguments(tmp_path, hub_token=secret, save_strategy="steps", save_steps=3), **case(KIND))
    trainer.train()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert not any(secret.encode() in path.read_bytes() for path in written)
    assert trainer.args.hub_token == secret
