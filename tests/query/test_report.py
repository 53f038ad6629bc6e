"""Saved queries in the report."""

import json

import pytest

from hf_fip.query import QueryResult
from hf_fip.query.saved import saved_queries
from hf_fip.report import queries as section
from hf_fip.report import write_report
from tests.report.sample_graph import sample_graph


HOSTILE = "</script><script>window.hacked = 1</script>"


def ranked(graph, dataset, values, metric="perplexity"):
    rows = [
        {"node": node, "branch": "b", "value": value, "samples": 50, "standard_error": 0.1}
        for node, value in sorted(zip(graph.nodes, values, strict=True), key=lambda entry: entry[1])
    ]
    return QueryResult(metric, dataset, rows, 300, 450, protocol={"split": "test", "per": "token"})


@pytest.fixture
def graph(tmp_path):
    made = sample_graph(tmp_path / "graph")
    for name, values in {"wikitext": range(20, 29), "imdb": range(38, 29, -1)}.items():
        result = ranked(made, f"data/{name}", [float(value) for value in values])
        result.save(made.folder / "queries" / result.file_name)
    return made


def test_saved_queries_are_read_back(graph):
    found = saved_queries(graph.folder)
    assert [query.label for query in found] == ["imdb (test)", "wikitext (test)"]
    assert found[1].values == {node: 20.0 + place for place, node in enumerate(graph.nodes)}
    assert found[1].best == graph.root.id and found[1].work == pytest.approx(2 / 3)
    assert type(graph).load(graph.folder).nodes.keys() == graph.nodes.keys()


def test_the_graph_is_coloured_by_the_first_query_and_a_menu_has_the_others(graph):
    figure = section.colored_graph(graph)
    menu = figure.layout.meta["controls"][0]["options"]
    assert [option["label"] for option in menu] == ["imdb (test): perplexity", "wikitext (test): perplexity", "Branch"]
    colors = menu[0]["updates"][0][0]["marker.color"][0]
    assert list(next(trace for trace in figure.data if trace.customdata is not None).marker.color) == list(colors)
    assert len(set(colors)) == len(graph)
    shown = section.queries(graph)
    assert [row[2].text for row in shown.table.rows] == [list(graph.nodes)[-1], graph.root.id]


def test_the_scatter_is_of_inverse_perplexities(graph):
    figure = section.scatter(graph)
    points = {}
    for trace in figure.data:
        for node, x, y in zip(trace.customdata, trace.x, trace.y, strict=True):
            if node is not None:
                points[node] = (x, y)
    expected = {node: (1 / (38.0 - place), 1 / (20.0 + place)) for place, node in enumerate(graph.nodes)}
    assert points.keys() == expected.keys()
    assert all(points[node] == pytest.approx(expected[node]) for node in points)
    assert figure.layout.xaxis.title.text == "1 / perplexity on imdb (test)"


def test_the_page_has_the_sections_and_without_queries_has_not(graph, tmp_path):
    page = write_report(graph).read_text("utf-8")
    assert 'id="queries"' in page and 'id="query-comparison"' in page
    other = sample_graph(tmp_path / "other" / "graph")
    assert 'id="queries"' not in write_report(other).read_text("utf-8")


def test_files_that_are_no_queries_do_no_harm(graph):
    folder = graph.folder / "queries"
    good = json.loads((folder / "imdb-test-perplexity.json").read_text())
    for number, broken in enumerate(
        [
            [],
            {},
            {**good, "ranking": "x"},
            {**good, "ranking": [{"node": 3, "value": 1}]},
            {**good, "ranking": [{"node": "a", "value": "1", "samples": 3}]},
            {**good, "ranking": [{"node": "stranger", "value": 1.0, "samples": 3}]},
            {**good, "forward_examples": "many"},
            {**good, "dataset": HOSTILE, "split": HOSTILE, "metric": "perplexity"},
        ]
    ):
        (folder / f"broken-{number}.json").write_text(json.dumps(broken))
    (folder / "cut.json").write_text('{"ranking": [')
    page = write_report(graph).read_text("utf-8")
    assert HOSTILE not in page and "&lt;/script&gt;" in page


def test_perplexities_that_differ_widely_are_coloured_by_their_inverse(graph):
    result = ranked(graph, "far", [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 9000.0])
    result.save(graph.folder / "queries" / result.file_name)
    menu = section.colored_graph(graph).layout.meta["controls"][0]["options"]
    assert menu[0]["label"] == "far (test): perplexity, inverse"
