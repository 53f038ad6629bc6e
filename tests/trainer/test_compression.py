"""The compression operator: points exactly in their sets, without labels, on every kind of task; zeros that stay."""

import math
import shutil

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_fip import Compression, ContinualLearning, FIPTrainer, InputError, ModelGraph, Task, begin_graph, task_data
from hf_fip.baselines.compression import COMPRESSION_METHODS
from hf_fip.models import LeNet300100Config, LeNet300100ForImageClassification
from hf_fip.models.embedded import grey_image_processor
from hf_fip.models.pretraining import pretrain_masked_lm
from hf_fip.objectives import Pull, TaskLoss, get_projection
from hf_fip.objectives.prunable import prunable_weights
from hf_fip.objectives.scores import get_score
from hf_fip.tasks import resolve_dataset
from tests.testing_utils import arguments, assert_same_weights, case, classifier, weights


LOW = Task(name="low", dataset="embedded:digits", classes=[0, 1, 2, 3, 4], max_train=400, max_test=100)
HIGH = Task(name="high", dataset="embedded:digits", classes=[5, 6, 7, 8, 9], max_train=200, max_test=100)
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
    begin_graph(graph, model=str(folder / "model"), task=LOW, training={**QUICK, "epochs": 6})
    return graph


@pytest.fixture
def base(begun, tmp_path):
    shutil.copytree(begun.folder, tmp_path / "graph")
    return ModelGraph.load(tmp_path / "graph")["base"]


def compress(node, sparsity=None, **changes):
    return Compression(sparsity, **{"steps": 40, "anchors": 200, "training": QUICK, **changes})(node)


def zero_share(node, **patterns) -> float:
    found = prunable_weights(node.load_model(), **patterns)
    return sum(int((w == 0).sum()) for w in found.values()) / sum(w.numel() for w in found.values())


def test_each_point_has_exactly_the_zeros_asked_for(base):
    """Under Adam with momentum and weight decay, which would move weights that are not held."""
    path = compress(base, [0.3, 0.6, 0.9], training={**QUICK, "weight_decay": 0.1})
    assert [node.step for node in path] == [13, 27, 40]
    size = sum(w.numel() for w in prunable_weights(base.load_model()).values())
    for node, target in zip(path, [0.3, 0.6, 0.9], strict=True):
        assert abs(zero_share(node) * size - target * size) <= 1
        record = node.protocol["compression"]
        assert record["target"] == target
        assert record["sparsity"] == pytest.approx(target, abs=1 / size)
        assert record["over"] == {"weights": size, "tensors": 2}
        assert node.protocol["anchors"]["labels_used"] is False
        assert node.protocol["training_labels_used"] is False
        assert node.sparsity > 0.8 * target
        assert node.operator == "Compression" and "low/accuracy" in node.metrics
    assert path[0].metrics["low/accuracy"] > base.metrics["low/accuracy"] - 0.05
    again = compress(base, [0.3, 0.6, 0.9], training={**QUICK, "weight_decay": 0.1})
    assert [node.id for node in again] == [node.id for node in path], "a finished path is not travelled again"


def test_the_function_is_kept_better_than_by_cutting_alone(base):
    kept = compress(base, 0.9, steps=80).end
    cut = compress(base, 0.9, steps=1, branch="cut", training={**QUICK, "learning_rate": 1e-9}).end
    assert zero_share(cut) == pytest.approx(0.9, abs=1e-3)
    distances = [node.protocol["budget"]["anchors"]["distance"] for node in (kept, cut)]
    assert distances[0] < distances[1] / 3
    assert kept.metrics["low/accuracy"] > cut.metrics["low/accuracy"]


