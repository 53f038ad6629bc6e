"""Streams of tasks: ten digits, two at a time, on a tiny vision transformer."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

from hf_fip import (
    Compression,
    ContinualLearning,
    FIPTrainer,
    InputError,
    ModelGraph,
    Task,
    begin_graph,
    class_splits,
)
from hf_fip.metrics.stream import accuracy_matrix, functional_distance_by_task, stream_summary
from hf_fip.models.embedded import grey_image_processor
from hf_fip.models.heads import grow_head, output_head
from hf_fip.path import Origin
from hf_fip.starting_network import TASK_COLUMN
from hf_fip.task_data import TaskData
from tests.testing_utils import arguments, assert_same_weights, classifier, texts, tokenizer, weights


DIGITS = Task(name="digits", dataset="embedded:digits", max_train=400, max_test=120)
TASKS = class_splits(DIGITS, 2)
QUICK = {"max_steps": 4, "batch_size": 8, "learning_rate": 2e-3, "use_cpu": True, "disable_tqdm": True}
STILL = {**QUICK, "max_steps": 1, "learning_rate": 1e-12}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A graph whose base knows the first two digits, to be copied by each test."""
    folder = tmp_path_factory.mktemp("begun")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
    )
    ViTForImageClassification(config).save_pretrained(folder / "model")
    grey_image_processor(8, 0.3, 0.4).save_pretrained(folder / "model")
    begin_graph(folder / "graph", model=str(folder / "model"), task=TASKS[0], training={**QUICK, "max_steps": 20})
    return folder / "graph"


@pytest.fixture
def graph(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "graph")
    return ModelGraph.load(tmp_path / "graph")


def learn(graph, **changes):
    options = {"stream": TASKS[1:3], "anchors": 20, "path_points": 1, "training": QUICK, **changes}
    return ContinualLearning(**options)(graph.root)


def outputs_on(node, task, split):
    """A node's outputs on the rows of a task, and the output nodes of their labels."""
    data = TaskData(node.load_processor(), None, 0, None)
    rows = data.features(task, node.protocol["label_space"][task.name], split)[:]
    with torch.no_grad():
        return node.load_model().eval()(rows["pixel_values"]).logits, rows["labels"]


def test_a_stream_is_the_composition_of_its_tasks(graph, begun, tmp_path):
    stream = learn(graph, path_points=2)
    shutil.copytree(begun, tmp_path / "other" / "graph")
    other = ModelGraph.load(tmp_path / "other" / "graph")
    first, second = (ContinualLearning(task, anchors=20, path_points=2, training=QUICK) for task in TASKS[1:3])
    composed = (second @ first)(other.root)
    assert [node.id for node in stream] == [node.id for node in composed]
    assert_same_weights(weights(stream.end.load_model()), weights(composed.end.load_model()))
    assert [task.name for task in stream.end.tasks] == ["digits-01", "digits-02", "digits-03"]
    assert len(stream) == 4 and stream.start.id == graph.root.id


def test_finished_tasks_of_a_stream_are_found_again(graph):
    first = learn(graph, stream=TASKS[1:2]).end
    before = os.stat(first.folder / "model.safetensors").st_mtime_ns
    path = learn(ModelGraph.load(graph.folder))
    assert path[0].id == first.id
    assert os.stat(path[0].folder / "model.safetensors").st_mtime_ns == before
    assert len(ModelGraph.load(graph.folder)) == 3


def test_a_stream_has_an_accuracy_matrix_and_a_summary(graph):
    learn(graph)
    names, matrix = accuracy_matrix(ModelGraph.load(graph.folder), "fip")
    assert names == ["digits-01", "digits-02", "digits-03"]
    assert [[value is not None for value in row] for row in matrix] == np.tri(3, dtype=bool).tolist()
    summary = stream_summary(ModelGraph.load(graph.folder), "fip")
    assert summary["average_accuracy"] == pytest.approx(np.mean(matrix[-1]))
    assert summary["seconds"] > 0 and summary["functional_distance"] > 0


