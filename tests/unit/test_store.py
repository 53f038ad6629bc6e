"""What the graph folder promises: whatever happens to process or disk, no recorded node is lost or half there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_fip.errors import InputError
from hf_fip.graph import ModelGraph, Node
from hf_fip.graph.store import sweep


# A fork starts in milliseconds, so that many kills fit into a test.
processes = multiprocessing.get_context("fork")
WEIGHTS = 1 << 19


def weights_of(node_id: str) -> bytes:
    return hashlib.sha256(node_id.encode()).digest() * (WEIGHTS // 32)


def write_node(folder: Path) -> None:
    """Weights that depend on the node, written slowly enough to be interrupted, and a file all nodes share."""
    node_id = folder.name.removeprefix(".tmp-").rsplit("-", 1)[0]
    data = weights_of(node_id)
    with open(folder / "model.safetensors", "wb", buffering=0) as file:
        for start in range(0, WEIGHTS, WEIGHTS // 16):
            file.write(data[start : start + WEIGHTS // 16])
    (folder / "config.json").write_text('{"model_type": "bert"}')


def assert_whole(folder: Path, *recorded: str) -> ModelGraph:
    """Every recorded node is there with all its files, the index lists exactly the nodes, nothing else lies about."""
    graph = ModelGraph.load(folder)
    assert set(recorded) <= set(graph.nodes)
    for node in graph:
        assert (node.folder / "model.safetensors").read_bytes() == weights_of(node.id)
        assert json.loads((node.folder / "config.json").read_text()) == {"model_type": "bert"}
    index = json.loads((folder / "graph.json").read_text())
    assert index["format_version"] == 1
    assert index["nodes"] == [node.to_dict() for node in graph]
    assert sorted(os.listdir(folder / "nodes")) == sorted(graph.nodes)
    assert {name for name in os.listdir(folder) if name != ".lock"} == {"graph.json", "nodes"}
    return graph


@pytest.fixture
def graph(tmp_path: Path) -> ModelGraph:
    graph = ModelGraph(tmp_path / "graph")
    graph.add(Node("root"), write_node)
    return graph


def run(target, *args) -> processes.Process:
    process = processes.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def add_many(folder: Path, prefix: str, count: int, done=None) -> None:
    graph = ModelGraph(folder)
    for number in range(count):
        node = graph.add(Node(f"{prefix}{number}", parent="root", name=prefix, step=number), write_node)
        if done is not None:
            os.write(done, f"{node.id}\n".encode())


def test_nothing_is_lost_when_the_writer_is_killed_at_random_moments(graph):
    moments = random.Random(0)
    recorded = ["root"]
    for attempt in range(15):
        reader, writer = os.pipe()
        process = run(add_many, graph.folder, f"attempt{attempt}-", 1000, writer)
        os.close(writer)
        time.sleep(moments.uniform(0.01, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with open(reader) as lines:
            recorded += lines.read().split()
        assert_whole(graph.folder, *recorded)
    assert len(recorded) > 1
    graph.add(Node("after", parent=recorded[-1]), write_node)
    assert_whole(graph.folder, *recorded, "after")


@pytest.mark.parametrize(
    ("moment", "survives"),
    [("while files are written", False), ("before the rename", False), ("after the rename", True)],
)
def test_a_node_is_whole_or_absent_when_the_writer_is_killed(graph, moment, survives):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die(folder):
        write_node(folder)
        die()

    def die_at_the_index(source, target, replace=os.replace):
        die() if target.name == "graph.json" else replace(source, target)

    def writer():
        if moment == "before the rename":
            os.rename = die
        if moment == "after the rename":
            os.replace = die_at_the_index
        write_files = write_and_die if moment == "while files are written" else write_node
        ModelGraph(graph.folder).add(Node("victim", parent="root"), write_files)

    process = run(writer)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(name.startswith(".tmp-") for name in os.listdir(graph.folder))
    assert ("victim" in assert_whole(graph.folder)) == survives
    graph.add(Node("victim", parent="root"), write_node)
    assert_whole(graph.folder, "root", "victim")


def test_two_processes_add_to_one_graph(graph):
    writers = [run(add_many, graph.folder, prefix, 12) for prefix in ("left", "right")]
    for process in writers:
        process.join()
        assert process.exitcode == 0
    expected = {f"{prefix}{number}" for prefix in ("left", "right") for number in range(12)}
    assert set(assert_whole(graph.folder).nodes) == expected | {"root"}
    graph.refresh()
    assert set(graph.nodes) == expected | {"root"}


def test_two_processes_add_the_same_node(graph):
    writers = [run(add_many, graph.folder, "same", 8) for _ in range(2)]
    for process in writers:
        process.join()
        assert process.exitcode == 0
    assert len(assert_whole(graph.folder)) == 9


def test_of_two_roots_added_at_once_one_wins(tmp_path):
    def add_root(name):
        try:
            ModelGraph(tmp_path / "graph").add(Node(name), write_node)
        except InputError as error:
            assert "holds another graph" in str(error)
            os._exit(3)

    writers = [run(add_root, name) for name in ("one", "two")]
    for process in writers:
        process.join()
    assert sorted(process.exitcode for process in writers) == [0, 3]
    assert len(assert_whole(tmp_path / "graph")) == 1


def test_a_reader_leaves_the_work_of_a_living_writer_alone(graph):
    started, go_on = processes.Event(), processes.Event()

    def write_and_wait(folder):
        started.set()
        go_on.wait()
        write_node(folder)

    process = run(lambda: ModelGraph(graph.folder).add(Node("slow", parent="root"), write_and_wait))
    started.wait()
    assert list(ModelGraph.load(graph.folder).nodes) == ["root"]
    go_on.set()
    process.join()
    assert process.exitcode == 0
    assert_whole(graph.folder, "root", "slow")


def test_leftovers_older_than_a_day_are_swept(graph):
    started = processes.Event()

    def write_forever(folder):
        os.utime(folder, (0, 0))
        started.set()
        time.sleep(600)

    process = run(lambda: ModelGraph(graph.folder).add(Node("hung", parent="root"), write_forever))
    started.wait()
    sweep(graph.folder)
    assert not list(graph.folder.glob(".tmp-*"))
    process.kill()
    process.join()


@pytest.mark.parametrize("interruption", [RuntimeError("no such layer"), KeyboardInterrupt()])
def test_an_error_or_ctrl_c_while_writing_leaves_nothing_behind(graph, interruption):
    def fail(folder):
        write_node(folder)
        raise interruption

    with pytest.raises(type(interruption)):
        graph.add(Node("failed", parent="root"), fail)
    assert not list(graph.folder.glob(".tmp-*"))
    assert list(assert_whole(graph.folder).nodes) == ["root"]


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def write_too_much(folder: Path) -> None:
    write_node(folder)
    save_file({"weight": torch.zeros(1000, 1000)}, folder / "extra.safetensors")


def test_a_full_disk_gives_one_clear_error_and_the_graph_stays(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        graph = ModelGraph(disk / "graph")
        graph.add(Node("root"), write_node)
        with pytest.raises(OSError) as caught:
            graph.add(Node("large", parent="root"), write_too_much)
        message = str(caught.value)
        assert not list(graph.folder.glob(".tmp-*"))
        assert "large" in message and "No space left on device" in message and "\n" not in message
        assert list(assert_whole(disk / "graph").nodes) == ["root"]
        graph.add(Node("small", parent="root"), write_node)
        assert list(assert_whole(disk / "graph").nodes) == ["root", "small"]


def test_a_disk_that_fills_up_node_by_node_keeps_what_was_recorded(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        graph = ModelGraph(disk / "graph")
        graph.add(Node("root"), write_node)
        with pytest.raises(OSError, match="No space left"):
            for number in range(100):
                graph.add(Node(f"node{number}", parent="root"), write_node)
        assert 2 < len(assert_whole(disk / "graph", *graph.nodes)) < 10


def test_no_room_for_the_index_loses_no_node(graph):
    """The node's files fit, the index does not: as when the disk fills up in between."""

    def writer():
        graph = ModelGraph(graph_folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (WEIGHTS, WEIGHTS))
        try:
            graph.add(Node("second", parent="root"), write_node)
        except OSError as error:
            assert "File too large" in str(error)
            os._exit(3)

    def write_large_description(folder):
        write_node(folder)
        return {"protocol": {"classes": ["x" * (WEIGHTS - 1000)]}}

    graph_folder = graph.folder
    graph.add(Node("first", parent="root"), write_large_description)
    (graph_folder / "graph.json").unlink()
    process = run(writer)
    process.join()
    assert process.exitcode == 3
    assert not list(graph_folder.glob(".tmp-*"))
    assert_whole(graph_folder, "root", "first", "second")


