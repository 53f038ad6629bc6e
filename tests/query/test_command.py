"""`hf-fip query` from the outside."""

import json
import os
import subprocess
import sys

import pytest
from datasets import load_dataset

from hf_fip.query import query
from tests.testing_utils import ROOT

from .families import add, family, model_of, sentences, words


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "graph"
    made = family(folder, lambda seed: model_of("fill-mask"), 3, task="fill-mask", processor=words())
    add(made, "other", model_of("sequence-classification"), words(), parent="fip-0", name="other\x1b[2J")
    lines = ["body,stars", *(f"{text},{place}" for place, text in enumerate(sentences(30)))]
    (folder.parent / "reviews.csv").write_text("\n".join(lines), encoding="utf-8")
    return made


def hf_fip(graph, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "hf_fip", "query", *map(str, arguments)]
    folder = graph.folder.parent
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=600)


def test_json_is_the_result_and_is_saved_for_the_report(graph):
    done = hf_fip(graph, ".", "--dataset", "reviews.csv", "--text_column", "body", "--top", 2, "--seed", 5, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    printed = json.loads(done.stdout, parse_constant=pytest.fail)
    rows = load_dataset("csv", data_files=str(graph.folder.parent / "reviews.csv"), split="train")
    expected = query(graph, rows, text_column="body", seed=5)
    assert printed["metric"] == "perplexity" and printed["dataset"] == "reviews.csv" and printed["split"] == "train"
    assert [row["node"] for row in printed["ranking"]] == [row["node"] for row in expected.ranking][:2]
    for shown, row in zip(printed["ranking"], expected.ranking, strict=False):
        assert shown["value"] == pytest.approx(row["value"], rel=1e-9)
        assert shown["standard_error"] == pytest.approx(row["standard_error"], rel=1e-9) and shown["samples"] == 30
    assert printed["forward_examples"] == printed["full_forward_examples"] == 90
    assert [row["node"] for row in printed["unscored"]] == ["other"]
    saved = json.loads((graph.folder / "queries" / "reviews.csv-train-perplexity.json").read_text())
    assert len(saved["ranking"]) == 3 and saved["format_version"] == 1


def test_a_table_for_people_with_the_line_that_loads_the_best(graph):
    done = hf_fip(graph, "graph", "--dataset", "reviews.csv", "--text-column", "body", "--strategy", "racing")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("reviews.csv (train): 30 examples, 3 nodes scored, ")
    best = next(line.split()[1] for line in lines if line.strip().startswith("1 "))
    assert f"ModelGraph.load('graph')['{best}'].load_model()" in done.stdout
    assert "  other: is a sequence-classification model, and the data have no labels" in done.stdout
    assert "\x1b" not in done.stdout
    assert type(graph)(graph.folder).nodes.keys() == graph.nodes.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --dataset"),
        (["--dataset", "reviews.csv", "--text_column", "text"], "text_column='text' does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(graph, arguments, message):
    done = hf_fip(graph, ".", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_output_names_the_file(graph, tmp_path):
    done = hf_fip(graph, ".", "--dataset", "reviews.csv", "--output", tmp_path / "a" / "b.json", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a" / "b.json").read_text())["metric"] == "perplexity"
