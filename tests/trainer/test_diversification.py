"""The operator Diversification: other weights, the same outputs, without labels; in compositions and in recipes."""

import shutil

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, TrainerCallback

from hf_fip import Compression, Diversification, FIPTrainer, InputError, ModelGraph, Task, begin_graph
from hf_fip.models import LeNet300100Config, LeNet300100ForImageClassification
from hf_fip.models.embedded import grey_image_processor
from hf_fip.models.pretraining import pretrain_masked_lm
from hf_fip.objectives import Repulsion
from hf_fip.recipes.loader import load_recipe
from hf_fip.recipes.runner import run
from hf_fip.tasks import resolve_dataset
from tests.testing_utils import arguments, assert_same_weights, case, images, weights


DIGITS = Task(name="digits", dataset="embedded:digits", classes=[0, 1, 2, 3, 4], max_train=400, max_test=100)
QUICK = {"learning_rate": 5e-3, "batch_size": 32, "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A trained small LeNet as base node, to be copied by each test."""
    folder = tmp_path_factory.mktemp("lenet")
    torch.manual_seed(0)
    config = LeNet300100Config(image_size=8, hidden_sizes=(32, 16), num_labels=5)
    LeNet300100ForImageClassification(config).save_pretrained(folder / "model")
    grey_image_processor(8, 0.305, 0.376).save_pretrained(folder / "model")
    graph = ModelGraph(folder / "graph")
    begin_graph(graph, model=str(folder / "model"), task=DIGITS, training={**QUICK, "epochs": 6})
    return graph


@pytest.fixture
def base(begun, tmp_path):
    shutil.copytree(begun.folder, tmp_path / "graph")
    return ModelGraph.load(tmp_path / "graph")["base"]


def diversify(node, **changes):
    options = {"steps": 200, "path_points": 4, "anchors": 300, "training": QUICK, **changes}
    if options.get("repulsion", "cosine") == "cosine":
        # Few steps of a small network want a stronger force than the default.
        options.setdefault("strength", 30.0)
    return Diversification(**options)(node)


def vector(node) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in node.load_model().parameters()])


def cosine(first, second) -> float:
    return torch.nn.functional.cosine_similarity(vector(first), vector(second), dim=0).item()


def changed(node) -> float:
    return node.protocol["budget"]["anchors"]["disagreement"]


def test_the_weights_turn_away_evenly_and_the_outputs_stay(base):
    path = diversify(base, disagreement_budget=0.03)
    assert [node.step for node in path] == [50, 100, 150, 200]
    cosines = [cosine(node, base) for node in path]
    assert cosines == pytest.approx([0.92, 0.71, 0.38, 0.0], abs=0.1)
    for node, found in zip(path, cosines, strict=True):
        record = node.protocol["displacement"]
        assert record["cosine"] == pytest.approx(found, abs=1e-4)
        assert record["norm_ratio"] == pytest.approx((vector(node).norm() / vector(base).norm()).item(), rel=1e-4)
        assert record["distance"] == pytest.approx(
            ((vector(node) - vector(base)).norm() / vector(base).norm()).item(), rel=1e-4
        )
        assert set(record["layers"]) == {n for n, p in node.load_model().named_parameters() if p.ndim == 2}
        assert node.protocol["repulsion"] == {
            "kind": "cosine",
            "strength": 30.0,
            "angle": 90.0,
            "away_from": "start",
            "ramp": 0.7,
            "schedule": "linear",
        }
        assert changed(node) <= 0.03 or node.protocol["budget"]["cap_hit"]
        assert node.protocol["budget"]["held_out"][0]["asked"] == 0.03
        assert node.metrics["digits/accuracy"] > base.metrics["digits/accuracy"] - 0.1
        assert (node.name, node.operator) == ("diverse", "Diversification")
        assert node.protocol["anchors"]["labels_used"] is False
        assert node.protocol["training_labels_used"] is False
    again = diversify(base, disagreement_budget=0.03)
    assert [node.id for node in again] == [node.id for node in path], "a finished path is not travelled again"
    assert path.end.id not in {node.id for node in diversify(base, seed=1, steps=4)}


def test_points_that_repel_each_other_are_all_unlike(base):
    path = diversify(base, away_from="points", path_points=2, steps=300, strength=10.0)
    members = [base, *path]
    for index, member in enumerate(members):
        for other in members[:index]:
            assert cosine(member, other) < 0.55, "two neighbours of a path from the start are at 0.7"
    assert max(changed(node) for node in path) < 0.1


