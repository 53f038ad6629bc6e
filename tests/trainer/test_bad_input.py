"""Every mistake gets one clear line, at the start."""

import pytest
import torch
from datasets import IterableDataset
from transformers import BertForSequenceClassification, TrainingArguments

from hf_fip import FIPConfig, FIPTrainer, InputError
from tests.testing_utils import arguments, case, classifier, images, texts


KIND = "sequence-classification"


def refused(message, tmp_path, *, config=None, **changes):
    with pytest.raises(InputError, match=message) as caught:
        FIPTrainer(args=arguments(tmp_path, **(config or {})), **{**case(KIND), **changes}).train()
    assert "\n" not in str(caught.value)


def test_empty_anchors(tmp_path):
    refused("anchor_dataset is empty", tmp_path, anchor_dataset=texts(8, seed=0).select([]))


def test_a_single_anchor(tmp_path):
    refused("anchor_dataset: 1 anchors", tmp_path, anchor_dataset=texts(1, seed=0))


def test_anchors_without_the_models_inputs(tmp_path):
    refused(
        "anchor_dataset has no column .input_ids", tmp_path, anchor_dataset=texts(8, seed=0).select_columns("labels")
    )


def test_anchors_prepared_otherwise_than_the_task(tmp_path):
    segments = texts(8, seed=0, labels=None)
    segments = segments.map(lambda row: {"token_type_ids": [0] * len(row["input_ids"])})
    refused("token_type_ids", tmp_path, anchor_dataset=segments)


def test_a_stream_of_anchors(tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(texts(4, seed=0)))
    refused("anchor_dataset: .*has no length", tmp_path, anchor_dataset=stream)


def test_nan_in_the_starting_weights(tmp_path):
    model = classifier()
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    refused("anchor_dataset: the reference network's outputs hold NaN", tmp_path, model=model)


def test_a_loss_that_is_not_finite_stops_the_run_and_records_nothing_of_it(tmp_path):
    trainer = FIPTrainer(args=arguments(tmp_path, learning_rate=1e30, max_steps=8), **case(KIND))
    with pytest.raises(FloatingPointError, match="not finite at step"):
        trainer.train()
    for node in trainer.graph:
        assert all(torch.isfinite(p).all() for p in node.load_model().parameters())


def test_labels_asked_of_unlabelled_anchors(tmp_path):
    refused("anchor_label_weight=1.*no labels", tmp_path, config={"anchor_label_weight": 1.0})


def test_a_cache_above_the_limit_is_refused_with_advice(tmp_path):
    refused("anchor_cache_limit_gb=1e-06.*fewer anchors", tmp_path, config={"anchor_cache_limit_gb": 1e-6})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"functional_distance": "euclid"}, "functional_distance='euclid'.*l2"),
        ({"reference": "first"}, "reference='first'.*origin, previous"),
        ({"solver": "adam"}, "solver='adam'"),
        ({"solver": "trust_region", "optim": "adafactor"}, "optim=.*adafactor.*solver='trust_region'.*use 'sgd'"),
        ({"solver": "trust_region", "optim_args": "momentum=0.9"}, "optim_args='momentum=0.9'"),
        ({"solver": "trust_region", "weight_decay": 0.1}, "weight_decay=0.1"),
        ({"solver": "trust_region", "max_grad_norm": 0.5}, "max_grad_norm=0.5.*use 0"),
        ({"solver": "trust_region", "functional_distance": "fdr"}, "functional_distance='fdr'.*use 'l2'"),
        ({"push_to_hub": True}, "push_to_hub=True .* use push_path_to_hub=True"),
        ({"path_points": 0}, "path_points=0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"step_norm": 0.0}, "step_norm=0.0"),
        ({"hub_layout": "branch"}, "hub_layout='branch'"),
    ],
)
def test_arguments_that_cannot_work(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        FIPConfig(str(tmp_path), **options)


def test_arguments_of_another_class(tmp_path):
    with pytest.raises(InputError, match="FIPConfig"):
        FIPTrainer(**{**case(KIND), "args": TrainingArguments(str(tmp_path))})


def test_nothing_to_do(tmp_path):
    with pytest.raises(InputError, match="both None"):
        FIPTrainer(model=classifier(), args=arguments(tmp_path))


def test_exact_steps_without_anchors(tmp_path):
    with pytest.raises(InputError, match="solver='trust_region' needs anchor_dataset"):
        FIPTrainer(model=classifier(), args=arguments(tmp_path, solver="trust_region"), train_dataset=texts(8, seed=1))


def test_a_budget_without_anchors(tmp_path):
    with pytest.raises(InputError, match="budget needs anchor_dataset"):
        FIPTrainer(model=classifier(), args=arguments(tmp_path, distance_budget=0.1), train_dataset=texts(8, seed=1))


def test_probabilities_of_a_regression(tmp_path):
    model = BertForSequenceClassification(classifier(num_labels=1).config)
    task = texts(8, seed=1).map(lambda row: {"labels": float(row["labels"])})
    refused(
        "functional_distance='kl'.*l2", tmp_path, model=model, train_dataset=task, config={"functional_distance": "kl"}
    )


def test_a_model_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="no/such/model|no-such"):
        FIPTrainer(model=str(tmp_path / "no-such"), args=arguments(tmp_path), train_dataset=texts(8, seed=1))


def test_images_for_a_language_model(tmp_path):
    refused("anchor_dataset has no column .input_ids", tmp_path, anchor_dataset=images(4, seed=1))
