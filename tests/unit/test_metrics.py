"""The metrics in the form of `evaluate`: loaded by their paths, and used directly."""

import math

import evaluate
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_fip import metrics
from hf_fip.errors import InputError
from hf_fip.functional import get_distance
from hf_fip.metrics.accuracy_matrix import continual_learning_metrics
from hf_fip.query import query
from tests.query.families import family, model_of, sentences, words


MATRIX = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 0.75]]


@pytest.fixture(autouse=True)
def modules_in_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


def test_each_is_loaded_by_its_path_and_used_directly_alike(tmp_path):
    save_file({"a": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}, tmp_path / "model.safetensors")
    given = {
        "forgetting": {"predictions": MATRIX, "baseline": [0.1, 0.1, 0.1]},
        "functional_distance": {"predictions": [[1.0, 2.0], [0.0, 1.0]], "references": [[1.0, 1.0], [0.0, 0.0]]},
        "calibration": {"predictions": [[0.75, 0.25], [0.75, 0.25]], "references": [0, 1]},
        "coherence": {"predictions": [[1.0, 0.0], [0.0, 2.0]], "references": [[3.0, 0.0], [1.0, 0.0]]},
        "diversity": {"predictions": [[[x, y], [y, x * y]] for x, y in [(0, 1), (2, 1), (1, 3), (4, 0), (2, 2)]]},
        "sparsity": {"predictions": [str(tmp_path)]},
    }
    assert set(given) == {*metrics.NAMES} - {"perplexity"}
    for name, inputs in given.items():
        loaded = evaluate.load(metrics.path(name)).compute(**inputs)
        direct = getattr(metrics, "".join(part.title() for part in name.split("_")))().compute(**inputs)
        assert loaded == direct
    assert loaded == {"sparsity": 0.75, "sparsities": [0.75]}


def test_what_the_ensemble_metrics_say():
    assert metrics.Coherence().compute(predictions=[[1, 0], [0, 2]], references=[[3, 0], [1, 0]]) == {"coherence": 0.5}
    found = metrics.Calibration().compute(predictions=[[0.75, 0.25], [0.75, 0.25]], references=[0, 1])
    assert found == {"expected_calibration_error": 0.25}
    rows = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = rows[:, 0] * -2
    assert metrics.Diversity().compute(predictions=rows.tolist())["diversity"] == pytest.approx(0, abs=1e-6)
    rows[:, 1] = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    assert metrics.Diversity().compute(predictions=rows.tolist())["diversity"] > 0.7
    with pytest.raises(InputError, match="sum to 1"):
        metrics.Calibration().compute(predictions=[[2.0, 1.0]], references=[0])


def test_perplexity_of_one_model_is_that_of_a_query(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 1, task="fill-mask", processor=words())
    texts = sentences(12)
    row = query(graph, texts, seed=3).ranking[0]
    found = evaluate.load(metrics.path("perplexity")).compute(predictions=texts, model=str(graph.root.folder), seed=3)
    assert found == {"perplexity": row["value"], "standard_error": row["standard_error"], "samples": 12}
    with pytest.raises(InputError, match="model='nowhere/at-all'"):
        metrics.Perplexity().compute(predictions=texts, model="nowhere/at-all")


def test_definitions_of_forgetting_and_transfer():
    found = continual_learning_metrics(MATRIX, [0.1, 0.15, 0.25])
    assert found == pytest.approx(
        {
            "average_accuracy": (0.7 + 0.5 + 0.75) / 3,
            "backward_transfer": ((0.7 - 0.9) + (0.5 - 0.8)) / 2,
            "forgetting": ((0.9 - 0.7) + (0.8 - 0.5)) / 2,
            "forward_transfer": ((0.2 - 0.15) + (0.3 - 0.25)) / 2,
        }
    )
    # The best came later than the task: forgetting counts from there, backward transfer does not.
    later = continual_learning_metrics([[0.5, 0, 0], [0.9, 0.8, 0], [0.7, 0.8, 0.6]])
    assert later["forgetting"] == pytest.approx(0.1) and later["backward_transfer"] == pytest.approx(0.1)


def test_unmeasured_tasks_of_the_future_leave_out_forward_transfer_alone():
    unknown = np.array(MATRIX)
    unknown[np.triu_indices(3, 1)] = math.nan
    known = continual_learning_metrics(MATRIX)
    assert continual_learning_metrics(unknown, [0.1, 0.1, 0.1]) == known
    assert continual_learning_metrics([[0.8]]) == {"average_accuracy": 0.8}


@pytest.mark.parametrize(
    ("accuracies", "baseline", "message"),
    [
        ([[0.9, 0.8]], None, "square matrix"),
        ([], None, "square matrix"),
        ([[0.9, 0.1], [math.nan, 0.8]], None, "missing"),
        (MATRIX, [0.1], "one accuracy for each of the 3 tasks"),
    ],
)
def test_a_matrix_that_cannot_be_summed_up_is_refused(accuracies, baseline, message):
    with pytest.raises(InputError, match=message):
        continual_learning_metrics(accuracies, baseline)


def test_functional_distance_is_in_its_unit():
    generator = torch.Generator().manual_seed(0)
    outputs, reference = torch.randn(2, 20, 4, generator=generator)
    found = metrics.FunctionalDistance().compute(predictions=outputs.numpy(), references=reference.numpy())
    each = get_distance("l2").per_example(outputs, reference).double() / reference.var(dim=0, correction=0).sum()
    assert found["functional_distance"] == pytest.approx(float(each.mean()), rel=1e-6)
    assert found["standard_error"] == pytest.approx(float(each.std() / 20**0.5), rel=1e-6)
    assert found["unit"] == "share of output variance"
    with pytest.raises(InputError, match="do not vary"):
        metrics.FunctionalDistance().compute(predictions=[[1.0, 2.0]], references=[[1.0, 1.0]])


def test_sparsity_of_a_model_in_memory_is_that_of_its_files(tmp_path):
    model = model_of("fill-mask")
    with torch.no_grad():
        for weight in model.parameters():
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = 0.0
    model.save_pretrained(tmp_path)
    in_memory = metrics.Sparsity().compute(model=model)["sparsity"]
    assert in_memory == metrics.Sparsity().compute(model=str(tmp_path))["sparsity"]
    assert 0.25 < in_memory < 0.35


def test_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match="name='acuracy'"):
        metrics.path("acuracy")