@pytest.mark.parametrize(
    ("policy", "scenario", "outputs", "known"),
    [("append", "class-incremental", 4, False), ("per_task", "task-incremental", 4, True)],
)
def test_every_node_names_its_scenario(policy, scenario, outputs, known, graph):
    node = learn(graph, stream=TASKS[1:2], label_space=policy).end
    assert node.protocol["scenario"] == scenario
    assert node.protocol["task_id_at_test"] is known
    assert node.load_model().config.num_labels == outputs


def test_tasks_with_the_same_labels_are_domains(graph):
    again = dataclasses.replace(TASKS[0], name="again")
    node = learn(graph, stream=[again], label_space="shared").end
    assert node.protocol["scenario"] == "domain-incremental" and node.protocol["task_id_at_test"] is False


def test_a_known_task_is_judged_within_its_own_outputs(graph):
    """Accuracy and changed predictions of the record are those of the task's own output nodes."""
    path = learn(graph, label_space="per_task", method="naive", training={**QUICK, "learning_rate": 2e-2})
    node, before = path.end, path[0]
    changed = 0
    for task in TASKS[:3]:
        nodes = node.protocol["label_space"][task.name]
        logits, labels = outputs_on(node, task, "test")
        found = logits[:, nodes].argmax(-1) + nodes[0]
        assert node.metrics[f"{task.name}/accuracy"] == pytest.approx((found == labels).float().mean().item())
        if task is not TASKS[2]:
            old = outputs_on(before, task, "test")[0][:, nodes].argmax(-1) + nodes[0]
            changed += (found != old).sum().item()
    report = node.protocol["budget"]["held_out"][0]
    assert report["value"] * report["inputs"] == pytest.approx(changed)
    free = sum((outputs_on(node, t, "test")[0].argmax(-1) == outputs_on(node, t, "test")[1]).sum() for t in TASKS[:3])
    kept = sum(node.metrics[f"{t.name}/accuracy"] * len(outputs_on(node, t, "test")[1]) for t in TASKS[:3])
    assert kept > free, "without the task the newest digits take the others' place"


def test_a_known_task_trains_no_other_tasks_outputs(graph):
    for policy, kept in (("per_task", True), ("append", False)):
        node = learn(graph, stream=TASKS[1:2], method="naive", label_space=policy, branch=policy).end
        old, new = graph.root.load_model(), node.load_model()
        before, after = (model.get_submodule(output_head(model)).weight[:2] for model in (old, new))
        assert torch.equal(before, after) is kept


@pytest.mark.parametrize("method", ["er", "gem", "ewc", "lwf", "derpp", "joint"])
def test_the_rivals_learn_known_tasks_too(method, graph):
    node = learn(graph, stream=TASKS[1:2], method=method, label_space="per_task", reference="learned").end
    assert node.protocol["scenario"] == "task-incremental"
    assert {"digits-01/accuracy", "digits-02/accuracy"} <= node.metrics.keys()


def test_what_is_made_of_a_node_that_knows_tasks_knows_them_too(graph):
    node = learn(graph, stream=TASKS[1:2], label_space="per_task").end
    small = Compression(0.5, steps=2, anchors=20, training={"batch_size": 8, "use_cpu": True, "disable_tqdm": True})
    made = small(node).end
    assert made.protocol["scenario"] == "task-incremental" and made.protocol["task_id_at_test"] is True
    logits, labels = outputs_on(made, TASKS[0], "test")
    assert made.metrics["digits-01/accuracy"] == pytest.approx(
        (logits[:, :2].argmax(-1) == labels).float().mean().item()
    )


