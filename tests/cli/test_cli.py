"""The command line as a user meets it: real processes, exit codes, what is on which stream."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_fip.cli import _is_disk_full
from hf_fip.graph import ModelGraph, Node


ROOT = Path(__file__).parents[2]
TINY = """\
description: as small as a run can be
model: embedded:vit-tiny
tasks:
  low: {dataset: embedded:digits, classes: [0, 1, 2], max_train: 90, max_test: 40}
  high: {dataset: embedded:digits, classes: [3, 4], max_train: 60, max_test: 40}
base: {max_steps: 4, learning_rate: 1e-3, batch_size: 16}
training: {max_steps: 4, learning_rate: 1e-3, batch_size: 16}
anchors: 20
path_points: 2
baselines: [naive]
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """No network, and a cache of its own for the models the package makes."""
    more = {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    kept = {name: value for name, value in os.environ.items() if name != "HF_FIP_DEBUG"}
    return {**kept, **more}


@pytest.fixture
def hf_fip(environment, tmp_path):
    def run(*args: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hf_fip.cli", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**environment, **more})

    return run


@pytest.fixture
def tiny(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def graph_folder(tmp_path_factory) -> Path:
    """A root and one node, made by hand, as `run` would lay them out."""
    folder = tmp_path_factory.mktemp("run")
    graph = ModelGraph(folder / "graph")

    def write(path: Path) -> None:
        save_file({"weight": torch.zeros(2, 2)}, path / "model.safetensors")

    graph.add(Node("base-1", metrics={"low/accuracy": 0.9}, protocol={"tasks": []}), write)
    metrics = {"low/accuracy": float("nan"), "high/accuracy": 0.8}
    graph.add(Node("fip-01-1", parent="base-1", name="fip", operator="ContinualLearning", metrics=metrics), write)
    return folder


def assert_one_line(stderr: str, beginning: str) -> None:
    assert stderr.startswith(beginning), stderr
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr


def test_help_teaches_and_needs_nothing_heavy(hf_fip):
    done = hf_fip("--help")
    assert done.returncode == 0 and done.stderr == ""
    for word in ("run", "show", "report", "demo", "digits", "yelp_imdb", "mnist_fashion", "hf-fip run demo"):
        assert word in done.stdout
    run = hf_fip("run", "--help")
    assert run.returncode == 0
    assert all(word in run.stdout for word in ("--set", "--output_dir", "--json", "examples:", "yelp_imdb"))
    code = "import sys, hf_fip.cli as c; c._parser(); print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


def test_version(hf_fip):
    from hf_fip.version import __version__

    done = hf_fip("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"hf-fip {__version__}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["walk"], "invalid choice: 'walk'"),
        (["run"], "the following arguments are required: RECIPE"),
        (["run", "dmo"], "unknown recipe 'dmo' (did you mean 'demo'?); known: bert_fill_mask, "),
        (["run", "missing.yaml"], "recipe missing.yaml: no such file"),
        (["run", "demo", "--set", "anchor=3"], "--set anchor=3: unknown key 'anchor' (did you mean 'anchors'?)"),
        (["run", "demo", "--set", "anchors"], "--set anchors: expected key=value"),
        (["run", "bad.yaml"], "bad.yaml, line 3: unknown key 'task' (did you mean 'tasks'?)"),
        (["show", "missing"], "missing"),
        (["report", "."], "holds no model graph"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(hf_fip, tmp_path, args, message):
    (tmp_path / "bad.yaml").write_text("model: embedded:cnn\n\ntask: {}\n", encoding="utf-8")
    done = hf_fip(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "hf-fip: error: ")
    assert message in done.stderr


def test_without_a_command_there_is_help(hf_fip):
    done = hf_fip()
    assert (done.returncode, done.stdout) == (2, "")
    assert "hf-fip run demo" in done.stderr


def test_show_prints_the_tree_and_json(hf_fip, graph_folder):
    done = hf_fip("show", graph_folder)
    assert done.returncode == 0
    assert "base-1" in done.stdout and "fip-01-1" in done.stdout and "\x1b" not in done.stdout
    assert hf_fip("show", graph_folder / "graph").stdout == done.stdout
    described = json.loads(hf_fip("show", graph_folder, "--json").stdout, parse_constant=pytest.fail)
    assert described["endpoints"] == {"base": "base-1", "fip": "fip-01-1"}


def test_report_writes_the_page_where_it_is_told(hf_fip, graph_folder, tmp_path):
    done = hf_fip("report", graph_folder, "--output", tmp_path / "page.html", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"report": str(tmp_path / "page.html")}
    assert "fip-01-1" in (tmp_path / "page.html").read_text("utf-8")


def test_a_failure_is_one_line_and_debug_shows_the_traceback(hf_fip, graph_folder):
    done = hf_fip("report", graph_folder, "--output", "/proc/page.html")
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_line(done.stderr, "hf-fip: error: ")
    for debugged in (hf_fip("show", "missing", "--debug"), hf_fip("show", "missing", HF_FIP_DEBUG="1")):
        assert debugged.returncode == 2
        assert "Traceback" in debugged.stderr and debugged.stderr.splitlines()[-1].startswith("hf-fip: error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(environment, graph_folder):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hf_fip.cli", "show", str(graph_folder)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 1
    assert_one_line(done.stderr, "hf-fip: error: no space left on the disk; make room and run the same command again")


def test_a_full_disk_is_recognised_behind_other_errors():
    inner = OSError(28, "No space left on device")
    outer = RuntimeError("PytorchStreamWriter failed")
    outer.__cause__ = inner
    assert _is_disk_full(outer)
    assert _is_disk_full(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not _is_disk_full(OSError(13, "Permission denied"))


def test_output_cut_short_by_its_reader_is_no_traceback(environment, graph_folder):
    command = [sys.executable, "-m", "hf_fip.cli", "show", str(graph_folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_a_run_ends_with_results_and_nothing_else_on_stdout(hf_fip, tiny, tmp_path):
    done = hf_fip("run", tiny, "--output_dir", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    graph = ModelGraph.load(tmp_path / result["graph"])
    assert list(result["endpoints"]) == ["base", "fip", "naive"]
    assert result["endpoints"] == graph.endpoints
    assert set(result["metrics"]) == set(graph.nodes)
    assert set(result["metrics"][result["endpoints"]["fip"]]) >= {"low/accuracy", "high/accuracy"}
    assert [node.name for node in graph] == ["base", "fip", "fip", "naive", "naive"]
    assert (tmp_path / "out/report.html").is_file() and not (tmp_path / "out/checkpoints").exists()
    for stage in ("[1/3] base", "[2/3] fip", "[3/3] naive"):
        assert stage in done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr

    # The same recipe again: nothing is trained again, and the stored recipe stands for the given one.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/graph").rglob("*.safetensors")}
    again = hf_fip("run", "out/recipe.yaml", "--output_dir", "out", "--set", "baselines=[]")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/graph").rglob("*.safetensors")} == before
    rows = [line.split() for line in again.stdout.splitlines()]
    assert ["branch", "low", "high", "mean", "distance"] in rows
    assert [row[0] for row in rows if row and row[0] in result["endpoints"]] == ["base", "naive", "fip"]
    assert "hf-fip show out/graph" in again.stdout

    # Another baseline is added to the same graph.
    more = hf_fip("run", tiny, "--output_dir", "out", "--set", "baselines=[er]", "--json")
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["endpoints"] == {
        **result["endpoints"],
        "er": json.loads(more.stdout)["endpoints"]["er"],
    }

    # Other settings are another experiment.
    other = hf_fip("run", tiny, "--output_dir", "out", "--set", "seed=1", "training.max_steps=5")
    assert (other.returncode, other.stdout) == (2, "")
    assert_one_line(other.stderr, "hf-fip: error: output_dir 'out' holds a run of another recipe: ")
    assert "seed was 0, is 1" in other.stderr and "training.max_steps was 4, is 5" in other.stderr
    assert "--output_dir" in other.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_continued_by_the_same_command(environment, hf_fip, tiny, tmp_path, number):
    arguments = ["run", str(tiny), "--output_dir", "out", "--set", "training.max_steps=100", "report=false"]
    command = [sys.executable, "-m", "hf_fip.cli", *arguments]
    # Shells start background jobs with SIGINT ignored, and children inherit that: these tests may be such a job.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, preexec_fn=heed
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("[2/3]"):
            time.sleep(0.2)
            process.send_signal(number)
            break
    lines += process.stderr.read().splitlines(keepends=True)
    assert process.wait() == 1
    assert lines[-1] == "hf-fip: interrupted; run the same command again to continue\n"
    assert "Traceback" not in "".join(lines)
    base = ModelGraph.load(tmp_path / "out/graph").endpoints["base"]
    if number == signal.SIGINT:
        return  # one continuation is enough
    done = hf_fip(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["endpoints"]["base"] == base


def test_an_interruption_that_a_library_swallows_is_repeated():
    code = """
import os, signal, time
from hf_fip.interrupts import Interrupts
class Library:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
with Interrupts() as interrupts:
    try:
        library = Library()
        del library
        time.sleep(20)
        print("swallowed")
    except KeyboardInterrupt:
        interrupts.stop()
        print("heard")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "heard\n", "")
