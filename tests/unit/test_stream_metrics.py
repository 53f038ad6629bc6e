"""Accuracy matrices and summaries, read from the nodes of a branch."""

import pytest

from hf_fip import Node
from hf_fip.graph.family import Family
from hf_fip.metrics.stream import accuracy_matrix, functional_distance_by_task, learned_at, stream_summary


def node(name, parent, tasks, accuracies, *, branch="fip", seconds=1.0, made=None, distances=(), before=None):
    return Node(
        id=name,
        parent=parent,
        name=branch,
        operator="ContinualLearning",
        parameters={"task": made or tasks[-1]},
        metrics={f"{task}/accuracy": value for task, value in zip(tasks, accuracies, strict=True)},
        protocol={
            "tasks": [{"name": task, "dataset": "embedded:digits"} for task in tasks],
            "label_space": {task: [0, 1, 2, 3] for task in tasks},
            "before": before or {},
            "budget": {"anchors": {"distance_by_task": list(distances)}},
        },
        extra={"cost": {"seconds": seconds, "peak_memory_gib": seconds / 10}},
    )


@pytest.fixture
def family():
    """Three tasks: two points each on the way to the second and the third, and a compressed end."""
    nodes = [
        node("base", None, ["a"], [0.9], branch="base"),
        node("b1", "base", ["a", "b"], [0.85, 0.3], seconds=1.0),
        node("b2", "b1", ["a", "b"], [0.8, 0.7], seconds=2.0),
        node("c1", "b2", ["a", "b", "c"], [0.7, 0.65, 0.5], seconds=1.5),
        node("c2", "c1", ["a", "b", "c"], [0.6, 0.5, 0.8], seconds=4.0, distances=[0.3, 0.1]),
        node("small", "c2", ["a", "b", "c"], [0.5, 0.5, 0.5], branch="compressed", made="half of the weights"),
    ]
    graph = Family("memory")
    graph._set_nodes({entry.id: entry for entry in nodes})
    return graph


def test_the_matrix_has_a_row_for_the_end_of_each_tasks_path(family):
    names, matrix = accuracy_matrix(family, "fip")
    assert names == ["a", "b", "c"]
    assert matrix == [[0.9, None, None], [0.8, 0.7, None], [0.6, 0.5, 0.8]]


def test_a_task_was_learned_before_its_network_was_compressed(family):
    assert [entry.id for entry in learned_at(family.lineage("small"))] == ["base", "b2", "c2"]


def test_the_summary_is_that_of_the_matrix_and_of_the_paths(family):
    summary = stream_summary(family, "fip")
    assert summary["average_accuracy"] == pytest.approx((0.6 + 0.5 + 0.8) / 3)
    assert summary["backward_transfer"] == pytest.approx((-0.3 - 0.2) / 2)
    assert summary["forgetting"] == pytest.approx((0.3 + 0.2) / 2)
    assert summary["functional_distance"] == pytest.approx(0.2)
    assert summary["seconds"] == pytest.approx(1.0 + 2.0 + 4.0), "base, b and c; not the points on the way"
    assert summary["peak_memory_gib"] == pytest.approx(0.4)


def test_what_the_next_task_was_before_it_was_learned_is_forward_transfer(family):
    assert "forward_transfer" not in stream_summary(family, "fip"), "not measured"
    nodes = [
        node("base", None, ["a"], [0.9], branch="base"),
        node("b", "base", ["a", "b"], [0.8, 0.7], before={"b/accuracy": 0.6}),
        node("c", "b", ["a", "b", "c"], [0.7, 0.6, 0.5], before={"c/accuracy": 0.2}),
    ]
    graph = Family("memory")
    graph._set_nodes({entry.id: entry for entry in nodes})
    assert accuracy_matrix(graph, "fip")[1] == [[0.9, 0.6, None], [0.8, 0.7, 0.2], [0.7, 0.6, 0.5]]
    assert stream_summary(graph, "fip")["forward_transfer"] == pytest.approx(((0.6 - 0.25) + (0.2 - 0.25)) / 2)


def test_distances_are_named_by_task(family):
    assert functional_distance_by_task(family["c2"]) == {"a": 0.3, "b": 0.1}
    assert functional_distance_by_task(family["base"]) == {}


def test_what_was_not_measured_is_left_out():
    graph = Family("memory")
    graph._set_nodes({"base": Node(id="base", protocol={"tasks": [{"name": "a", "dataset": "embedded:digits"}]})})
    assert accuracy_matrix(graph, "base") == (["a"], [[None]])
    assert stream_summary(graph, "base") == {}