@pytest.mark.parametrize(
    ("projection", "options"),
    [
        ("2:4", {}),
        ({"name": "block", "rows": 4, "columns": 4}, {"sparsity": 0.5}),
        ({"name": "structured", "kinds": ["neurons"]}, {"sparsity": 0.3, "sparse_format": "dense"}),
        ("int4", {}),
        ("low_rank", {"sparsity": 0.5}),
        ({"name": "unstructured", "scope": "layer"}, {"sparsity": 0.5}),
    ],
    ids=["2:4", "block", "structured", "int4", "low_rank", "layer"],
)
def test_points_lie_in_every_kind_of_set(projection, options, base):
    training = {**QUICK, "sparse_format": options.get("sparse_format", "auto")}
    path = compress(base, options.get("sparsity"), projection=projection, steps=20, training=training)
    model = path.end.load_model()
    found = prunable_weights(model)
    bound = get_projection(projection).for_model(model, list(found))
    code = bound.code(found, bound.target or options["sparsity"])
    norm = sum(w.detach().square().sum() for w in found.values()).sqrt()
    assert code.distance(found) <= 1e-5 * norm
    assert path.end.protocol["compression"]["projection"] == get_projection(projection).to_dict()
    start = prunable_weights(base.load_model())
    assert any(not torch.equal(found[name], start[name]) for name in found)


def test_the_invariant_path_drops_by_the_fisher_score_and_its_rivals_by_their_own():
    def score(*args, **options):
        return Compression(*args, **options).parameters["score"]

    assert score(0.5) == "fisher" and score(0.5, score="magnitude") == "magnitude"
    assert score(0.5, method="gmp") == "magnitude" and score(0.5, method="movement") == "movement"
    assert score(0.5, projection="structured") == score(projection="int8") == "magnitude"


def test_what_training_says_of_the_distance_goes_before_the_defaults_and_behind_arguments():
    def distance(**options):
        chosen = Compression(0.5, **options).arguments
        return chosen["functional_distance"], chosen.get("distance_temperature"), chosen.get("beta")

    assert distance() == ("kl", 2.0, 1.0)
    assert distance(training={"distance_temperature": 4.0, "beta": 0.5}) == ("kl", 4.0, 0.5)
    assert distance(training={"distance_temperature": 4.0}, distance_temperature=1.0, beta=3.0) == ("kl", 1.0, 3.0)
    assert distance(training={"functional_distance": "l2"}) == ("l2", None, 1.0)
    assert distance(training={"functional_distance": "l2"}, functional_distance="kl") == ("kl", 2.0, 1.0)
    assert distance(training={"distance_budget": 0.02}) == ("kl", 2.0, None)
    steps = Compression([0.2, 0.5], steps=7, training={"max_steps": 99, "path_points": 9}).arguments
    assert (steps["max_steps"], steps["path_points"]) == (7, 2)


def test_a_path_may_begin_with_a_point_without_zeros(base):
    path = compress(base, [0.0, 0.5])
    assert [zero_share(node) for node in path] == pytest.approx([0.0, 0.5], abs=1e-3)


@pytest.mark.parametrize("score", ["saliency", "fisher", "second_order"])
def test_other_scores_choose_other_weights(score, base):
    zeros = [
        {n: w == 0 for n, w in prunable_weights(compress(base, 0.7, steps=20, score=s).end.load_model()).items()}
        for s in ("magnitude", score)
    ]
    assert any(not torch.equal(zeros[0][name], zeros[1][name]) for name in zeros[0])
    assert [sum(int(m.sum()) for m in masks.values()) for masks in zeros] == [round(0.7 * (64 * 32 + 32 * 16))] * 2


def test_a_budget_is_restored_without_losing_a_zero(base):
    free = compress(base, 0.8, branch="free")
    asked = free.end.protocol["budget"]["anchors"]["distance"] * 0.3
    kept = compress(base, 0.8, branch="kept", distance_budget=asked)
    report = kept.end.protocol["budget"]
    assert report["restoration_steps"] > 0
    assert report["anchors"]["distance"] <= asked or report["cap_hit"]
    assert report["anchors"]["distance"] < free.end.protocol["budget"]["anchors"]["distance"]
    assert zero_share(kept.end) == pytest.approx(0.8, abs=1e-3)


