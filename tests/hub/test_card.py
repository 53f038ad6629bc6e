"""Model cards: valid for the Hub, true to the node, and safe whatever a node's description holds."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fip.graph import Node
from hf_fip.hub.card import Address, CardContext, card_data, model_card, note

from .model_card import metadata


ROOT = Node("base", task="sequence-classification", metrics={"yelp/accuracy": 0.9})
CHILD = Node(
    "fip-1",
    parent="base",
    name="fip",
    operator="ContinualLearning",
    parameters={"task": {"name": "imdb", "dataset": "stanfordnlp/imdb"}, "distance_budget": 0.02},
    step=125,
    metrics={"yelp/accuracy": 0.88, "imdb/accuracy": 0.7, "imdb/loss": float("nan")},
    functional_distance={"parent": 0.01, "root": 0.01, "name": "l2", "unit": "share of output variance"},
    euclidean_distance={"parent": 0.5, "root": 0.5},
    sparsity=0.6,
    task="sequence-classification",
    protocol={
        "tasks": [
            {"name": "yelp", "dataset": "fancyzhx/yelp_polarity"},
            {"name": "imdb", "dataset": "stanfordnlp/imdb"},
        ],
        "budget": {"held_out": [{"message": "certified: at most 3.1 % of predictions changed"}]},
    },
)
CONTEXT = CardContext(
    title="demo",
    site="https://huggingface.co",
    layout="repo",
    addresses={"base": Address("me/demo-base"), "fip-1": Address("me/demo-fip-1")},
    collection="me/demo-64f9a55bb3115b4f513ec026",
    foundation="google-bert/bert-base-uncased",
    license={"license": "apache-2.0"},
)


def front(text: str) -> dict:
    data, errors = metadata(text)
    assert errors == []
    return data


def test_the_metadata_tell_the_lineage_and_the_results():
    data = front(model_card(CHILD, [ROOT, CHILD], CONTEXT))
    assert data["base_model"] == "me/demo-base" and data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-classification"
    assert data["license"] == "apache-2.0" and data["datasets"] == ["fancyzhx/yelp_polarity", "stanfordnlp/imdb"]
    assert {"fip", "continual-learning", "sparse"} <= set(data["tags"])
    fip = data["fip"]
    assert (fip["node"], fip["parent"], fip["root"], fip["step"]) == ("fip-1", "base", "base", 125)
    assert fip["collection"] == CONTEXT.collection and fip["functional_distance"]["root"] == 0.01
    results = ModelCard(model_card(CHILD, [ROOT, CHILD], CONTEXT)).data.eval_results
    assert {(r.dataset_type, r.metric_type, r.metric_value) for r in results} == {
        ("fancyzhx/yelp_polarity", "accuracy", 0.88),
        ("stanfordnlp/imdb", "accuracy", 0.7),
    }


def test_the_root_comes_from_its_foundation():
    data = front(model_card(ROOT, [ROOT], CONTEXT))
    assert data["base_model"] == "google-bert/bert-base-uncased"
    alone = dataclasses.replace(CONTEXT, foundation=None, license={})
    assert not front(model_card(ROOT, [ROOT], alone)).keys() & {"base_model", "base_model_relation", "license"}


def test_an_adapter_keeps_the_model_it_is_loaded_on():
    data = front(model_card(CHILD, [ROOT, CHILD], CONTEXT, adapter_base="google-bert/bert-base-uncased"))
    assert data["base_model"] == "google-bert/bert-base-uncased" and data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft" and data["fip"]["parent_repo"] == "me/demo-base"


def test_a_repository_is_not_its_own_base():
    addresses = {"base": Address("me/demo-base", "base")}
    addresses |= {name: Address("me/demo-fip", name) for name in ("fip-1", "fip-2")}
    context = dataclasses.replace(CONTEXT, layout="revision", addresses=addresses)
    second = dataclasses.replace(CHILD, id="fip-2", parent="fip-1")
    assert card_data(second, [ROOT, CHILD, second], context).base_model == "me/demo-base"
    text = model_card(second, [ROOT, CHILD, second], context)
    assert 'load_model("me/demo-fip", revision="fip-2")' in text


def test_the_text_says_how_it_was_made_and_how_to_load_it():
    text = model_card(CHILD, [ROOT, CHILD], CONTEXT)
    for part in (
        'AutoModelForSequenceClassification.from_pretrained("me/demo-fip-1")',
        'ModelGraph.from_hub("me/demo-64f9a55bb3115b4f513ec026")',
        "distance_budget: 0.02",
        'n0 -->|"ContinualLearning"| n1["fip-1"]',
        "| [fip-1](https://huggingface.co/me/demo-fip-1) | 125 | 0.88 | 0.7 | – | 0.01 | 0.6 |",
        "certified: at most 3.1 % of predictions changed",
    ):
        assert part in text
    assert "import hf_fip.models" in model_card(CHILD, [ROOT, CHILD], CONTEXT, needs_hf_fip=True)


def test_a_long_path_stays_a_short_card():
    line = [ROOT]
    for number in range(300):
        line.append(dataclasses.replace(CHILD, id=f"fip-{number}", parent=line[-1].id))
    context = dataclasses.replace(CONTEXT, addresses={node.id: Address(f"me/demo-{node.id}") for node in line})
    assert len(model_card(line[-1], line, context)) < 8000


def test_the_card_of_a_node_does_not_depend_on_later_nodes():
    grown = {**CONTEXT.addresses, "fip-2": Address("me/demo-fip-2")}
    later = dataclasses.replace(CONTEXT, addresses=grown)
    assert model_card(CHILD, [ROOT, CHILD], CONTEXT) == model_card(CHILD, [ROOT, CHILD], later)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=60),
    value=st.floats(allow_nan=True, allow_infinity=True),
    extra=st.recursive(
        st.none() | st.booleans() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
)
def test_any_description_gives_a_valid_card(text: str, value: float, extra):
    node = dataclasses.replace(
        CHILD,
        name=text,
        operator=text,
        metrics={text: value, f"{text}/{text}": value},
        parameters={"x": text, text: extra},
        protocol={"tasks": extra, "method": text, "budget": extra, "model": text},
        versions={text: extra},
    )
    data = front(model_card(node, [ROOT, node], CONTEXT))
    assert data["base_model"] == "me/demo-base" and data["fip"]["node"] == "fip-1"
    assert len(note(node)) <= 500


@pytest.mark.parametrize(
    "evil",
    ["<script>alert(1)</script>", "a | b", "[x](https://evil.example)", "```\n# owned", "---\nlicense: mit\n---"],
)
def test_a_description_cannot_break_out_of_its_place(evil: str):
    node = dataclasses.replace(CHILD, name=evil, operator=evil, metrics={evil: 1.0}, parameters={"text": evil})
    text = model_card(node, [ROOT, node], CONTEXT)
    body = text.split("\n---\n", 1)[1]
    outside = "".join(part for number, part in enumerate(body.split("```")) if number % 2 == 0)
    assert "<script>" not in outside and re.search(r"(?<!\\)\]\(https://evil|^# owned", outside, re.M) is None
    assert yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---"))["license"] == "apache-2.0"
    assert body.count("```") % 2 == 0
    table = [line for line in outside.splitlines() if line.startswith("| [")]
    assert {line.replace("\\|", "").count("|") for line in table} == {7}


def test_notes_tell_where_a_node_stands():
    assert note(ROOT) == "the root: yelp/accuracy 0.9"
    assert note(CHILD) == (
        "fip, ContinualLearning, step 125: yelp/accuracy 0.88, imdb/accuracy 0.7, functional distance 0.01, "
        "sparsity 0.6"
    )
