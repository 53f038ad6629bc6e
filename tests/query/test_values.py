"""What a query says equals a computation without batches, padding, shortcuts or exchanged weights."""

import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from sklearn import metrics as sklearn_metrics
from torch.nn.functional import cross_entropy

from hf_fip.functional import get_distance
from hf_fip.models.embedded import grey_image_processor
from hf_fip.query import query
from hf_fip.query.data import load_examples
from hf_fip.query.encoding import encode_texts

from .families import family, model_of, sentences, words


TEXTS = [*sentences(23), "", "   ", "w5"]


def labelled(texts, labels, names=("yes", "no")):
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"text": texts, "label": labels}, features)


def classifier(names=("yes", "no")):
    model = model_of("sequence-classification")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers") / "graph"
    return family(folder, lambda seed: classifier(), 3, task="sequence-classification", processor=words())


LABELLED = labelled(TEXTS[:23], [i * i % 3 % 2 for i in range(23)])


def values(result):
    return {row["node"]: row["value"] for row in result.ranking}


def outputs_one_by_one(graph, inputs):
    """Logits of each node, each input alone: `node id -> [inputs] of [..., classes]`."""
    found = {}
    for node in graph:
        model = node.load_model()
        with torch.no_grad():
            found[node.id] = [model(**{k: torch.tensor([v]) for k, v in row.items()}).logits[0] for row in inputs]
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_masked_perplexity(tmp_path, batch_size):
    tokenizer = words()
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 3, task="fill-mask", processor=tokenizer)
    result = query(graph, TEXTS, seed=7, batch_size=batch_size, mask_probability=0.4)
    nll, tokens = dict.fromkeys(graph.nodes, 0.0), 0
    for index, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        if not ids:
            continue
        number = max(1, round(0.4 * len(ids)))
        masked = np.random.default_rng((7, index)).choice(len(ids), number, replace=False)
        tokens += number
        hidden = [tokenizer.mask_token_id if place in masked else token for place, token in enumerate(ids)]
        for node, (logits,) in outputs_one_by_one(graph, [{"input_ids": hidden}]).items():
            targets = torch.tensor([ids[place] for place in masked])
            nll[node] += float(cross_entropy(logits[masked].double(), targets, reduction="sum"))
    expected = {node: math.exp(total / tokens) for node, total in nll.items()}
    assert values(result) == pytest.approx(expected, rel=1e-5)
    assert [row["node"] for row in result.ranking] == sorted(expected, key=expected.get)
    assert result.protocol["left_out"] == 2 and result.ranking[0]["samples"] == 24


def test_causal_perplexity_scores_each_token_once_in_overlapping_windows(tmp_path):
    tokenizer = words()
    graph = family(
        tmp_path / "graph", lambda seed: model_of("text-generation"), 2, task="text-generation", processor=tokenizer
    )
    texts = [*sentences(9, longest=30), " ".join(sentences(8, seed=5))]
    result = query(graph, texts, max_length=16)
    model, nll, tokens = graph.root.load_model(), 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for place in range(1, len(ids)):
            # The first window of 16 with a stride of 8 that holds the token.
            start = 8 * max(0, math.ceil((place + 1 - 16) / 8))
            with torch.no_grad():
                logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
            nll += float(cross_entropy(logits, torch.tensor(ids[place])))
            tokens += 1
    assert values(result)["fip-0"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert result.protocol["per"] == "token"


def test_classifiers(classifiers):
    tokenizer = words()
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in LABELLED["text"]]
    truth = torch.tensor(LABELLED["label"])
    logits = {node: torch.stack(rows) for node, rows in outputs_one_by_one(classifiers, rows).items()}
    perplexity = {node: math.exp(cross_entropy(found.double(), truth)) for node, found in logits.items()}
    assert values(query(classifiers, LABELLED)) == pytest.approx(perplexity, rel=1e-5)
    scores = {
        "accuracy": sklearn_metrics.accuracy_score,
        "f1": sklearn_metrics.f1_score,
        "precision": sklearn_metrics.precision_score,
        "matthews_correlation": sklearn_metrics.matthews_corrcoef,
    }
    for name, score in scores.items():
        expected = {node: score(truth, found.argmax(-1)) for node, found in logits.items()}
        result = query(classifiers, LABELLED, metric=name)
        assert values(result) == pytest.approx(expected)
        assert [row["value"] for row in result.ranking] == pytest.approx(sorted(expected.values(), reverse=True))


def test_the_error_of_an_accuracy(classifiers):
    row = query(classifiers, LABELLED, metric="accuracy").ranking[0]
    assert row["standard_error"] == pytest.approx(math.sqrt(row["value"] * (1 - row["value"]) / 22))


@pytest.mark.parametrize("kind", ["l2", "kl"])
def test_functional_distance_to_a_node(classifiers, kind):
    tokenizer = words()
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in LABELLED["text"]]
    logits = {node: torch.stack(rows) for node, rows in outputs_one_by_one(classifiers, rows).items()}
    distance = get_distance(kind)
    scale = distance.scale(logits["fip-1"])
    expected = {
        node: float(distance.per_example(found, logits["fip-1"]).mean() / scale)
        for node, found in logits.items()
        if node != "fip-1"
    }
    # Labels play no part.
    result = query(classifiers, LABELLED["text"][:], metric=f"functional_distance:fip-1:{kind}")
    assert values(result) == pytest.approx(expected, rel=1e-4)
    assert result.unscored == [{"node": "fip-1", "reason": "is the reference of the distance"}]
    assert result.forward_examples == result.full_forward_examples == 3 * 23


