"""What a push leaves on the Hub, and what a second one does to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from hf_fip.errors import InputError
from hf_fip.graph import ModelGraph, Node
from hf_fip.hub import AccessError, Hub, RetryPolicy, push
from hf_fip.models.loading import load_model
from tests.testing_utils import assert_same_weights, classifier

from .families import add_model, small_family
from .server import HubServer


TITLE = "demo family"


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """The folder of a graph: base, fip-1 … fip-3, naive-1 … naive-3."""
    return small_family(tmp_path_factory.mktemp("family") / "graph", 3, ("fip", "naive")).folder


@pytest.fixture
def graph(family: Path, tmp_path: Path) -> ModelGraph:
    return ModelGraph.load(shutil.copytree(family, tmp_path / "graph"))


def card(hub: HubServer, repo: str, revision: str = "main") -> dict:
    text = hub.file(repo, "README.md", revision=revision).decode()
    return yaml.safe_load(text.split("---")[1])


def items(hub: HubServer, number: int = 0) -> list[str]:
    return [item["id"] for item in hub.state()["collections"][number]["items"]]


def test_every_node_becomes_a_model_whose_card_names_its_parent(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester", collection=TITLE, private=True)
    assert result["pushed"] == list(graph.nodes) and not result["failed"] and not result["skipped"]
    for node in graph:
        repo = result["repos"][node.id]
        loaded = AutoModelForSequenceClassification.from_pretrained(repo)
        assert_same_weights(loaded.state_dict(), node.load_model().state_dict())
        parent = result["repos"].get(node.parent)
        assert card(hub, repo).get("base_model") == parent
        assert card(hub, repo)["fip"].get("parent_repo") == parent
        assert json.loads(hub.file(repo, "fip_node.json")) == node.to_dict()


def test_the_collection_holds_the_family_in_order_with_metrics(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester", collection=TITLE, private=True)
    (collection,) = hub.state()["collections"]
    assert collection["title"] == TITLE and collection["private"]
    assert [item["id"] for item in collection["items"]] == list(result["repos"].values())
    notes = {item["id"]: item["note"] for item in collection["items"]}
    assert "yelp/accuracy 0.88, imdb/accuracy 0.7" in notes[result["repos"]["fip-2"]]
    assert all(repo["private"] for repo in hub.state()["repos"].values())


def test_a_second_push_asks_once_and_changes_nothing(hub: HubServer, graph: ModelGraph):
    graph.push_to_hub("tester", collection=TITLE)
    before, number = hub.state(), len(hub.requests)
    result = graph.push_to_hub("tester", collection=TITLE)
    assert result["pushed"] == [] and result["skipped"] == list(graph.nodes)
    assert hub.state() == before and len(hub.requests) == number + 1


def test_a_node_takes_eight_requests(hub: HubServer, graph: ModelGraph):
    graph.push_to_hub("tester", collection=TITLE, private=True)
    assert len(hub.requests) <= 8 * len(graph) + 3


def test_new_nodes_are_added_and_old_ones_left_alone(hub: HubServer, graph: ModelGraph):
    graph.push_to_hub("tester", collection=TITLE)
    before = hub.state()["repos"]
    add_model(graph, classifier(seed=3), id="fip-4", parent="fip-3", name="fip", operator="ContinualLearning", step=40)
    assert graph.push_to_hub("tester", collection=TITLE)["pushed"] == ["fip-4"]
    after = hub.state()["repos"]
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1


@pytest.mark.parametrize("damage", [None, "{", '{"families": {"x": 3}}', "[]", '{"families": [1]}'])
@pytest.mark.parametrize("layout", ["repo", "revision"])
def test_a_lost_ledger_is_made_again_from_the_hub(hub: HubServer, graph: ModelGraph, layout: str, damage: str | None):
    graph.push_to_hub("tester", collection=TITLE, layout=layout)
    before, commits = hub.state(), hub.count("POST .*/commit/")
    ledger = graph.folder / "hub_ledger.json"
    ledger.unlink() if damage is None else ledger.write_text(damage)
    result = graph.push_to_hub("tester", collection=TITLE, layout=layout)
    assert result["failed"] == [] and result["pushed"] == []
    assert hub.state() == before and hub.count("POST .*/commit/") == commits
    number = len(hub.requests)
    graph.push_to_hub("tester", collection=TITLE, layout=layout)
    assert len(hub.requests) == number + 1


def test_what_was_deleted_on_the_hub_is_published_again(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester", collection=TITLE)
    before = hub.state()
    hub.api.delete_repo(result["repos"]["fip-1"])
    collection = hub.api.get_collection(result["collection"])
    item = next(item for item in collection.items if item.item_id == result["repos"]["naive-2"])
    hub.api.delete_collection_item(collection.slug, item.item_object_id)
    graph.push_to_hub("tester", collection=TITLE)
    assert hub.state() == before
    hub.api.delete_collection(collection.slug)
    graph.push_to_hub("tester", collection=TITLE)
    assert items(hub) == list(result["repos"].values())


def test_one_failing_node_does_not_stop_the_others(hub: HubServer, graph: ModelGraph):
    fault = hub.fault("fip-1/commit/", status=400, times=None)
    result = graph.push_to_hub("tester", collection=TITLE)
    assert result["failed"] == ["fip-1"] and len(result["pushed"]) == len(graph) - 1
    assert "went wrong on command" in result["errors"]["fip-1"] and fault.hits == 1
    hub.clear_faults()
    again = graph.push_to_hub("tester", collection=TITLE)
    assert again["pushed"] == ["fip-1"] and items(hub) == list(result["repos"].values())


def test_a_hub_that_is_down_is_given_up_with_a_reason(hub: HubServer, graph: ModelGraph):
    waits: list[float] = []
    policy = RetryPolicy(attempts=3, first_wait=0.5, sleep=waits.append)
    hub.fault("/commit/", status=503, times=None)
    result = push(graph, Hub(policy=policy), namespace="tester")
    assert set(result["failed"]) == set(graph.nodes)
    assert "503 after 3 tries" in result["errors"]["base"] and "not tried" in result["errors"]["naive-3"]
    assert waits == [0.5, 1.0] * 3


def test_the_wait_is_the_hubs_and_a_long_one_ends_the_push(hub: HubServer, graph: ModelGraph, caplog):
    waits: list[float] = []
    policy = RetryPolicy(sleep=waits.append)
    hub.fault("fip-1/commit/", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    with caplog.at_level("WARNING", "hf_fip"):
        assert push(graph, Hub(policy=policy), namespace="tester")["failed"] == []
    assert waits == [56.0] and "waiting 56 s" in caplog.text
    hub.fault("POST /api/repos/create", status=429, headers={"Retry-After": "7200"}, times=None)
    result = push(graph, Hub(policy=policy), namespace="tester", collection="another", private=True)
    assert waits == [56.0] and set(result["failed"]) == set(graph.nodes)
    assert "asks to wait 7201 s more" in result["errors"]["base"]


def test_who_may_not_publish_is_told_in_one_line(hub: HubServer, graph: ModelGraph, monkeypatch):
    before = hub.state()
    with pytest.raises(AccessError, match="cannot create repository nobody/.*give a namespace you can write to") as no:
        graph.push_to_hub("nobody", collection=TITLE)
    with pytest.raises(AccessError, match="hf auth login") as wrong:
        graph.push_to_hub("tester", collection=TITLE, token="hf_" + "x" * 34)
    for error in (no, wrong):
        assert "\n" not in str(error.value) and "hf_x" not in str(error.value) and hub.token not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="not logged in; run `hf auth login`"):
        graph.push_to_hub(collection=TITLE)
    assert hub.state() == before


def test_a_dry_run_changes_nothing_and_tells_what_a_push_would_do(hub: HubServer, graph: ModelGraph):
    plan = graph.push_to_hub("tester", collection=TITLE, private=True, dry_run=True)
    assert hub.requests == [] and not (graph.folder / "hub_ledger.json").exists()
    done = graph.push_to_hub("tester", collection=TITLE, private=True)
    assert plan["pending"] == done["pushed"] and plan["repos"] == done["repos"]
    assert abs(plan["requests"] - len(hub.requests)) <= 1
    sizes = [len(hub.file(repo, name)) for repo in plan["repos"].values() for name in _files(hub, repo)]
    assert abs(plan["bytes"] / sum(sizes) - 1) < 0.05


def _files(hub: HubServer, repo: str) -> list[str]:
    files = hub.state()["repos"][f"models/{repo}"]["branches"]["main"]["files"]
    return [name for name in files if name != ".gitattributes"]


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ("endpoints", ["base", "fip-3", "naive-3"]),
        ("every:2", ["base", "fip-2", "fip-3", "naive-2", "naive-3"]),
        ("every:9", ["base", "fip-3", "naive-3"]),
    ],
)
def test_a_selection_is_connected(hub: HubServer, graph: ModelGraph, select: str, chosen: list[str]):
    result = graph.push_to_hub("tester", collection=TITLE, select=select)
    assert result["pushed"] == chosen
    for node in ModelGraph.from_hub(result["collection"]):
        ancestors = [above.id for above in graph.lineage(node.id)[:-1] if above.id in chosen]
        assert node.parent == (ancestors[-1] if ancestors else None)
        assert card(hub, result["repos"][node.id]).get("base_model") == result["repos"].get(node.parent)
        if node.parent == "base":
            assert node.euclidean_distance["parent"] == graph[node.id].euclidean_distance["root"]
    everything = graph.push_to_hub("tester", collection=TITLE)
    assert not everything["failed"] and items(hub) == list(everything["repos"].values())
    assert [node.parent for node in ModelGraph.from_hub(result["collection"])] == [node.parent for node in graph]


BAD = [
    {"select": "some"},
    {"select": "every:0"},
    {"layout": "branch"},
    {"collection": " "},
    {"collection": "x" * 61},
    {"namespace": "a/b"},
]


@pytest.mark.parametrize("arguments", BAD)
def test_bad_arguments_are_refused_before_any_request(hub: HubServer, graph: ModelGraph, arguments: dict):
    with pytest.raises(InputError, match=next(iter(arguments))):
        graph.push_to_hub(**{"namespace": "tester", **arguments})
    assert hub.requests == []


def test_an_empty_graph_is_refused(hub: HubServer, tmp_path: Path):
    with pytest.raises(InputError, match="no nodes yet"):
        ModelGraph(tmp_path / "graph").push_to_hub("tester")


def test_revisions_are_tags_and_main_is_the_end_of_the_path(hub: HubServer, graph: ModelGraph):
    ends = graph.push_to_hub("tester", collection=TITLE, layout="revision", select="endpoints")
    result = graph.push_to_hub("tester", collection=TITLE, layout="revision")
    assert set(ends["repos"].values()) < set(result["repos"].values())
    repos = hub.state()["repos"]
    assert set(repos) == {f"models/tester/demo-family-{branch}" for branch in ("base", "fip", "naive")}
    fip = repos["models/tester/demo-family-fip"]
    assert set(fip["tags"]) == {"fip-1", "fip-2", "fip-3"}
    assert fip["tags"]["fip-3"] == fip["branches"]["main"]["files"]
    for node in graph:
        repo, _, tag = result["repos"][node.id].partition("@")
        loaded = AutoModelForSequenceClassification.from_pretrained(repo, revision=tag)
        assert_same_weights(loaded.state_dict(), node.load_model().state_dict())
    assert card(hub, "tester/demo-family-fip", "fip-2")["base_model"] == "tester/demo-family-base"
    assert items(hub) == ["tester/demo-family-base", "tester/demo-family-fip", "tester/demo-family-naive"]


def test_only_the_files_of_a_model_go_up(hub: HubServer, tmp_path: Path):
    graph = small_family(tmp_path / "graph", 0)
    secrets = ["training_args.bin", "optimizer.pt", "scheduler.pt", "pytorch_model.bin", "adapter_model.bin", ".env",
               "model.py", "optimizer.safetensors", "rng_state.pth", "trainer_state.json"]  # fmt: skip
    for name in secrets:
        (graph.root.folder / name).write_text("secret")
    (graph.root.folder / "checkpoint-1").mkdir()
    (graph.root.folder / "checkpoint-1" / "model.safetensors").write_text("secret")
    graph.push_to_hub("tester")
    (repo,) = hub.state()["repos"]
    expected = {"README.md", "config.json", "fip_node.json", "model.safetensors", "tokenizer.json"}
    assert set(_files(hub, repo.removeprefix("models/"))) == expected | {"tokenizer_config.json"}


def test_private_is_never_put_into_what_is_public(hub: HubServer, graph: ModelGraph):
    hub.api.create_repo("tester/demo-family-fip-1")
    result = graph.push_to_hub("tester", collection=TITLE, private=True)
    assert result["failed"] == ["fip-1"] and "exists and is public" in result["errors"]["fip-1"]
    assert "model.safetensors" not in _files(hub, "tester/demo-family-fip-1")
    graph.push_to_hub("tester", collection="open", private=False)
    with pytest.raises(InputError, match="private=True, but the Collection .* is public"):
        graph.push_to_hub("tester", collection="open", private=True)


def test_without_a_choice_the_collection_is_as_visible_as_its_models(hub: HubServer, graph: ModelGraph):
    hub.api.create_repo("tester/demo-family-base", private=True)
    graph.push_to_hub("tester", collection=TITLE)
    assert hub.state()["collections"][0]["private"]


def test_another_family_of_the_same_title_is_refused(hub: HubServer, graph: ModelGraph, tmp_path: Path):
    graph.push_to_hub("tester", collection=TITLE)
    before = hub.state()
    other = ModelGraph(tmp_path / "other")
    add_model(other, classifier(seed=7), id="start")
    with pytest.raises(InputError, match="Collection of this title with other models"):
        other.push_to_hub("tester", collection=TITLE)
    twin = ModelGraph(tmp_path / "twin")
    add_model(twin, classifier(seed=8), id="base")
    for layout in ("repo", "revision"):
        graph.push_to_hub("tester", collection=f"{TITLE} {layout}", layout=layout)
        before = hub.state()
        result = twin.push_to_hub("tester", collection=f"{TITLE} {layout}", layout=layout)
        assert result["failed"] == ["base"] and "weights of another model" in result["errors"]["base"]
        assert hub.state() == before


def test_items_of_the_user_keep_their_places(hub: HubServer, graph: ModelGraph):
    result = graph.push_to_hub("tester", collection=TITLE, select="endpoints")
    hub.api.create_repo("tester/texts", repo_type="dataset")
    hub.api.add_collection_item(result["collection"], "tester/texts", "dataset", note="what they were trained on")
    result = graph.push_to_hub("tester", collection=TITLE)
    (collection,) = hub.state()["collections"]
    assert [item["id"] for item in collection["items"] if item["type"] == "model"] == list(result["repos"].values())
    assert [item["note"] for item in collection["items"] if item["type"] == "dataset"] == ["what they were trained on"]


def test_the_token_is_written_nowhere(hub: HubServer, graph: ModelGraph, caplog):
    with caplog.at_level("DEBUG"):
        hub.fault("fip-1/commit/", status=400)
        result = graph.push_to_hub("tester", collection=TITLE, token=hub.token)
    written = [path.read_bytes() for path in graph.folder.rglob("*") if path.is_file()]
    written += [hub.file(repo, name) for node, repo in result["repos"].items() if node != "fip-1"
                for name in _files(hub, repo)]  # fmt: skip
    assert not any(hub.token.encode() in content for content in written)
    assert hub.token not in caplog.text and hub.token not in json.dumps(result)


def test_an_organisation_owns_what_is_pushed_to_it(hub: HubServer, graph: ModelGraph):
    token = hub.add_user("ann", organizations=["lab"])
    result = graph.push_to_hub("lab", collection=TITLE, private=True, token=token, select="endpoints")
    assert all(repo.startswith("lab/") for repo in result["repos"].values())
    assert hub.state()["collections"][0]["owner"] == "lab"
    mine = graph.push_to_hub(collection=TITLE, token=token, select="endpoints")
    assert all(repo.startswith("ann/") for repo in mine["repos"].values())


def test_the_licence_of_the_model_it_was_made_from_is_inherited(hub: HubServer, tmp_path: Path):
    hub.api.create_repo("tester/bert")
    hub.api.upload_file(
        repo_id="tester/bert", path_in_repo="README.md", path_or_fileobj=b"---\nlicense: apache-2.0\n---\n# BERT\n"
    )
    graph = ModelGraph(tmp_path / "graph")
    add_model(graph, classifier(), id="base", protocol={"model": "tester/bert"})
    add_model(graph, classifier(seed=1), id="fip-1", parent="base", name="fip")
    result = graph.push_to_hub("tester")
    root, child = (card(hub, repo) for repo in result["repos"].values())
    assert root["base_model"] == "tester/bert" and root["base_model_relation"] == "finetune"
    assert root["license"] == child["license"] == "apache-2.0" and child["base_model"] == result["repos"]["base"]


@pytest.mark.parametrize("model", ["embedded:bert-mini", "nobody/nothing", "/models/bert", None])
def test_what_is_no_model_on_the_hub_is_no_base_model(hub: HubServer, tmp_path: Path, model: str | None):
    graph = ModelGraph(tmp_path / "graph")
    add_model(graph, classifier(), id="base", protocol={"model": model})
    (repo,) = graph.push_to_hub("tester")["repos"].values()
    assert not card(hub, repo).keys() & {"base_model", "base_model_relation", "license"}


def test_sharded_weights_go_up_and_load(hub: HubServer, tmp_path: Path):
    graph, model = ModelGraph(tmp_path / "graph"), classifier()
    node = Node("base", task="sequence-classification")
    graph.add(node, lambda folder: model.save_pretrained(folder, max_shard_size="10KB"))
    assert len(list(graph.root.folder.glob("model-*.safetensors"))) > 1
    (repo,) = graph.push_to_hub("tester")["repos"].values()
    loaded = AutoModelForSequenceClassification.from_pretrained(repo)
    assert_same_weights(loaded.state_dict(), model.state_dict())


def test_adapters_keep_the_model_they_are_loaded_on(hub: HubServer, tmp_path: Path):
    graph = small_family(tmp_path / "graph", 0)

    def adapter(base):
        torch.manual_seed(5)
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
        return get_peft_model(base, config)

    on_node = adapter(graph.root.load_model())
    add_model(graph, on_node, id="lora-1", parent="base", name="lora", operator="ContinualLearning")
    elsewhere = tmp_path / "elsewhere"
    classifier().save_pretrained(elsewhere)
    on_folder = adapter(AutoModelForSequenceClassification.from_pretrained(elsewhere))
    add_model(graph, on_folder, id="lora-2", parent="lora-1", name="lora", operator="ContinualLearning")
    result = graph.push_to_hub("tester", collection=TITLE)
    assert result["failed"] == ["lora-2"] and "local folder" in result["errors"]["lora-2"]
    repo = result["repos"]["lora-1"]
    published = card(hub, repo)
    assert published["base_model"] == result["repos"]["base"] and published["base_model_relation"] == "adapter"
    assert published["library_name"] == "peft" and published["fip"]["parent"] == "base"
    assert str(tmp_path).encode() not in b"".join(hub.file(repo, name) for name in _files(hub, repo))
    inputs = {"input_ids": torch.arange(3, 11)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    expected = graph["lora-1"].load_model()(**inputs).logits
    torch.testing.assert_close(load_model(repo)(**inputs).logits, expected)