def test_learned_outputs_are_kept_from_when_each_task_was_learned(graph):
    """A path that does not move: nothing is lost since its start, but something since the first task was learned."""
    policy = {"label_space": "per_task"}
    learn(graph, stream=TASKS[1:2], branch="second", training={**QUICK, "learning_rate": 1e-2}, **policy)
    lost = {}
    for reference in ("origin", "learned"):
        operator = ContinualLearning(
            TASKS[2], anchors=20, path_points=1, training=STILL, reference=reference, branch=reference, **policy
        )
        node = operator(ModelGraph.load(graph.folder)["second"]).end
        lost[reference] = functional_distance_by_task(node)
        assert node.functional_distance["parent"] == pytest.approx(0, abs=1e-6)
        assert node.parameters["reference"] == reference
    assert lost["origin"] == {"digits-01": pytest.approx(0, abs=1e-6), "digits-02": pytest.approx(0, abs=1e-6)}
    assert lost["learned"]["digits-01"] > 1e-3
    assert lost["learned"]["digits-02"] == pytest.approx(0, abs=1e-6)


def test_the_reference_predicts_among_the_outputs_it_had(graph):
    """New nodes that win from the start have changed predictions, though the path itself does not move."""
    operator = ContinualLearning(TASKS[1], anchors=20, path_points=1, training=STILL, branch="still")
    trainer = operator._trainer(operator._start(graph.root, graph))
    with torch.no_grad():
        trainer.model.get_submodule(output_head(trainer.model)).bias[2:] += 1e3
    trainer._begin_path(None)
    drift = trainer.preservation.drift(trainer.preservation.anchors)
    assert drift.distance == pytest.approx(0, abs=1e-6) and drift.disagreement == 1


def terms_of(graph, **changes):
    operator = ContinualLearning(TASKS[1], anchors=20, path_points=1, training=STILL, branch="still", **changes)
    trainer = operator._trainer(operator._start(graph.root, graph))
    trainer._begin_path(None)
    return {term.name: term.weight for term in trainer.terms}


@pytest.mark.parametrize(
    ("changes", "distance", "predictions"),
    [
        ({}, 1.0, 1.0),
        ({"reference": "learned", "anchor_prediction_weight": 0.5}, 1.0, 0.5),
        ({"beta": 0.25}, 4.0, 1.0),
        ({"distance_budget": 0.02}, 5.0, 1.0),
        ({"anchor_prediction_weight": 0.0}, 5.0, None),
        ({"label_space": "per_task"}, 5.0, None),
        ({"method": "derpp"}, 2.0, None),
    ],
)
def test_predictions_on_anchors_are_kept_where_new_classes_could_take_them(changes, distance, predictions, graph):
    terms = terms_of(graph, **changes)
    assert terms["functional_distance"] == pytest.approx(distance)
    assert terms.get("loss_anchor_predictions") == predictions


@pytest.mark.parametrize("method", ["der", "derpp", "fdr", "bhattacharyya"])
def test_rivals_that_keep_outputs_do_nothing_else_of_the_paths(method, graph):
    labels = {"loss_anchor_labels"} if method == "derpp" else set()
    assert set(terms_of(graph, method=method)) == {"loss_task", "functional_distance"} | labels


def test_where_no_class_is_new_the_distance_keeps_the_function_alone(graph):
    trainer = FIPTrainer(
        model=classifier(),
        args=arguments(graph.folder.parent / "out", max_steps=1),
        train_dataset=texts(8, seed=1),
        anchor_dataset=texts(8, seed=2, labels=None),
        processing_class=tokenizer(),
    )
    trainer.train()
    assert [term.name for term in trainer.preservation.terms()] == ["functional_distance"]


def test_new_classes_stay_off_the_anchors_without_labels(graph):
    """New nodes that win on the anchors from the start are pushed below the old ones again."""
    changed = {}
    for weight in (0.0, 1.0):
        operator = ContinualLearning(
            TASKS[1], anchors=20, path_points=1, training={**QUICK, "max_steps": 30}, anchor_prediction_weight=weight
        )
        trainer = operator._trainer(operator._start(graph.root, graph))
        with torch.no_grad():
            trainer.model.get_submodule(output_head(trainer.model)).bias[2:] += 3
        trainer._begin_path(None)
        changed[weight] = trainer.preservation
        for step in range(30):
            changed[weight]._restoration_step(torch.optim.SGD(trainer.model.parameters(), lr=0.1), step)
        changed[weight] = trainer.preservation.drift(trainer.preservation.anchors).disagreement
    assert changed[1.0] < 0.5 < changed[0.0] == 1