def test_a_budget_that_cannot_be_met_is_reported_and_the_node_kept(base):
    path = compress(base, 0.98, distance_budget=1e-6, training={**QUICK, "restoration_steps": 2})
    report = path.end.protocol["budget"]
    assert report["cap_hit"] and report["anchors"]["distance"] > 1e-6
    assert zero_share(path.end) == pytest.approx(0.98, abs=1e-3)


def test_learning_keeps_zeros_but_leaves_new_outputs_free(base):
    sparse = compress(base, 0.6, include=["classifier"]).end
    learn = {"anchors": 100, "path_points": 1, "training": {**QUICK, "epochs": 8, "weight_decay": 0.1}}
    learned = ContinualLearning(HIGH, **learn)(sparse).end
    before, after = (dict(node.load_model().named_parameters()) for node in (sparse, learned))
    for name, weight in before.items():
        zeros = weight == 0
        assert (after[name][: len(weight)][zeros] == 0).all()
        if weight.ndim == 2:
            assert not torch.equal(after[name][: len(weight)][~zeros], weight[~zeros])
    assert (after["classifier.weight"][5:] != 0).all()
    assert learned.metrics["high/accuracy"] > 0.5
    assert learned.protocol["zeros_kept"] == sum(int((w == 0).sum()) for w in before.values() if w.ndim == 2)
    freed = ContinualLearning(HIGH, keep_zeros=False, branch="free", **learn)(sparse).end
    assert zero_share(freed) < 0.3
    # The next one keeps them too.
    third = Task(name="again", dataset="embedded:digits", classes=[0, 1], max_train=40, max_test=20)
    last = ContinualLearning(third, branch="last", **learn)(learned).end
    assert all((w[before[n] == 0] == 0).all() for n, w in _rows(last, before).items())


def _rows(node, like):
    return {name: w[: len(like[name])] for name, w in node.load_model().named_parameters()}


def test_the_function_is_kept_on_mixtures_of_anchors_too(base, monkeypatch):
    training = {**QUICK, "max_steps": 4}
    learned = ContinualLearning(HIGH, anchors=40, anchor_mix=6, training=training, path_points=1)(base).end
    compressed = compress(base, 0.5, steps=4, anchors=40, anchor_mix=3).end
    for node, inputs in ((learned, 280), (compressed, 160)):
        assert node.protocol["anchors"]["number"] == 40
        assert node.protocol["budget"]["anchors"]["inputs"] == inputs
    # Beyond so many rows of all tasks together there are fewer mixtures: 2 of each anchor.
    monkeypatch.setattr(task_data, "MOST_ROWS", 120)
    both = compress(learned, 0.5, steps=4, anchors=40, anchor_mix=9, branch="both").end
    assert both.protocol["budget"]["anchors"]["inputs"] == 120


def test_compressing_further_counts_the_zeros_there_are(base):
    first = compress(base, 0.5).end
    second = compress(first, 0.8, branch="further").end
    assert zero_share(second) == pytest.approx(0.8, abs=1e-3)
    before, after = (prunable_weights(node.load_model()) for node in (first, second))
    assert all((after[name][before[name] == 0] == 0).all() for name in before)
    quantised = compress(second, projection="int8", branch="int8", steps=20).end
    assert zero_share(quantised) >= zero_share(second)
    with pytest.raises(InputError, match="nothing is left to compress.*0.8"):
        compress(second, 0.7, branch="back")
    with pytest.raises(InputError, match="nothing is left to compress"):
        compress(compress(base, projection="2:4", branch="24").end, projection="2:4", branch="again")


