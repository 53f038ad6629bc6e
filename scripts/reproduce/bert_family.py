"""
A family of masked language models, made by continual learning and compression from one small BERT, is asked which of
its members suits a text (paper: Fig. 5E, 300 networks queried with WikiText and IMDB by perplexity).

    python scripts/reproduce/bert_family.py --scale full --seeds 0 [--data_root DIR]

The branches: `fip` (reviews, then WikiText, 20 points), `sparse` (20 sparsities from 5 to 95 %, the base network) and
`fip_sparse` (the same sparsities after WikiText). Each query is answered by a full ranking and by a race.
"""

from __future__ import annotations

from pathlib import Path

from experiment import Measurement, Options, reproduce, run_recipe


RECIPE = Path(__file__).with_name("bert_family.yaml")
SMALL = ["tasks.imdb.max_train=100", "tasks.imdb.max_test=20", "tasks.wikitext.max_test=20", "base.max_steps=4"]
SMALL += ["training.max_steps=6", "anchors=20", "path.0.path_points=2", "branches={}"]
QUERIES = {
    "wikitext": {"dataset": "Salesforce/wikitext", "config": "wikitext-2-raw-v1", "split": "test"},
    "imdb": {"dataset": "stanfordnlp/imdb", "split": "test"},
}


def measure(seed: int, options: Options) -> list[Measurement]:
    from hf_fip import ModelGraph

    overrides = [f"seed={seed}", *([] if options.is_full else SMALL)]
    folder = options.output_dir / f"{options.scale}-seed-{seed}"
    graph = ModelGraph.load(run_recipe(str(RECIPE), overrides, folder, options.data_root)["graph"])
    found = []
    for name, query in QUERIES.items():
        asked = {"max_samples": 1000 if options.is_full else 40, "data_root": options.data_root, "max_length": 96}
        query = {key: value for key, value in query.items() if key != "dataset"} | asked | {"seed": seed}
        spec = QUERIES[name]["dataset"]
        full = graph.query(spec, strategy="full", **query)
        race = graph.query(spec, strategy="racing", **query)
        places: dict[str, tuple[int, float]] = {}
        for place, row in enumerate(full.ranking, start=1):
            places.setdefault(row["branch"], (place, row["value"]))
        for group, (place, value) in places.items():
            found.append(Measurement(group, "best perplexity", value, {"query": name}))
            found.append(Measurement(group, "best place", place, {"query": name}))
        share = race.forward_examples / race.full_forward_examples
        found += [
            Measurement("family", "nodes", len(graph), {"query": name}),
            Measurement("race", "share of the forward examples", share, {"query": name}),
            Measurement("race", "same winner", float(race.best == full.best), {"query": name}),
        ]
    return found


def protocol(options: Options) -> dict:
    return {
        "model": "embedded:bert-mini, 1.35 M weights",
        "perplexity": "of 15 % masked tokens, the same for all nodes; 1,000 texts of each test set"
        if options.is_full
        else "of 15 % masked tokens, the same for all nodes; 40 texts of each test set",
        "labels": "none",
    }


PAPER = [{"finding": "WikiText and IMDB rank different classes of the 300 networks first (Fig. 5E)"}]

if __name__ == "__main__":
    reproduce("bert_family", measure=measure, protocol=protocol, paper=PAPER, description=__doc__)
