"""Two gloo processes share a query and both have the result of one."""

import json

import pytest

from hf_fip.query import query
from tests.testing_utils import run_processes

from .families import family, model_of, sentences, words


SCRIPT = """
import json
from hf_fip.graph import ModelGraph
from hf_fip.query import query
from hf_fip.query.sharing import Processes
from tests.query.families import sentences

found = []
for settings in ({}, {"nodes": ["fip-1"]}, {"strategy": "racing"}, {"metric": "functional_distance:fip-0"}):
    found.append(query(ModelGraph.load(sys.argv[1]), sentences(40), device="cpu", batch_size=4, **settings).to_dict())
rank = Processes.started("cpu").rank
with open(f"{sys.argv[2]}-{rank}.json", "w") as file:
    json.dump(found, file)
"""


def test_two_processes_share_nodes_and_examples(tmp_path):
    graph = family(tmp_path / "graph", lambda seed: model_of("fill-mask"), 5, task="fill-mask", processor=words())
    run_processes(2, tmp_path / "run.py", SCRIPT, graph.folder, tmp_path / "found")
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    options = ({}, {"nodes": ["fip-1"]}, {"strategy": "racing"}, {"metric": "functional_distance:fip-0"})
    for shared, settings in zip(first, options, strict=True):
        alone = query(graph, sentences(40), batch_size=4, **settings).to_dict()
        for left, right in zip(shared["ranking"], alone["ranking"], strict=True):
            assert left["node"] == right["node"]
            assert left["value"] == pytest.approx(right["value"], rel=1e-9)
        assert shared["forward_examples"] == alone["forward_examples"]