def third_task(folder, graph, **changes) -> FIPTrainer:
    """A classifier learns a third pair of labels; each anchor keeps its outputs of when its task was learned."""
    nodes = [graph.root, graph["two"]]
    model = grow_head(nodes[-1].load_model(), ["e", "f"], generator=torch.Generator().manual_seed(1))
    anchors = texts(12, seed=2).map(lambda row, index: {"labels": row["labels"] + 2 * (index > 5)}, with_indices=True)
    return FIPTrainer(
        model=model,
        args=arguments(folder, max_steps=6, path_points=2, anchor_label_weight=0.5, distance_budget=0.05, **changes),
        train_dataset=texts(32, seed=1).map(lambda row: {"labels": row["labels"] + 4}),
        anchor_dataset=anchors.add_column(TASK_COLUMN, [0] * 6 + [1] * 6),
        heldout_dataset=texts(7, seed=5).add_column(TASK_COLUMN, [0, 1, 1, 0, 1, 0, 0]),
        processing_class=tokenizer(),
        graph=graph,
        origin=Origin(parent=nodes[-1]),
        task_nodes=[[0, 1], [2, 3], [4, 5]],
        references=nodes,
    )


@pytest.fixture
def two_tasks(tmp_path):
    """A graph with a classifier of two labels, and one of four made from it."""
    first = FIPTrainer(
        model=classifier(),
        args=arguments(tmp_path / "first", max_steps=1, path_points=1),
        train_dataset=texts(32, seed=1),
        processing_class=tokenizer(),
    )
    first.train()
    second = FIPTrainer(
        model=grow_head(first.model, ["c", "d"]),
        args=arguments(tmp_path / "second", max_steps=4, path_points=1, branch="two"),
        train_dataset=texts(32, seed=3).map(lambda row: {"labels": row["labels"] + 2}),
        processing_class=tokenizer(),
        graph=first.graph,
        origin=Origin(parent=first.graph["fip"]),
    )
    second.train()
    return ModelGraph.load(first.graph.folder)


def test_each_anchors_reference_is_its_own_nodes_output(two_tasks, tmp_path):
    trainer = third_task(tmp_path / "third", two_tasks)
    first, last = (node.load_model().eval() for node in (two_tasks.root, two_tasks["two"]))
    trainer._begin_path(None)
    for anchors in (trainer.preservation.anchors, trainer.preservation.heldout):
        inputs = anchors.inputs(range(len(anchors)))
        with torch.no_grad():
            old, newer = (model(**inputs).logits for model in (first, last))
        for i, task in enumerate(anchors.tasks):
            known = old[i] if task == 0 else newer[i]
            # What a node's head did not have yet is compared with its mean output.
            expected = torch.cat([known, known.mean().expand(6 - len(known))])
            torch.testing.assert_close(anchors.all_reference[i], expected, atol=1e-5, rtol=1e-5)


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_path_with_references_equals_an_uninterrupted_one(two_tasks, tmp_path):
    copies = []
    for name in ("whole", "broken"):
        shutil.copytree(two_tasks.folder, tmp_path / name / "graph")
        copies.append(ModelGraph.load(tmp_path / name / "graph"))
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = third_task(tmp_path / "whole", copies[0], **saving)
    whole.train()
    broken = third_task(tmp_path / "broken", copies[1], **saving)
    broken.add_callback(_StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = third_task(tmp_path / "broken", ModelGraph.load(copies[1].folder), **saving)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole.model), weights(resumed.model))
    ends = [trainer.graph["fip"] for trainer in (whole, resumed)]
    assert ends[0].id == ends[1].id
    assert ends[0].protocol["budget"] == ends[1].protocol["budget"]
    assert ends[0].functional_distance == ends[1].functional_distance