def test_without_a_repulsion_nothing_is_asked_but_the_way_is_measured(base):
    path = diversify(base, repulsion=None, steps=20, path_points=2)
    assert cosine(path.end, base) > 0.99
    assert "repulsion" not in path.end.protocol
    assert path.end.protocol["displacement"]["cosine"] == pytest.approx(cosine(path.end, base), abs=1e-5)


def test_a_distance_is_mostly_growth(base):
    """Why the angle is the default, and why a distance is not told alone."""
    far, turned = diversify(base, repulsion="distance", branch="far").end, diversify(base).end
    records = [node.protocol["displacement"] for node in (far, turned)]
    assert records[0]["distance"] > records[1]["distance"] and records[0]["norm_ratio"] > records[1]["norm_ratio"]
    assert records[0]["cosine"] > records[1]["cosine"]


def test_other_layers_can_be_chosen(base):
    record = diversify(base, exclude=["hidden.0"], include=["*.bias"], steps=8, path_points=1).end
    names = set(record.protocol["displacement"]["layers"])
    assert "hidden.0.weight" not in names and "hidden.0.bias" not in names
    assert {"classifier.weight", "classifier.bias"} <= names


# ---- With other operators, kinds of tasks and in recipes --------------------------------------------------------


def zeros(node) -> dict[str, torch.Tensor]:
    return {name: p == 0 for name, p in node.load_model().named_parameters() if p.ndim == 2}


def test_it_composes_with_compression_in_both_orders(base):
    walk = Diversification(steps=100, path_points=2, anchors=200, strength=30.0, training=QUICK)
    shrink = Compression(0.6, steps=40, anchors=200, training=QUICK)
    path = (shrink @ walk)(base)
    assert [node.name for node in path] == ["diverse", "diverse", "sparse"]
    assert path.end.sparsity > 0.5 and cosine(path[1], base) < 0.3
    path = (walk @ shrink)(base)
    assert [node.name for node in path] == ["sparse", "diverse", "diverse"]
    before, after = zeros(path[0]), zeros(path.end)
    assert any(mask.any() for mask in before.values())
    assert all(after[name][mask].all() for name, mask in before.items()), "zeros stay zero"
    assert cosine(path.end, path[0]) < 0.3
    freed = diversify(path[0], keep_zeros=False, steps=20, path_points=1, branch="freed").end
    assert not all(zeros(freed)[name][mask].all() for name, mask in before.items())