def test_functional_distance_of_masked_models_is_over_masked_tokens(tmp_path):
    tokenizer = words()
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 2, task="fill-mask", processor=tokenizer)
    examples = load_examples(TEXTS)
    encoded = encode_texts(examples, tokenizer, "fill-mask", max_length=32, mask_probability=0.4, seed=0)
    windows = [window for of_one in encoded.windows for window in of_one]
    found = outputs_one_by_one(graph, [{"input_ids": window.inputs["input_ids"].tolist()} for window in windows])
    kept, moved = ([logits[w.positions] for logits, w in zip(found[node], windows, strict=True)] for node in found)
    distance = get_distance("l2")
    each = [distance.per_example(new, old).mean() for new, old in zip(moved, kept, strict=True)]
    expected = torch.stack(each).mean() / distance.scale(torch.cat(kept))
    result = query(graph, TEXTS, metric="functional_distance:fip-0", mask_probability=0.4)
    assert values(result)["fip-1"] == pytest.approx(float(expected), rel=1e-4)


def test_images(tmp_path):
    def make(seed):
        model = model_of("image-classification")
        model.config.id2label = {0: "cat", 1: "dog"}
        return model

    processor = grey_image_processor(8, 0.5, 0.25)
    processor.image_mean = processor.image_std = [0.5, 0.5, 0.5]
    graph = family(tmp_path / "graph", make, 2, task="image-classification", processor=processor)
    rng = np.random.default_rng(0)
    pictures = [PILImage.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(11)]
    types = Features({"img": Image(), "label": ClassLabel(names=["dog", "cat"])})
    labels = [i % 2 for i in range(11)]
    data = Dataset.from_dict({"img": pictures, "label": labels}, types)
    with torch.no_grad():
        logits = graph.root.load_model()(**processor(pictures, return_tensors="pt")).logits
    # The data's first class is the model's second.
    expected = math.exp(cross_entropy(logits.double(), 1 - torch.tensor(labels)))
    result = query(graph, data, batch_size=4)
    assert values(result)["fip-0"] == pytest.approx(expected, rel=1e-5)


def test_masks_depend_on_the_row_and_the_seed_alone(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 1, task="fill-mask", processor=words())
    tokenizer = graph.root.load_processor()
    everything = load_examples(TEXTS)
    sample = load_examples(TEXTS, max_samples=9, seed=3)
    settings = {"max_length": 32, "mask_probability": 0.3}
    whole = encode_texts(everything, tokenizer, "fill-mask", seed=0, **settings)
    part = encode_texts(sample, tokenizer, "fill-mask", seed=0, **settings)
    other = encode_texts(everything, tokenizer, "fill-mask", seed=1, **settings)
    place = {int(row): i for i, row in enumerate(everything.index)}
    for number, row in enumerate(sample.index):
        same = whole.windows[place[int(row)]][0]
        assert part.windows[number][0].positions.tolist() == same.positions.tolist()
    moved = [
        a[0].positions.tolist() != b[0].positions.tolist() for a, b in zip(whole.windows, other.windows, strict=True)
    ]
    assert np.mean(moved) > 0.5


def test_a_race_and_the_full_ranking_agree_on_the_winner_and_its_value(classifiers):
    texts = sentences(300, seed=2)
    data = labelled(texts, [len(text) % 2 for text in texts])
    full, raced = query(classifiers, data), query(classifiers, data, strategy="racing", budget=0.9)
    assert raced.best == full.best
    assert raced.ranking[0]["value"] == pytest.approx(full.ranking[0]["value"], rel=1e-6)
    assert raced.ranking[0]["standard_error"] == pytest.approx(full.ranking[0]["standard_error"], rel=1e-6)
    assert raced.ranking[0]["samples"] == 300 and raced.forward_examples <= full.forward_examples == 900
    assert raced.protocol["confidence"] == 0.95 and "Moore and Lee" in raced.protocol["method"]


def test_the_same_query_twice_is_the_same(classifiers):
    first, second = (query(classifiers, LABELLED, max_samples=10, seed=4).to_dict() for _ in range(2))
    assert first == second
    assert first["ranking"] != query(classifiers, LABELLED, max_samples=10, seed=5).to_dict()["ranking"]


MODULE = """
import datasets
import evaluate


class Errors(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"errors": sum(p != r for p, r in zip(predictions, references)), "note": "text"}
"""


def test_metrics_of_evaluate_by_their_path(classifiers, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors" / "errors.py").write_text(MODULE)
    result = query(classifiers, LABELLED, metric=str(tmp_path / "errors"), greater_is_better=False)
    accuracy = values(query(classifiers, LABELLED, metric="accuracy"))
    assert values(result) == pytest.approx({node: 23 * (1 - share) for node, share in accuracy.items()})
    assert [row["value"] for row in result.ranking] == sorted(values(result).values())