def test_options_of_a_method_are_passed_on_and_recorded(graph):
    node = learn(graph, stream=TASKS[1:2], method="ewc", method_options={"weight": 7.0, "passes": 20}).end
    assert node.protocol["ewc"]["weight"] == 7.0
    assert node.parameters["method_options"] == {"weight": 7.0, "passes": 20}


def test_what_the_user_asks_for_goes_before_a_methods_own(graph):
    operator = ContinualLearning(TASKS[1], method="derpp", beta=2.0, anchor_label_weight=0.0)
    assert operator.arguments["beta"] == 2.0 and operator.arguments["anchor_label_weight"] == 0.0
    assert operator.arguments["functional_distance"] == "l2"
    assert ContinualLearning(TASKS[1], method="derpp").arguments["anchor_label_weight"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "dataset and stream: neither"),
        ({"dataset": TASKS[1], "stream": TASKS[2:]}, "dataset and stream: both"),
        ({"stream": []}, r"stream=\[\] has to be a list"),
        ({"stream": "embedded:digits"}, "stream='embedded:digits' has to be a list"),
        ({"stream": [TASKS[1], TASKS[1]]}, "stream: two tasks are named 'digits-02'"),
        ({"dataset": TASKS[1], "label_space": "both"}, "label_space='both'.*append, shared, per_task"),
        ({"dataset": TASKS[1], "anchor_memory": "best"}, "anchor_memory='best'.*reservoir"),
        ({"dataset": TASKS[1], "reference": "first"}, "reference='first'.*origin, previous, learned"),
        ({"dataset": TASKS[1], "method": "ewc", "method_options": {"lambda": 1}}, "no option lambda.*weight, passes"),
        ({"dataset": TASKS[1], "method_options": {"weight": 1}}, "method='fip' has no option weight; it has none"),
        ({"dataset": TASKS[1], "method": "er", "distance_budget": 0.1}, "distance_budget=0.1: method='er'.*fip, der"),
        ({"dataset": TASKS[1], "method": "naive", "beta": 0.1}, "beta=0.1: method='naive'"),
        ({"dataset": TASKS[1], "method": "fdr", "functional_distance": "l2"}, "method='fdr' is defined by 'fdr'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_trained(options, message):
    with pytest.raises(InputError, match=message):
        ContinualLearning(**options)


def test_a_stream_over_a_task_learned_already_is_refused_at_once(graph):
    with pytest.raises(InputError, match="has learned a task 'digits-01' already"):
        learn(graph, stream=[TASKS[1], TASKS[0]])
    assert len(ModelGraph.load(graph.folder)) == 1


def test_classes_are_split_in_the_order_of_the_data_or_of_a_seed():
    assert [task.name for task in TASKS] == [f"digits-0{i}" for i in range(1, 6)]
    assert [task.classes for task in TASKS[:2]] == [["0", "1"], ["2", "3"]]
    assert sum(len(task.load("train")) for task in TASKS) <= 400
    shuffled = class_splits(DIGITS, 5, seed=1)
    assert sorted(name for task in shuffled for name in task.classes) == list("0123456789")
    assert shuffled != class_splits(DIGITS, 5, seed=2)
    named = dataclasses.replace(DIGITS, classes=[3, 7, 1, 0], class_names=["three", "seven", "one", "zero"])
    assert [task.class_names for task in class_splits(named, 2)] == [["three", "seven"], ["one", "zero"]]
    assert [task.label_names() for task in class_splits(named, 2)] == [["three", "seven"], ["one", "zero"]]


@pytest.mark.parametrize("size", [0, 3, 11, 2.5], ids=str)
def test_classes_that_do_not_split_evenly_are_refused(size):
    with pytest.raises(InputError, match="classes_per_task=.*divides the 10 classes"):
        class_splits(DIGITS, size)