@pytest.mark.parametrize("kind", ["classification", "fill-mask"])
def test_texts_keep_their_embeddings_apart_from_the_repulsion(kind, tmp_path, tmp_path_factory):
    rows = resolve_dataset("embedded:restaurants")["text"][:80]
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config["max_position_embeddings"] = 32
    folder = tmp_path_factory.mktemp("mlm") / "model"
    model = pretrain_masked_lm(rows, folder, vocab_size=200, config=config, seq_length=32, progress=False)
    task = Task(name="restaurants", dataset="embedded:restaurants", max_train=96, max_test=32, kind=kind)
    training = {**QUICK, "batch_size": 16, "max_steps": 6}
    start = begin_graph(str(tmp_path / "graph"), model=str(model), task=task, training=training, max_length=32)
    path = diversify(start, steps=24, path_points=2, anchors=48, max_length=32, training={**QUICK, "batch_size": 16})
    assert not any("embeddings" in name for name in path.end.protocol["displacement"]["layers"])
    cosines = sorted(layer["cosine"] for layer in path.end.protocol["displacement"]["layers"].values())
    assert cosines[len(cosines) // 2] < 0.9
    metric = "restaurants/accuracy" if kind == "classification" else "restaurants/perplexity"
    assert metric in path.end.metrics


RECIPE = """
model: embedded:vit-tiny
tasks: {digits: {dataset: 'embedded:digits', classes: [0, 1, 2], max_train: 60, max_test: 30}}
base: {epochs: 1, batch_size: 20, use_cpu: true, disable_tqdm: true}
training: {learning_rate: 1e-3, batch_size: 8, use_cpu: true, disable_tqdm: true}
anchors: 40
path_points: 2
path:
  - {operator: Diversification, steps: 6, angle: 45}
branches:
  free:
    - {operator: Diversification, steps: 4, repulsion: null, path_points: 1}
report: false
"""


def test_a_recipe_runs_it_and_finds_it_again(tmp_path):
    (tmp_path / "walk.yaml").write_text(RECIPE)
    results = [run(load_recipe(str(tmp_path / "walk.yaml")), tmp_path / "out") for _ in range(2)]
    assert results[0]["endpoints"].keys() == {"base", "fip", "free"}
    assert results[0]["endpoints"] == results[1]["endpoints"]
    graph = ModelGraph.load(results[0]["graph"])
    assert [node.step for node in graph if node.name == "fip"] == [3, 6]
    assert graph["fip"].protocol["repulsion"]["angle"] == 45
    assert [node.step for node in graph if node.name == "free"] == [4]
    assert "repulsion" not in graph["free"].protocol


# ---- The term in the trainer -----------------------------------------------------------------------------------


def repelled(folder, *, changes=None, model=None, **options):
    arguments_of = case("sequence-classification") if model is None else model
    arguments_of.pop("train_dataset", None)
    defaults = {"max_steps": 12, "path_points": 2, "learning_rate": 1e-2}
    return FIPTrainer(
        args=arguments(folder, **{**defaults, **(changes or {})}),
        objective=Repulsion(points=[6, 12], **options),
        **arguments_of,
    )


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 4, 6, 9], ids=["left", "first", "at the point", "second"])
@pytest.mark.parametrize("away_from", ["start", "points"])
def test_a_resumed_path_equals_an_uninterrupted_one(away_from, stop, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = repelled(tmp_path / "whole", changes=saving, away_from=away_from)
    whole.train()
    broken = repelled(tmp_path / "broken", changes=saving, away_from=away_from)
    broken.add_callback(_StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = repelled(tmp_path / "broken", changes=saving, away_from=away_from)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    for one, other in zip(whole.graph, resumed.graph, strict=True):
        assert one.id == other.id and one.protocol == other.protocol


def test_neither_accumulation_nor_mixed_precision_changes_what_is_added(tmp_path):
    results = {}
    for name, size, more in (("plain", 8, {}), ("split", 1, {}), ("bf16", 8, {"bf16": True})):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        changes = {"optim": "sgd", "learning_rate": 2e-3, "beta": 1.0, "max_grad_norm": 0, **split, **more}
        trainer = repelled(tmp_path / name, changes=changes, kind="distance", strength=4000.0)
        trainer.train()
        results[name] = weights(trainer.model)
        assert trainer.graph["fip"].protocol["displacement"]["distance"] > 0.05
    assert_same_weights(results["plain"], results["split"], tolerance=1e-4)
    assert_same_weights(results["plain"], results["bf16"], tolerance=2e-2)


def test_the_log_tells_how_far_the_path_has_turned(tmp_path):
    trainer = repelled(tmp_path)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "cosine" in log]
    assert len(logs) == 12
    assert logs[-1]["cosine"] == pytest.approx(trainer.graph["fip"].protocol["displacement"]["cosine"], abs=1e-6)
    asked = [log["cosine_asked"] for log in logs]
    assert asked == sorted(asked, reverse=True) and asked[-1] == pytest.approx(0, abs=1e-6)


def test_statistics_of_batch_norms_are_not_touched(tmp_path):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    model = ResNetForImageClassification(config)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_var" in name for name in before)
    given = {"model": model, "anchor_dataset": images(16, seed=2, labels=False)}
    trainer = repelled(tmp_path, model=given)
    trainer.train()
    assert all(torch.equal(buffer, before[name]) for name, buffer in trainer.model.named_buffers())
    layers = trainer.graph["fip"].protocol["displacement"]["layers"]
    assert layers and not any("normalization" in name for name in layers)


# ---- Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_points": 0}, "path_points=0"),
        ({"path_points": 2.5}, "path_points=2.5"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 3, "path_points": 4}, "steps=3 are fewer than the 4 points"),
        ({"strength": 0}, "strength=0"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"repulsion": "magnetic"}, "repulsion='magnetic' is unknown"),
        ({"repulsion": None, "strength": 1.0}, "repulsion=None repels nothing; leave strength out"),
        ({"repulsion": "distance", "angle": 45.0}, "repulsion='distance' knows no angle"),
        ({"angle": 180}, "angle=180"),
        ({"away_from": "home"}, "away_from='home'"),
        ({"anchors": 1}, "anchors=1"),
        ({"disagreement_budget": 0}, "disagreement_budget=0"),
        ({"distance_budget": -1}, "distance_budget=-1"),
        ({"functional_distance": "l3"}, "l3"),
        ({"include": ["convolutions"]}, "include='convolutions' fits none"),
        ({"exclude": ["*"]}, "no layer of LeNet"),
    ],
)
def test_arguments_that_cannot_work_are_refused_in_one_line(options, message, base):
    with pytest.raises(InputError, match=message) as error:
        diversify(base, **options)
    assert "\n" not in str(error.value)
    assert len(ModelGraph.load(base.folder.parent.parent)) == 1