@pytest.mark.parametrize(
    "damage",
    [
        None,
        b"",
        b'{"format_version": 1, "nodes": [',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"format_version": 1, "nodes": [{}, 7], "edges": []}',
        b'{"format_version": 1, "nodes": [{"id": "../../etc"}, {"id": "gone"}], "edges": []}',
        b'{"format_version": 1, "nodes": [{"id": "b"}, {"id": "a"}, {"id": "root"}], "edges": []}',
        b"[" * 100_000,
    ],
)
def test_the_index_is_made_again_from_the_nodes(graph, damage):
    graph.add(Node("a", parent="root", metrics={"yelp/accuracy": 0.9}), write_node)
    graph.add(Node("b", parent="a"), write_node)
    before = (graph.folder / "graph.json").read_bytes()
    if damage is None:
        (graph.folder / "graph.json").unlink()
    else:
        (graph.folder / "graph.json").write_bytes(damage)
    assert list(assert_whole(graph.folder)) == list(graph)
    assert (graph.folder / "graph.json").read_bytes() == before


def test_a_node_folder_removed_by_hand_leaves_the_others(graph):
    graph.add(Node("a", parent="root"), write_node)
    graph.add(Node("b", parent="a"), write_node)
    for path in graph["a"].folder.iterdir():
        path.unlink()
    graph["a"].folder.rmdir()
    found = assert_whole(graph.folder, "root", "b")
    assert "a" not in found and found.root.id == "root"
    assert [node.id for node in found.lineage("b")] == ["b"] and found.edges == []


