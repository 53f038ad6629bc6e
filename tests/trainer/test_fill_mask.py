"""Masked language modelling as a task: of the first node, and learned after another without losing it."""

import math

import pytest
import torch

from hf_fip import ContinualLearning, begin_graph
from hf_fip.data.masking import likelihoods, masked_once
from hf_fip.errors import InputError
from hf_fip.tasks import Task


TEXTS = {"first": "the cat sat on the mat {}", "second": "prices rose in the third quarter {}"}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two small corpora as local files, with the empty lines that corpora have."""
    import json

    folder = tmp_path_factory.mktemp("corpora")
    for name, text in TEXTS.items():
        (folder / name).mkdir()
        for split, number in (("train", 48), ("test", 16)):
            rows = [{"text": text.format(i % 7)} if i % 8 else {"text": " "} for i in range(number)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from hf_fip.models.pretraining import pretrain_masked_lm

    texts = [text.format(i % 7) for text in TEXTS.values() for i in range(20)]
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config["max_position_embeddings"] = 32
    folder = tmp_path_factory.mktemp("mlm") / "model"
    return pretrain_masked_lm(texts, folder, vocab_size=120, config=config, seq_length=32, progress=False)


def task(name, corpora, **options):
    return Task(name=name, dataset=str(corpora / name), kind="fill-mask", **options)


TRAINING = {"max_steps": 12, "batch_size": 8, "learning_rate": 5e-3}


def first_node(tmp_path, corpora, model_folder):
    first = task("first", corpora)
    return begin_graph(str(tmp_path / "graph"), model=str(model_folder), task=first, training=TRAINING)


def test_a_corpus_is_learned_and_the_earlier_one_kept(tmp_path, corpora, model_folder):
    base = begin_graph(
        str(tmp_path / "graph"), model=str(model_folder), task=task("first", corpora), training=TRAINING
    )
    assert base.task == "fill-mask"
    assert base.metrics["first/perplexity"] > 1
    operator = ContinualLearning(
        task("second", corpora), anchors=20, path_points=2, distance_budget=0.05, training=TRAINING
    )
    path = operator(base)
    assert len(path) == 2
    assert path.end.metrics["second/perplexity"] > 1
    assert path.end.protocol["label_policy"] == "vocabulary"
    assert path.end.protocol["budget"]["anchors"]["distance"] <= 0.05
    # The words are the same: no output node is added.
    shapes = [{name: p.shape for name, p in node.load_model().named_parameters()} for node in (base, path.end)]
    assert shapes[0] == shapes[1]
    naive = ContinualLearning(task("second", corpora), method="naive", path_points=1, training=TRAINING)(base)
    lost = {name: end.metrics["first/perplexity"] for name, end in (("fip", path.end), ("naive", naive.end))}
    assert lost["fip"] < lost["naive"]


def test_masks_are_those_of_the_seed_and_the_row(corpora, model_folder):
    from hf_fip.models.loading import load_processor
    from hf_fip.task_data import TaskData

    tokenizer = load_processor(model_folder)
    data = TaskData(tokenizer, None, 0, None)
    rows = data.features(task("first", corpora), [], "test")
    assert len(rows) == 14, "empty lines are left out"
    once, again, other = (masked_once(rows, tokenizer, seed=seed) for seed in (3, 3, 4))
    assert once[:] == again[:]
    assert once["input_ids"] != other["input_ids"]
    for row, masked in zip(rows, once, strict=True):
        hidden = [i for i, label in enumerate(masked["labels"]) if label != -100]
        assert [row["input_ids"][i] for i in hidden] == [masked["labels"][i] for i in hidden]


def test_masks_in_training_differ_between_batches_and_seeds(model_folder):
    from hf_fip.batches import SeededByContent
    from hf_fip.data.masking import MaskingCollator
    from hf_fip.models.loading import load_processor

    tokenizer = load_processor(model_folder)
    batches = [[{"input_ids": list(range(10 + i, 30 + i))} for _ in range(8)] for i in range(6)]

    def hidden(seed):
        collate = SeededByContent(MaskingCollator(tokenizer), seed)
        return {tuple((collate(rows)["labels"] != -100).flatten().tolist()) for rows in batches}

    assert len(hidden(0)) == len(batches)
    assert hidden(0) == hidden(0)
    assert not hidden(0) & hidden(1)


def test_likelihoods_are_those_of_the_hidden_tokens():
    logits = torch.zeros(2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, -100]])
    expected = torch.tensor([[2 * math.log(5), 2.0], [0.0, 0.0]])
    torch.testing.assert_close(likelihoods(logits, labels), expected)


def test_tasks_of_two_kinds_are_refused(tmp_path, corpora, model_folder):
    base = begin_graph(
        str(tmp_path / "graph"), model=str(model_folder), task=task("first", corpora), training=TRAINING
    )
    with pytest.raises(InputError, match="'first' is fill-mask.*'second' is classification"):
        ContinualLearning(Task(name="second", dataset=str(corpora / "second")))(base)
