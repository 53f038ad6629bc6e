"""Names, selections, the ledger and retries, without a Hub."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fip.graph import ModelGraph, Node
from hf_fip.hub.files import is_allowed
from hf_fip.hub.ledger import Ledger, Published
from hf_fip.hub.naming import family_name, looks_like_hub_id, repo_name, tag_name
from hf_fip.hub.plan import readable_size
from hf_fip.hub.retry import AccessError, HubError, RetryPolicy, call
from hf_fip.hub.selection import select_nodes


NODE_IDS = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}", fullmatch=True)


@settings(max_examples=300, deadline=None)
@given(first=NODE_IDS, second=NODE_IDS, title=st.text(min_size=1, max_size=60))
def test_every_node_has_a_valid_name_of_its_own(first: str, second: str, title: str):
    family = family_name(ModelGraph("somewhere/graph"), title)
    names = [repo_name(family, name) for name in (first, second)]
    for name in names:
        validate_repo_id(f"me/{name}")
        assert looks_like_hub_id(f"me/{name}")
    assert (names[0] == names[1]) == (first == second)
    tags = [tag_name(Node(name)) for name in (first, second)]
    assert (tags[0] == tags[1]) == (first == second)
    for tag in tags:
        assert (
            ".." not in tag and not tag.startswith(("-", ".")) and not tag.endswith((".", ".lock")) and tag != "main"
        )


def test_names_follow_from_title_or_folder(tmp_path: Path):
    assert family_name(ModelGraph(tmp_path / "Yelp to IMDB" / "graph"), None) == "yelp-to-imdb"
    assert family_name(ModelGraph(tmp_path / "family"), None) == "family"
    assert family_name(ModelGraph(tmp_path / "graph"), "Démo №1: yelp → imdb!") == "demo-no1-yelp-imdb"
    assert family_name(ModelGraph(tmp_path), "北京") != family_name(ModelGraph(tmp_path), "上海")


OTHER = """
training_args.bin optimizer.pt scheduler.pt rng_state.pth pytorch_model.bin adapter_model.bin optimizer.safetensors
x/config.json ../config.json .env a.py token trainer_state.json
""".split()
WANTED = """
config.json generation_config.json base_config.json model.safetensors model-00001-of-00002.safetensors
model.safetensors.index.json adapter_config.json adapter_model.safetensors tokenizer.json tokenizer_config.json
tokenizer.model vocab.txt merges.txt preprocessor_config.json fip_node.json README.md
""".split()


def test_only_the_files_of_a_model_are_allowed():
    assert [name for name in OTHER if is_allowed(name)] == []
    assert [name for name in WANTED if not is_allowed(name)] == []


def chain(folder: Path, *names: str) -> ModelGraph:
    graph, parent = ModelGraph(folder), None
    for name in names:
        graph.add(Node(name, parent=parent, name=name.split("-")[0]), lambda folder: None)
        parent = name
    return graph


def test_every_nth_counts_from_where_a_branch_begins(tmp_path: Path):
    names = ["base-1", *(f"a-{number}" for number in range(1, 8)), *(f"b-{number}" for number in range(1, 4))]
    graph = chain(tmp_path, *names)
    chosen = {entry.node.id: entry.parent.id if entry.parent else None for entry in select_nodes(graph, "every:3")}
    assert chosen == {"base-1": None, "a-3": "base-1", "a-6": "a-3", "a-7": "a-6", "b-3": "a-7"}


def test_a_node_whose_parent_is_gone_is_a_root(tmp_path: Path):
    graph = chain(tmp_path, "base-1", "a-1", "a-2")
    shutil.rmtree(graph["a-1"].folder)
    chosen = select_nodes(ModelGraph.load(tmp_path), "endpoints")
    assert {entry.node.id: entry.parent for entry in chosen} == {"base-1": None, "a-2": None}


def test_sizes_are_readable():
    assert [readable_size(size) for size in (0, 999, 1000, 34_100_000, 2.8e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "34.1 MB",
        "2.8 TB",
    ]


# ---- The ledger -----------------------------------------------------------------------------------------------------


def test_the_ledger_keeps_families_apart(tmp_path: Path):
    for name in ("one", "two"):
        with Ledger(tmp_path, name).hold() as published:
            published.collection = name
    assert Ledger(tmp_path, "one").read().collection == "one"
    assert Ledger(tmp_path, "three").read() == Published()


def test_what_is_done_before_an_error_is_kept(tmp_path: Path):
    with pytest.raises(RuntimeError), Ledger(tmp_path, "x").hold() as published:
        published.nodes["a"] = {"digest": "1", "commit": "2"}
        raise RuntimeError
    assert Ledger(tmp_path, "x").read().nodes == {"a": {"digest": "1", "commit": "2"}}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"families": 3}', '{"families": {"x": {"nodes": []}}}',
                                  '{"families": {"x": {"nodes": {"a": 1}}}}', '{"families": {"x": {"repos": 3}}}',
                                  "[" * 100_000, "\x00"])  # fmt: skip
def test_a_damaged_ledger_is_an_empty_one(tmp_path: Path, text: str):
    (tmp_path / "hub_ledger.json").write_text(text)
    assert Ledger(tmp_path, "x").read() == Published()
    with Ledger(tmp_path, "x").hold() as published:
        published.collection = "a"
    assert json.loads((tmp_path / "hub_ledger.json").read_text())["families"]["x"]["collection"] == "a"


def test_one_holder_at_a_time(tmp_path: Path):
    def count() -> None:
        for _ in range(20):
            with Ledger(tmp_path, "x").hold() as published:
                published.nodes["n"] = {"count": published.nodes.get("n", {}).get("count", 0) + 1}

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(tmp_path, "x").read().nodes["n"]["count"] == 80


# ---- Retries --------------------------------------------------------------------------------------------------------


def answer(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request(
        "POST", "https://huggingface.co/api/x", headers={"authorization": "Bearer hf_secretsecret"}
    )
    response = httpx2.Response(status, headers=headers, request=request)
    return HfHubHTTPError(f"{status}\n\nwent wrong with hf_secretsecret \x1b[31m(Request ID: abc)", response=response)


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


PASSING = [
    (answer(429), [1.0]),
    (answer(429, RateLimit='"api";r=0;t=55'), [56.0]),
    (answer(429, RateLimit='"api";r=12;t=55'), [1.0]),
    (answer(429, **{"Retry-After": "7"}), [8.0]),
    (answer(503, **{"Retry-After": "3"}), [4.0]),
    (answer(500), [1.0]),
    (httpx2.ConnectError("no"), [1.0]),
    (httpx2.ReadTimeout("late"), [1.0]),
    (httpx2.RemoteProtocolError("cut"), [1.0]),
    (ConnectionResetError("cut"), [1.0]),
    (json.JSONDecodeError("no", "<html>", 0), [1.0]),
    (chained(RuntimeError("Error while uploading 'x' to the Hub."), answer(502)), [1.0]),
]


@pytest.mark.parametrize(("error", "waits"), PASSING, ids=lambda value: str(value)[:30].replace("\n", " "))
def test_what_passes_is_tried_again_after_the_wait_asked_for(error: Exception, waits: list[float]):
    slept: list[float] = []
    answers = [error, "done"]

    def function() -> str:
        result = answers.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert call("do it", function, RetryPolicy(sleep=slept.append)) == "done" and slept == waits


FINAL = [
    (answer(400), HubError, "cannot do it: 400 went wrong"),
    (answer(404), HubError, "cannot do it: 404"),
    (answer(403), AccessError, "the token may not do that"),
    (answer(401), AccessError, "hf auth login"),
    (answer(412), HubError, "412"),
    (chained(ValueError("Invalid metadata in README.md."), answer(400)), HubError, "Invalid metadata"),
    (chained(RuntimeError("Error while uploading"), answer(403)), AccessError, "may not"),
    (ValueError("bad"), HubError, "bad"),
]


@pytest.mark.parametrize(("error", "kind", "message"), FINAL, ids=lambda value: str(value)[:30].replace("\n", " "))
def test_what_does_not_pass_is_one_clear_line_at_once(error: Exception, kind: type, message: str):
    slept: list[float] = []

    def function() -> None:
        raise error

    with pytest.raises(kind, match=message) as raised:
        call("do it", function, RetryPolicy(sleep=slept.append))
    text = str(raised.value)
    assert (
        slept == [] and "\n" not in text and "secret" not in text and "\x1b" not in text and "Request ID" not in text
    )


def test_patience_ends(caplog):
    slept: list[float] = []

    def function() -> None:
        raise answer(503)

    with pytest.raises(HubError, match="503 after 5 tries; run the same again later, it continues") as error:
        call("do it", function, RetryPolicy(attempts=5, longest_wait=3, sleep=slept.append))
    assert slept == [1.0, 2.0, 3, 3] and error.value.unreachable
    slept.clear()
    with pytest.raises(HubError):
        call("do it", function, RetryPolicy(patience=4, sleep=slept.append))
    assert sum(slept) <= 4


def test_programming_errors_are_not_hidden():
    def function() -> None:
        raise TypeError("a mistake")

    with pytest.raises(TypeError):
        call("do it", function, RetryPolicy())