def test_operators_compose_in_both_orders(base):
    learn = ContinualLearning(HIGH, anchors=100, path_points=1, branch="cl", training={**QUICK, "epochs": 2})
    shrink = Compression(0.5, steps=30, anchors=100, training=QUICK, branch="co")
    co_cl, cl_co = (shrink @ learn)(base), (learn @ shrink)(base)
    assert [node.name for node in co_cl] == ["cl", "co"] and [node.name for node in cl_co] == ["co", "cl"]
    for node in (co_cl.end, cl_co.end):
        assert {"low/accuracy", "high/accuracy"} <= node.metrics.keys()
        assert node.load_model().config.num_labels == 10
        assert zero_share(node) == pytest.approx(0.5, abs=1e-3)
    assert co_cl.end.protocol["anchors"]["tasks"] == ["low", "high"], "the anchors are of all tasks of the node"


def test_labels_are_used_only_where_asked_for(base):
    path = compress(base, 0.5, labels=True)
    assert path.end.protocol["training_labels_used"] is True
    assert path.end.step == 40


@pytest.mark.parametrize("method", COMPRESSION_METHODS)
def test_every_method_runs_in_the_same_trainer_and_reaches_the_same_sparsity(method, base):
    path = compress(base, [0.5, 0.8], method=method)
    uses_labels = COMPRESSION_METHODS[method].uses_labels
    assert path.end.protocol["training_labels_used"] is uses_labels
    for node, target in zip(path, [0.5, 0.8], strict=True):
        # A weight that a score lets back in may have no gradient to leave zero by: then there are a few zeros more.
        assert target - 1e-3 < zero_share(node) < target + (0.02 if method == "movement" else 1e-3)
    assert path.end.step == 40
    assert path.end.name == ("sparse" if method == "fip" else method)


def test_lottery_tickets_rewind_what_they_keep(base):
    """With a learning rate of next to nothing the ticket's weights are those of the start."""
    path = compress(base, 0.8, method="lottery_ticket", steps=5, training={**QUICK, "learning_rate": 1e-12})
    start = dict(base.load_model().named_parameters())
    for name, weight in path.end.load_model().named_parameters():
        kept = weight != 0
        torch.testing.assert_close(weight[kept], start[name][kept], rtol=0, atol=1e-8)
    assert zero_share(path.end) == pytest.approx(0.8, abs=1e-3)


def test_the_learning_rate_falls_towards_each_point_unless_the_user_says_otherwise(base):
    rates = {}

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.setdefault(args.branch, []).append(optimizer.param_groups[0]["lr"])

    DEFAULT_CALLBACKS.append(Watch)
    try:
        compress(base, [0.3, 0.6], steps=20, branch="default")
        compress(base, 0.3, steps=20, branch="own", training={**QUICK, "lr_scheduler_type": "constant"})
    finally:
        DEFAULT_CALLBACKS.remove(Watch)
    first, second = rates["default"][:10], rates["default"][10:]
    assert first == second == sorted(first, reverse=True)
    assert first[:6] == [5e-3] * 6 and first[-1] < 1e-3
    assert rates["own"] == [5e-3] * 20


# ---- Text ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm") / "model"
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config["max_position_embeddings"] = 32
    rows = resolve_dataset("embedded:restaurants")["text"][:80]
    return pretrain_masked_lm(rows, folder, vocab_size=200, config=config, seq_length=32, progress=False)


@pytest.mark.parametrize("kind", ["classification", "fill-mask"])
def test_texts_are_compressed_with_heads_embeddings_and_norms_left_alone(kind, language_model, tmp_path):
    task = Task(name="restaurants", dataset="embedded:restaurants", max_train=96, max_test=32, kind=kind)
    training = {**QUICK, "batch_size": 16, "max_steps": 6}
    base = begin_graph(str(tmp_path / "graph"), model=str(language_model), task=task, training=training, max_length=32)
    path = compress(base, [0.4, 0.7], steps=12, anchors=48, max_length=32, training={**QUICK, "batch_size": 16})
    assert [zero_share(node) for node in path] == pytest.approx([0.4, 0.7], abs=1e-3)
    metric = "restaurants/accuracy" if kind == "classification" else "restaurants/perplexity"
    assert metric in path.end.metrics
    model = path.end.load_model()
    pruned = set(prunable_weights(model))
    for name, weight in model.named_parameters():
        if name not in pruned and weight.ndim > 1:
            assert (weight[1:] != 0).float().mean() > 0.99, f"{name} was left alone"
    heads = compress(base, 0.4, projection="structured", steps=6, anchors=48, max_length=32, branch="structured").end
    assert heads.protocol["compression"]["sparsity"] == pytest.approx(0.4, abs=0.07), "exact to one head"