def test_a_node_is_written_once(graph):
    stored = graph.add(Node("a", parent="root", step=1), write_node)
    stamps = {path: path.stat().st_mtime_ns for path in graph.folder.rglob("*")}

    def never(_):
        raise AssertionError("a recorded node was written again")

    assert graph.add(Node("a", parent="root", step=2), never) == stored
    assert ModelGraph(graph.folder).add(Node("a", parent="root", step=2), never).step == 1
    assert {path: path.stat().st_mtime_ns for path in graph.folder.rglob("*")} == stamps


def test_equal_files_are_stored_once_and_others_are_not_shared(graph):
    tokenizer = b'{"vocab": {}}' * 1000
    large = random.Random(0).randbytes(3 << 20)
    # One byte, away from the beginning and the end of every block.
    changed = large[:1_234_567] + bytes([large[1_234_567] ^ 1]) + large[1_234_568:]

    def write(body):
        def write_files(folder):
            write_node(folder)
            (folder / "onnx").mkdir()
            (folder / "onnx" / "tokenizer.json").write_bytes(tokenizer)
            (folder / "frozen.bin").write_bytes(large)
            (folder / "body.bin").write_bytes(body)
            (folder / "README.md").write_text("# Card")

        return write_files

    a = graph.add(Node("a", parent="root"), write(large)).folder
    b = graph.add(Node("b", parent="a"), write(changed)).folder
    for name in ("onnx/tokenizer.json", "config.json", "frozen.bin"):
        assert os.path.samefile(a / name, b / name)
    for name in ("model.safetensors", "body.bin", "README.md", "fip_node.json"):
        assert not os.path.samefile(a / name, b / name)
    assert (a / "body.bin").read_bytes() == large and (b / "body.bin").read_bytes() == changed
    assert_whole(graph.folder, "root", "a", "b")


def test_nothing_is_written_before_the_first_add(tmp_path):
    assert len(ModelGraph(tmp_path / "graph")) == 0
    assert list(tmp_path.iterdir()) == []


def test_opening_a_graph_writes_nothing(graph):
    os.remove(graph.folder / ".lock")
    stamps = {path: path.stat().st_mtime_ns for path in graph.folder.rglob("*")}
    ModelGraph.load(graph.folder)
    assert {path: path.stat().st_mtime_ns for path in graph.folder.rglob("*")} == stamps


def test_loading_reads_no_weights(tmp_path):
    """300 nodes whose weights cannot be opened."""
    for number in range(300):
        node = Node(f"n{number}", parent=f"n{number - 1}" if number else None, step=number)
        folder = tmp_path / "nodes" / node.id
        folder.mkdir(parents=True)
        (folder / "fip_node.json").write_text(node.to_json())
        (folder / "model.safetensors").symlink_to("/nonexistent/weights")
    assert [node.step for node in ModelGraph.load(tmp_path)] == list(range(300))
