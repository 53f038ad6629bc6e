"""Families read back from the Hub: the same graph, files on demand, and nothing that strangers write does harm."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_fip.errors import InputError
from hf_fip.graph import ModelGraph, describe, render_tree
from hf_fip.hub import Hub, HubError, HubGraph, RetryPolicy, pull
from hf_fip.hub.remote import parse_source
from tests.testing_utils import assert_same_weights, classifier

from .families import add_model, small_family
from .server import HubServer


WEIGHTS = r"GET .*safetensors"


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """The folder of a graph: base, fip-1, fip-2, naive-1, naive-2."""
    return small_family(tmp_path_factory.mktemp("family") / "graph", 2, ("fip", "naive")).folder


@pytest.fixture
def graph(family: Path, tmp_path: Path) -> ModelGraph:
    return ModelGraph.load(shutil.copytree(family, tmp_path / "graph"))


def assert_same_graph(found: ModelGraph, graph: ModelGraph) -> None:
    assert list(found) == list(graph)
    assert [vars(edge) for edge in found.edges] == [vars(edge) for edge in graph.edges]
    assert found.endpoints == graph.endpoints and found.root.id == graph.root.id


@pytest.mark.parametrize("layout", ["repo", "revision"])
def test_the_graph_is_the_one_that_was_pushed(hub: HubServer, graph: ModelGraph, layout: str):
    result = graph.push_to_hub("tester", layout=layout, private=True)
    found = ModelGraph.from_hub(result["collection"])
    assert_same_graph(found, graph)
    assert found.unreadable == {} and hub.count(WEIGHTS) == 0
    for node in found:
        assert_same_weights(node.load_model().state_dict(), graph[node.id].load_model().state_dict())
    assert found["fip"].load_processor().get_vocab() == graph["fip"].load_processor().get_vocab()
    assert hub.count(WEIGHTS) == len(graph)


def test_files_are_downloaded_once_from_any_number_of_threads(hub: HubServer, graph: ModelGraph):
    node = ModelGraph.from_hub(graph.push_to_hub("tester")["collection"])["fip"]
    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: node.files(), range(16)))
    assert len(folders) == 1 and hub.count(WEIGHTS) == 1
    names = {path.name for path in folders.pop().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "fip_node.json"} <= names


def test_a_warm_cache_asks_for_no_file_again(hub: HubServer, graph: ModelGraph):
    slug = graph.push_to_hub("tester")["collection"]
    for node in ModelGraph.from_hub(slug):
        node.files()
    number = len(hub.requests)
    for node in ModelGraph.from_hub(slug):
        node.files()
    assert len(hub.requests) - number == 1 + len(graph)


def test_any_name_of_the_family_will_do(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester")
    repo = result["repos"]["fip-1"]
    for name in (repo, result["url"], f"{hub.endpoint}/{repo}", f"{hub.endpoint}/{repo}/tree/main"):
        assert_same_graph(ModelGraph.from_hub(name), graph)
    alone = ModelGraph.from_hub(repo, revision="main")
    assert list(alone.nodes) == ["fip-1"]


def test_a_repository_of_revisions_without_its_collection_is_its_path(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester", layout="revision")
    hub.api.delete_collection(result["collection"])
    found = ModelGraph.from_hub(result["repos"]["fip-1"].split("@")[0])
    assert list(found.nodes) == ["fip-1", "fip-2"] and found["fip-2"].parent == "fip-1"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("me/x", "me/x"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("https://huggingface.co/collections/me/x--y-64f9a55bb3115b4f513ec026", "me/x--y-64f9a55bb3115b4f513ec026"),
        ("huggingface.co/me/x/tree/main", "me/x"),
        ("https://hf.co/me/x?a=b#c", "me/x"),
    ],
)
def test_sources_are_understood(source: str, expected: str):
    assert parse_source(source, "https://huggingface.co") == expected


@pytest.mark.parametrize(
    "source", ["", "../x", "a/b/c", "/etc/passwd", "https://evil.example/me/x", "me/..", "~/x", 3]
)
def test_other_sources_are_refused(source: Any):
    with pytest.raises(InputError):
        parse_source(source, "https://huggingface.co")


def test_what_is_not_there_is_said_in_one_line(hub: HubServer, graph: ModelGraph):
    slug = graph.push_to_hub("tester", private=True)["collection"]
    for source, token in (("tester/nothing", None), (slug, False), ("tester/x-64f9a55bb3115b4f513ec026", None)):
        with pytest.raises(InputError, match="neither a Collection nor a model") as error:
            ModelGraph.from_hub(source, token=token)
        assert "\n" not in str(error.value)


def test_a_hub_that_is_down_is_not_an_empty_family(hub: HubServer, graph: ModelGraph):
    slug = graph.push_to_hub("tester")["collection"]
    policy = RetryPolicy(attempts=2, first_wait=0)
    hub.fault("GET /api/models/.*fip-1", status=503, times=None)
    with pytest.raises(HubError, match="503 after 2 tries"):
        HubGraph.open(slug, Hub(policy=policy))


# ---- Pull ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["repo", "revision"])
def test_a_pulled_graph_is_complete(hub: HubServer, graph: ModelGraph, tmp_path: Path, layout: str):
    slug = graph.push_to_hub("tester", layout=layout)["collection"]
    assert_same_graph(pull(slug, tmp_path / "pulled"), graph)
    shutil.rmtree(tmp_path / "hub-cache")
    number = len(hub.requests)
    pulled = ModelGraph.load(tmp_path / "pulled")
    assert_same_graph(pulled, graph)
    for node in pulled:
        assert_same_weights(node.load_model().state_dict(), graph[node.id].load_model().state_dict())
    assert len(hub.requests) == number


def test_a_pull_that_was_cut_continues(hub: HubServer, graph: ModelGraph, tmp_path: Path):
    slug = graph.push_to_hub("tester")["collection"]
    remote = HubGraph.open(slug, Hub(policy=RetryPolicy(attempts=1)))
    hub.fault("GET .*fip-2/resolve/.*/model.safetensors", status=404, times=None)
    with pytest.raises(HubError):
        pull(remote, tmp_path / "pulled")
    assert list(ModelGraph.load(tmp_path / "pulled").nodes) == ["base", "fip-1"]
    hub.clear_faults()
    weights = hub.count(WEIGHTS)
    assert_same_graph(pull(slug, tmp_path / "pulled"), graph)
    assert hub.count(WEIGHTS) - weights == 3


def test_a_pulled_family_can_be_pushed_and_grown(hub: HubServer, graph: ModelGraph, tmp_path: Path):
    first = graph.push_to_hub("tester", collection="demo family")
    before = hub.state()
    pulled = pull(first["collection"], tmp_path / "pulled")
    assert pulled.push_to_hub("tester", collection="demo family")["pushed"] == []
    assert hub.state() == before
    add_model(pulled, classifier(seed=4), id="fip-3", parent="fip-2", name="fip", step=30)
    pulled.push_to_hub("tester", collection="demo family")
    assert list(pull(first["collection"], graph.folder).nodes)[-1] == "fip-3"


def test_adapters_on_a_node_load_beside_it(hub: HubServer, tmp_path: Path):
    graph = small_family(tmp_path / "graph", 0)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    adapter = get_peft_model(graph.root.load_model(), config)
    add_model(graph, adapter, id="lora-1", parent="base", name="lora")
    for layout in ("repo", "revision"):
        slug = graph.push_to_hub("tester", collection=f"family {layout}", layout=layout)["collection"]
        pulled = pull(slug, tmp_path / layout)
        number = len(hub.requests)
        inputs = {"input_ids": torch.arange(3, 11)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
        expected = graph["lora-1"].load_model()(**inputs).logits
        torch.testing.assert_close(pulled["lora-1"].load_model()(**inputs).logits, expected)
        assert len(hub.requests) == number


def test_a_folder_with_something_else_is_not_pulled_into(hub: HubServer, graph: ModelGraph, tmp_path: Path):
    slug = graph.push_to_hub("tester")["collection"]
    other = small_family(tmp_path / "other" / "graph", 0)
    stranger = ModelGraph(tmp_path / "stranger")
    add_model(stranger, classifier(), id="start")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").write_text("mine")
    for folder, reason in (
        (other.folder.parent, "output folder of a run"),
        (stranger.folder, "holds another graph"),
        (tmp_path / "files", "holds other files"),
        (tmp_path / "files" / "notes.txt", "is a file"),
    ):
        with pytest.raises(InputError, match=reason):
            pull(slug, folder)


def test_a_graph_on_the_hub_is_read_only(hub: HubServer, graph: ModelGraph):
    found = ModelGraph.from_hub(graph.push_to_hub("tester")["collection"])
    with pytest.raises(InputError, match="pull it to a folder"):
        found.add(graph.root, lambda folder: None)
    with pytest.raises(InputError, match="pull it to a folder"):
        found.push_to_hub("tester")


def test_it_is_shown_like_a_local_one(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester")
    found = ModelGraph.from_hub(result["collection"])
    assert render_tree(found).splitlines()[2:] == render_tree(graph).splitlines()[2:]
    assert render_tree(found).startswith(result["collection"])
    described = json.loads(json.dumps(describe(found)))
    assert described["nodes"][0]["repo"] == result["repos"]["base"] and described["endpoints"] == graph.endpoints


# ---- Families that hf_fip did not make ------------------------------------------------------------------------------


def upload(hub: HubServer, repo: str, **files: str | bytes) -> None:
    from huggingface_hub import CommitOperationAdd

    hub.api.create_repo(repo, exist_ok=True)
    additions = [
        CommitOperationAdd(name.replace("__", "."), text.encode() if isinstance(text, str) else text)
        for name, text in files.items()
    ]
    hub.api.create_commit(repo, additions, commit_message="files")


def collect(hub: HubServer, *repos: str) -> str:
    slug = hub.api.create_collection("others", namespace="tester").slug
    for repo in repos:
        hub.api.add_collection_item(slug, repo, "model")
    return slug


def readme(**values: Any) -> str:
    return f"---\n{json.dumps(values)}\n---\n# A model\n"


def test_lineage_comes_from_cards_where_there_is_no_description(hub: HubServer, tmp_path: Path):
    result = {"task": {"type": "text-classification"}, "dataset": {"name": "imdb", "type": "imdb"}}
    results = [{**result, "metrics": [{"type": "accuracy", "value": 0.9}, {"type": "f1", "value": "high"}]}]
    model = tmp_path / "model"
    classifier().save_pretrained(model)
    weights = {"config__json": (model / "config.json").read_bytes()}
    weights["model__safetensors"] = (model / "model.safetensors").read_bytes()
    upload(hub, "tester/parent", README__md=readme(pipeline_tag="text-classification"), **weights)
    upload(
        hub, "tester/child", README__md=readme(base_model="tester/parent", base_model_relation="finetune"), **weights
    )
    upload(
        hub,
        "tester/grandchild",
        README__md=readme(
            base_model=["elsewhere/x", "tester/child"],
            pipeline_tag="text-classification",
            **{"model-index": [{"name": "grandchild", "results": results}]},
        ),
        **weights,
    )
    hub.add_user("ann")
    slug = collect(hub, "tester/grandchild", "tester/parent", "tester/child")
    hub.api.create_repo("tester/texts", repo_type="dataset")
    hub.api.add_collection_item(slug, "tester/texts", "dataset")
    graph = ModelGraph.from_hub(slug)
    assert {node.id: node.parent for node in graph} == {
        "parent": None,
        "child": "parent",
        "grandchild": "child",
    }
    assert graph["grandchild"].metrics == {"imdb/accuracy": 0.9}
    assert graph["grandchild"].task == "sequence-classification"
    assert_same_weights(graph["child"].load_model().state_dict(), classifier().state_dict())
    pulled = pull(slug, tmp_path / "pulled")
    assert [node.parent for node in pulled] == [node.parent for node in graph]


def test_a_model_without_safetensors_is_listed_but_not_loaded(hub: HubServer):
    upload(hub, "tester/pickled", config__json='{"model_type": "bert"}', pytorch_model__bin=b"\x80\x02")
    graph = ModelGraph.from_hub(collect(hub, "tester/pickled"))
    with pytest.raises(InputError, match="no safetensors weights"):
        graph["pickled"].files()
    assert hub.count("pytorch_model.bin") == 0


def test_unrelated_roots_can_be_pulled(hub: HubServer, tmp_path: Path):
    model = tmp_path / "model"
    classifier().save_pretrained(model)
    for name in ("one", "two"):
        upload(
            hub,
            f"tester/{name}",
            config__json=(model / "config.json").read_bytes(),
            model__safetensors=(model / "model.safetensors").read_bytes(),
        )
    assert len(pull(collect(hub, "tester/one", "tester/two"), tmp_path / "pulled")) == 2


# ---- What strangers write -------------------------------------------------------------------------------------------

GOOD = {"id": "good"}
HOSTILE = {
    "not JSON": "{",
    "not an object": "[1]",
    "deeply nested": "[" * 100_000,
    "an id that leads away": json.dumps({"id": "../../x"}),
    "an id that is absolute": json.dumps({"id": "/etc"}),
    "no id": json.dumps({"name": "x"}),
    "a parent that leads away": json.dumps({"id": "x", "parent": "../y"}),
    "wrong types": json.dumps({"id": "x", "metrics": ["a"]}),
    "infinite numbers": '{"id": "x", "sparsity": Infinity}',
    "endless digits": '{"id": "x", "step": ' + "9" * 10_000 + "}",
    "too large": json.dumps({"id": "x", "extra": "y" * (1 << 20)}),
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_item_is_left_out_with_its_reason(hub: HubServer, kind: str, tmp_path: Path, caplog):
    upload(hub, "tester/good", fip_node__json=json.dumps(GOOD))
    upload(hub, "tester/bad", fip_node__json=HOSTILE[kind])
    with caplog.at_level("WARNING", "hf_fip"):
        graph = ModelGraph.from_hub(collect(hub, "tester/good", "tester/bad"))
    assert list(graph.nodes) == ["good"] and list(graph.unreadable) == ["tester/bad"]
    assert "tester/bad is left out: " in caplog.text and len(graph.unreadable["tester/bad"]) < 400
    if kind == "too large":
        assert hub.count("GET /tester/bad/resolve/.*/fip_node.json") == 0


def test_nothing_readable_is_an_error_with_reasons(hub: HubServer):
    upload(hub, "tester/bad", fip_node__json="{")
    with pytest.raises(InputError, match="holds no model that can be read .tester/bad: fip_node.json is not valid"):
        ModelGraph.from_hub(collect(hub, "tester/bad"))


def test_duplicates_and_cycles_are_left_out(hub: HubServer):
    nodes = {"one": {"id": "x"}, "two": {"id": "x"}, "three": {"id": "a", "parent": "b"}, "four": {"id": "b"}}
    nodes["four"]["parent"] = "a"
    for name, node in nodes.items():
        upload(hub, f"tester/{name}", fip_node__json=json.dumps(node))
    graph = ModelGraph.from_hub(collect(hub, *(f"tester/{name}" for name in nodes)))
    assert list(graph.nodes) == ["x"] and graph["x"].location["repo"] == "tester/one"
    assert {item.split("@")[0]: reason for item, reason in graph.unreadable.items()} == {
        "tester/two": "tester/one describes a node of the same id, 'x'",
        "tester/three": "parents form a cycle",
        "tester/four": "parents form a cycle",
    }


def test_a_description_cannot_say_where_its_files_lie(hub: HubServer):
    lies = {"id": "x", "folder": "/etc", "source": {"repo": "a/b"}}
    upload(hub, "tester/liar", fip_node__json=json.dumps(lies))
    node = ModelGraph.from_hub(collect(hub, "tester/liar"))["x"]
    assert node.folder is None and node.location["repo"] == "tester/liar"


def test_terminal_escapes_are_not_shown(hub: HubServer):
    evil = "\x1b]0;owned\x07\x1b[31mred\x1b[0m\n"
    node = {"id": "x", "name": evil, "operator": evil, "metrics": {evil: 0.5}}
    upload(hub, "tester/evil", fip_node__json=json.dumps(node))
    upload(hub, "tester/foreign", README__md=readme(base_model_relation="finetune", pipeline_tag=evil))
    text = render_tree(ModelGraph.from_hub(collect(hub, "tester/evil", "tester/foreign")))
    assert "\x1b" not in text and "\x07" not in text and "owned" not in text


def test_a_card_cannot_lead_into_another_family(hub: HubServer, graph: ModelGraph):
    slug = graph.push_to_hub("tester")["collection"]
    upload(hub, "tester/lure", fip_node__json=json.dumps(GOOD), README__md=readme(fip={"collection": slug}))
    assert list(ModelGraph.from_hub("tester/lure").nodes) == ["good"]


@pytest.mark.parametrize("fip", ["text", ["a"], {"collection": 3, "layout": {"a": 1}}, None])
def test_cards_of_any_form_are_read(hub: HubServer, fip: Any):
    upload(hub, "tester/odd", fip_node__json=json.dumps(GOOD), README__md=readme(fip=fip, base_model=None, tags=["x"]))
    upload(hub, "tester/odder", README__md=readme(fip=fip, base_model=["tester/odder"], datasets=["a"]))
    graph = ModelGraph.from_hub(collect(hub, "tester/odd", "tester/odder"))
    assert set(graph.nodes) == {"good", "odder"} and graph["odder"].parent is None


def test_describing_a_node_fetches_no_weights(hub, tmp_path):
    graph = small_family(tmp_path / "graph")
    slug = graph.push_to_hub("tester", collection="family", endpoint=hub.endpoint, token=hub.token)["collection"]
    remote = ModelGraph.from_hub(slug, endpoint=hub.endpoint, token=hub.token, cache_dir=tmp_path / "cache")
    node = remote.root
    assert node.files(weights=False).is_dir()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert (node.files() / "model.safetensors").is_file()