def test_what_a_structured_projection_removes_is_gone_and_learning_goes_on_without_it(language_model, tmp_path):
    training = {**QUICK, "batch_size": 16, "max_steps": 6}
    task = Task(name="restaurants", dataset="embedded:restaurants", max_train=96, max_test=32)
    base = begin_graph(str(tmp_path / "graph"), model=str(language_model), task=task, training=training, max_length=32)
    options = {"projection": "structured", "anchors": 48, "max_length": 32}
    small = compress(base, [0.3, 0.6], steps=12, **options, training={**QUICK, "batch_size": 16})
    sizes = [node.load_model().num_parameters() for node in (base, *small)]
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(0 < node.euclidean_distance["parent"] < math.inf for node in small)
    # The files stand for the weights they had, zeros included.
    assert small.end.sparsity > small[0].sparsity > 0.05
    whole = {**QUICK, "batch_size": 16, "sparse_format": "dense"}
    dense = compress(base, 0.3, steps=6, **options, branch="dense", training=whole).end
    assert dense.load_model().num_parameters() == sizes[0]

    again = Task(name="again", dataset="embedded:restaurants", max_train=64, max_test=32, class_names=["bad", "good"])
    learned = ContinualLearning(again, anchors=48, path_points=1, max_length=32, training=training)(small.end).end
    assert 0 < learned.euclidean_distance["parent"] < math.inf
    assert learned.functional_distance["parent"] > 0
    before, after = (dict(node.load_model().named_parameters()) for node in (small.end, learned))
    assert {n for n in before if after[n].shape != before[n].shape} == {"classifier.weight", "classifier.bias"}
    further = compress(learned, 0.4, steps=6, branch="further", **options, training={**QUICK, "batch_size": 16}).end
    assert further.load_model().num_parameters() < learned.load_model().num_parameters()


def test_nodes_of_a_model_without_known_structures_are_refused_before_training(tmp_path):
    changes = {"sparse_format": "structured"}
    with pytest.raises(InputError, match="sparse_format='structured': no heads are known of GPT2LMHeadModel"):
        FIPTrainer(args=arguments(tmp_path, **changes), **case("text-generation")).train()
    with pytest.raises(InputError, match="sparse_format='zip'.*structured"):
        arguments(tmp_path, sparse_format="zip")


# ---- The term in the trainer -----------------------------------------------------------------------------------


def pulling(folder, *, changes=None, **options):
    arguments_of = case("sequence-classification")
    del arguments_of["train_dataset"]
    projection = get_projection("unstructured")
    pull = Pull(projection, [0.4, 0.7], [6, 12], **{"refresh": 2, "ramp": 0.6, **options})
    defaults = {"max_steps": 12, "path_points": 2, "learning_rate": 1e-2}
    return FIPTrainer(args=arguments(folder, **{**defaults, **(changes or {})}), objective=pull, **arguments_of)


class _StopAt(TrainerCallback):
    def __init__(self, step, kill=True):
        self.step, self.kill = step, kill

    def on_step_begin(self, args, state, control, **kwargs):
        if self.kill and state.global_step == self.step:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        if not self.kill and state.global_step == self.step:
            control.should_training_stop = True


