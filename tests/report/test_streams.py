"""The report's sections on streams of tasks and on the price of keeping: what they show is what the nodes say."""

from types import MappingProxyType

import pytest

from hf_fip.graph import ModelGraph
from hf_fip.metrics.stream import accuracy_matrix
from hf_fip.report import pareto, streams

from .sample_graph import add, weights
from .test_report import HOSTILE, page_of


MATRIX = {
    "naive": [[0.9], [0.1, 0.8], [0.0, 0.2, 0.7]],
    "fip": [[0.9], [0.85, 0.75], [0.8, 0.7, 0.65]],
    "fip-0.01": [[0.9], [0.9, 0.5], [0.9, 0.5, 0.4]],
    "fip-0.1": [[0.9], [0.88, 0.7], [0.86, 0.68, 0.6]],
}


def stream_graph(folder, matrices=MATRIX, names=("one", "two", "three"), points=1, before=MappingProxyType({})):
    """A root and, for each branch, as many nodes for each further task, which are all alike."""
    graph = ModelGraph(folder)

    def node(name, row, parent, point=points, **fields):
        tasks = [{"name": task, "dataset": "d"} for task in names[: len(row)]]
        made = add(
            graph,
            weights(1, 0.1 * len(row), 2),
            id=f"{name}-{len(row)}" if point == points else f"{name}-{len(row)}-{point}",
            parent=parent,
            name=name,
            step=10 * point if parent else 0,
            metrics={f"{task}/accuracy": value for task, value in zip(names, row, strict=False)},
            parameters={"task": names[len(row) - 1]},
            protocol={
                "tasks": tasks,
                "scenario": "class-incremental",
                "label_space": {task: [0, 1] for task in names},
                "before": {f"{task}/accuracy": value for task, value in before.items() if task == names[len(row) - 1]},
                "budget": {"anchors": {"distance_by_task": [0.01 * (i + 1) for i in range(len(row) - 1)]}},
            },
            **fields,
        )
        return made.id

    root = node("base", next(iter(matrices.values()))[0], None, operator="origin")
    for name, rows in matrices.items():
        parent = root
        for row in rows[1:]:
            for point in range(1, points + 1):
                parent = node(name, row, parent, point, operator="ContinualLearning")
    return graph


@pytest.fixture
def graph(tmp_path):
    return stream_graph(tmp_path / "graph")


def test_the_matrix_of_each_branch_is_that_of_its_nodes(graph):
    figure = streams.matrices(graph)
    (control,) = figure.layout.meta["controls"]
    assert [option["label"] for option in control["options"]] == ["fip", "fip-0.01", "fip-0.1", "naive"]
    for option in control["options"]:
        ((update, traces),) = option["updates"]
        names, matrix = accuracy_matrix(graph, option["label"])
        assert traces == [0] and update["x"] == update["y"] == [names]
        assert update["z"] == [matrix]
        rows = MATRIX[option["label"]]
        assert matrix == [[*row, *[None] * (3 - len(row))] for row in rows]
    shown = figure.data[0]
    assert shown.customdata[2][0] == "fip-3"
    assert "functional distance on its anchors: 0.01" in shown.hovertext[2][0]


def test_the_summary_names_the_scenario_and_what_was_forgotten(graph):
    section = streams.streams(graph)
    rows = {row[0].text: dict(zip(section.table.columns, row, strict=True)) for row in section.table.rows}
    assert rows["naive"]["forgetting"].sort == pytest.approx(((0.9 - 0.0) + (0.8 - 0.2)) / 2)
    assert rows["naive"]["backward transfer"].text == "-75.0%"
    assert rows["fip"]["average accuracy"].sort == pytest.approx((0.8 + 0.7 + 0.65) / 3)
    assert rows["fip"]["scenario"].text == "class-incremental"
    assert rows["fip"]["functional distance"].sort == pytest.approx(0.015)
    assert section.table.row_ids == ["fip-3", "fip-0.01-3", "fip-0.1-3", "naive-3"]


def test_every_recorded_point_is_on_the_heat_map_along_the_path(graph, tmp_path):
    assert streams.along_the_path(graph) is None, "with one point a task the matrix says it all"
    graph = stream_graph(tmp_path / "longer", {name: MATRIX[name] for name in ("naive", "fip")}, points=2)
    figure = streams.scores(graph)
    (control,) = figure.layout.meta["controls"]
    for option in control["options"]:
        ((update, _),) = option["updates"]
        rows = MATRIX[option["label"]]
        expected = [rows[0], rows[1], rows[1], rows[2], rows[2]]
        assert update["z"] == [[[row[task] if task < len(row) else None for row in expected] for task in range(3)]]
        assert update["x"] == [["0", "10", "20", "30", "40"]] and update["y"] == [["one", "two", "three"]]
    assert list(figure.data[0].customdata[0]) == ["base-1", "fip-2-1", "fip-2", "fip-3-1", "fip-3"]
    assert "stream-scores" in page_of(graph).values("id", "section")


def test_forward_transfer_is_told_and_explained_where_it_was_measured(graph, tmp_path):
    assert "forward transfer" not in streams.streams(graph).table.columns
    measured = {"two": 0.7, "three": 0.5}
    section = streams.streams(stream_graph(tmp_path / "shared", {"fip": MATRIX["fip"]}, before=measured))
    row = dict(zip(section.table.columns, section.table.rows[0], strict=True))
    assert row["forward transfer"].sort == pytest.approx((0.7 + 0.5) / 2 - 0.5)
    assert any(note.startswith("Forward transfer") for note in section.notes)


def test_two_tasks_are_no_stream(tmp_path):
    pair = {name: rows[:2] for name, rows in MATRIX.items()}
    graph = stream_graph(tmp_path / "graph", pair)
    assert streams.streams(graph) is None and streams.matrices(ModelGraph(tmp_path / "empty")) is None
    assert pareto.price(graph) is not None


def test_a_sweep_is_a_curve_in_the_order_of_its_values_and_a_rival_a_point(graph):
    curves = {trace.name: trace for trace in pareto.pareto(graph).data}
    assert set(curves) == {"naive", "fip", "fip, sweep"}, "the branch without a value is not on the curve"
    assert list(curves["fip, sweep"].customdata) == ["fip-0.01-3", "fip-0.1-3"]
    assert list(curves["fip, sweep"].x) == pytest.approx([0.4, 0.6])
    assert list(curves["fip, sweep"].y) == pytest.approx([0.7, 0.77])
    assert (curves["naive"].x[0], curves["naive"].y[0]) == pytest.approx((0.7, 0.1))
    rows = {row[0].text: row for row in pareto.price(graph).table.rows}
    assert [cell.sort for cell in rows["fip"][1:4]] == pytest.approx([0.75, 0.65, 0.7])


def test_branches_that_end_elsewhere_or_unmeasured_are_no_comparison(tmp_path):
    short = {**MATRIX, "naive": MATRIX["naive"][:2]}
    graph = stream_graph(tmp_path / "graph", short)
    assert "naive" not in {end.branch.name for end in pareto.ends_of_branches(graph)}
    alone = stream_graph(tmp_path / "alone", {"fip": MATRIX["fip"]})
    assert pareto.price(alone) is None


def test_names_from_strangers_are_text(tmp_path):
    graph = stream_graph(tmp_path / "graph", names=(HOSTILE.replace("/", "|"), "two", "three"), points=2)
    for figure in (streams.matrices(graph), streams.scores(graph), pareto.pareto(graph)):
        assert "<script" not in figure.to_json().replace("\\u003c", "<")