@pytest.mark.parametrize("stop", [2, 5, 8, 11], ids=["ramp", "frozen", "second ramp", "second frozen"])
@pytest.mark.parametrize("score", ["magnitude", "saliency", "fisher"])
def test_a_resumed_path_equals_an_uninterrupted_one(stop, score, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "distance_budget": 1e-4, "restoration_steps": 4}

    def make(name):
        return pulling(tmp_path / name, changes=saving, refresh=3, score=get_score(score))

    whole = make("whole")
    whole.train()
    broken = make("broken")
    broken.add_callback(_StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make("broken")
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    logged = [
        [log["functional_distance"] for log in trainer.state.log_history if "functional_distance" in log]
        for trainer in (whole, resumed)
    ]
    assert logged[1] == pytest.approx(logged[0], rel=1e-4, abs=1e-12) and len(logged[0]) == 12
    assert [node.id for node in whole.graph] == [node.id for node in resumed.graph]
    for one, other in zip(whole.graph, resumed.graph, strict=True):
        assert_same_weights(weights(one.load_model()), weights(other.load_model()))
        assert one.protocol == other.protocol


def test_a_run_stopped_within_a_ramp_ends_in_the_set_it_had_reached(tmp_path):
    trainer = pulling(tmp_path)
    trainer.add_callback(_StopAt(2, kill=False))
    trainer.train()
    node = trainer.graph["fip"]
    level = node.protocol["compression"]["target"]
    assert node.step == 2 and 0 < level < 0.4
    assert zero_share(node) == pytest.approx(level, abs=1e-3)


def test_the_log_names_the_pull_and_its_level(tmp_path):
    trainer = pulling(tmp_path)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "pull" in log]
    assert len(logs) == 12 and logs[0]["objective"] == logs[0]["pull"] > 0
    assert [log["level"] for log in logs] == sorted(log["level"] for log in logs)
    assert logs[-1]["level"] == 0.7 and logs[-1]["pull"] == pytest.approx(0)


class _Spied(Pull):
    """Keeps what each call adds to the gradient, and the weights it is added at."""

    def begin_segment(self, model):
        super().begin_segment(model)
        self.seen = getattr(self, "seen", [])

    def add_gradient_(self, parameters):
        before = {n: torch.zeros_like(w) if w.grad is None else w.grad.clone() for n, w in self.weights.items()}
        at = {name: weight.detach().clone() for name, weight in self.weights.items()}
        super().add_gradient_(parameters)
        if self.code is not None and not self.frozen:
            added = {name: weight.grad - before[name] for name, weight in self.weights.items()}
            self.seen.append((at, added, {name: mask.clone() for name, mask in self.code.pruned.items()}))


def spied(folder, **changes):
    spy = _Spied(get_projection("unstructured"), [0.6], [6], decoupled=False, strength=0.5, ramp=1.0, refresh=1)
    defaults = {"path_points": 1, "optim": "sgd", "learning_rate": 2e-3, "beta": 1.0, "anchor_batch_size": 8}
    trainer = FIPTrainer(
        args=arguments(folder, **{**defaults, **changes}),
        objective=[TaskLoss(), spy],
        **case("sequence-classification"),
    )
    trainer.train()
    return trainer, spy


@pytest.mark.parametrize(
    "changes",
    [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, {"bf16": True}],
    ids=["plain", "accumulated", "bf16"],
)
def test_the_gradient_of_the_pull_is_the_analytic_one(changes, tmp_path):
    """strength * (w - proj(w)), once an optimizer step and in full precision, however the loss is computed."""
    _, spy = spied(tmp_path, **changes)
    assert len(spy.seen) == 5, "all steps but the first, which has no projection yet"
    for at, added, pruned in spy.seen:
        for name, gradient in added.items():
            assert gradient.dtype == torch.float32
            torch.testing.assert_close(gradient, 0.5 * at[name] * pruned[name], rtol=1e-4, atol=1e-5)


def test_accumulation_does_not_change_the_pulled_path(tmp_path):
    results = []
    for size in (8, 1):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer, _ = spied(tmp_path / str(size), **split)
        results.append(weights(trainer.model))
    assert_same_weights(*results, tolerance=2e-5)


# ---- Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0: .*below 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": 0.0}, "nothing is left to compress.*asked for 0"),
        ({"sparsity": "0.5"}, "sparsity='0.5': .*numbers"),
        ({"sparsity": True}, "sparsity=True: .*numbers"),
        ({"sparsity": math.nan}, "sparsity=nan: .*numbers"),
        ({"sparsity": [0.5, 0.3]}, "sparsity=.*rise"),
        ({"sparsity": None}, "sparsity=None"),
        ({"sparsity": 0.3, "projection": "2:4"}, "sparsity=0.3.*prescribes 0.5"),
        ({"sparsity": 0.5, "projection": "magic"}, "projection='magic'"),
        ({"sparsity": None, "projection": "4:2"}, "n=4, m=2"),
        ({"sparsity": None, "projection": "2:5"}, "'hidden.0.weight' has 64 inputs, which 5 does not divide"),
        ({"sparsity": 0.5, "projection": {"name": "structured", "kinds": ["heads"]}}, "has no heads"),
        ({"sparsity": 0.5, "projection": {"name": "structured", "kinds": "heads"}}, "kinds='heads'.*give a list"),
        ({"sparsity": 0.99, "projection": "structured"}, "sparsity=0.99 is out of reach.*at most 0.9.*ask for less"),
        ({"sparsity": 0.5, "steps": 0}, "steps=0"),
        ({"sparsity": 0.5, "steps": [5, 5]}, "steps=.*2 segments for 1"),
        ({"sparsity": 0.5, "schedule": "sudden"}, "schedule='sudden'"),
        ({"sparsity": 0.5, "score": "luck"}, "score='luck'"),
        ({"sparsity": 0.5, "strength": 2.0}, "strength=2.0"),
        ({"sparsity": 0.5, "strength": "weak"}, "strength='weak'"),
        ({"sparsity": 0.5, "ramp": 1.5}, "ramp=1.5"),
        ({"sparsity": 0.5, "ramp": "long"}, "ramp='long'"),
        ({"sparsity": 0.5, "refresh": 0.5}, "refresh=0.5"),
        ({"sparsity": 0.5, "exclude": ["*"]}, "nothing is left to compress"),
        ({"sparsity": 0.5, "include": ["convolutions"]}, "include='convolutions' fits none"),
        ({"sparsity": 0.5, "include": "classifier"}, r"include='classifier' .*a list.*\['classifier'\]"),
        ({"sparsity": 0.5, "exclude": "classifier"}, "exclude='classifier' .*a list"),
        ({"sparsity": 0.5, "method": "wish"}, "method='wish'"),
        ({"sparsity": 0.5, "method": "gmp", "distance_budget": 0.1}, "method='gmp' keeps no function"),
        ({"sparsity": 0.5, "method": "gmp", "training": {"distance_budget": 0.1}}, "method='gmp' keeps no function"),
        ({"sparsity": 0.5, "anchors": 1}, "anchors=1"),
    ],
)
def test_arguments_that_cannot_work_are_refused_in_one_line(options, message, base):
    options = dict(options)
    with pytest.raises(InputError, match=message) as error:
        compress(base, options.pop("sparsity"), **options)
    assert "\n" not in str(error.value)
    assert len(ModelGraph.load(base.folder.parent.parent)) == 1


def test_masks_of_another_architecture_are_refused():
    code = get_projection("unstructured").code(prunable_weights(classifier()), 0.5)
    code.check(prunable_weights(classifier()))
    with pytest.raises(InputError, match="layer.1.*missing here.*another architecture"):
        code.check(prunable_weights(classifier(num_hidden_layers=1)))
    with pytest.raises(InputError, match=r"\(16, 16\) here.*another architecture"):
        wider = prunable_weights(classifier(hidden_size=24))
        get_projection("unstructured").code(wider, 0.5).check(prunable_weights(classifier()))
