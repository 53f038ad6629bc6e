"""
BERT becomes sparse along a functionally invariant path (paper: Fig. 5A, a BERT that fills in masks):

- `wikitext`: a masked language model, perplexity of masked tokens against sparsity from 20 to 95 %, and the words it
  predicts at a few masks (`…-words.md`). The path uses no labels; magnitude pruning, gradual (`gmp`) and at once
  (`one_shot`), trains on its labels, which are the masked tokens themselves.
- `yelp`: a classifier of reviews at 50, 80, 90 and 95 %. The path uses no labels, its rivals do.

    python scripts/reproduce/bert_sparsity.py --scale full --seeds 0 1 2 [--data_root DIR]

All methods of a seed start from one base network and take the same number of steps; `gmp_slow` is `gmp` at a third of
the learning rate. Sparsity counts the weights that are pruned: the encoder's matrices. Embeddings, four fifths of this
small model, stay dense; `zeros of all weights` says what that leaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from drawing import lines
from experiment import Measurement, Options, reproduce, run_recipe


if TYPE_CHECKING:
    from hf_fip import ModelGraph

CLASSIFIER = Path(__file__).with_name("bert_sparsity.yaml")
WIKITEXT_FULL = ["tasks.wikitext.max_test=300", "max_length=48", "baselines=[gmp,one_shot]", "base.max_steps=100"]
WIKITEXT_FULL += ["path.0.sparsity=[0.2,0.4,0.6,0.8,0.9,0.95]", "path.0.steps=360", "path.0.anchors=1000"]
WIKITEXT_FULL += ["base.batch_size=16", "training.batch_size=16"]
WIKITEXT_FULL += [
    "branches={gmp_slow: [{operator: Compression, method: gmp, sparsity: [0.2,0.4,0.6,0.8,0.9,0.95], steps: 360, "
    "anchors: 200, training: {learning_rate: 3e-4}}]}"
]
WIKITEXT_SMALL = ["tasks.wikitext.max_train=60", "tasks.wikitext.max_test=20", "base.max_steps=2", "max_length=32"]
WIKITEXT_SMALL += ["path.0.sparsity=[0.5,0.9]", "path.0.steps=4", "baselines=[gmp]", "training.batch_size=4"]
YELP_SMALL = ["tasks.yelp.max_train=64", "tasks.yelp.max_test=40", "base={max_steps: 2}", "max_length=32"]
YELP_SMALL += ["path.0.sparsity=[0.5,0.9]", "path.0.steps=4", "path.0.anchors=20", "branches={}", "baselines=[gmp]"]
SENTENCES = (
    "the album was released in the united [MASK] in 1998 .",
    "the storm moved to the [MASK] and reached the coast .",
    "he was the [MASK] president of the club .",
)


def measure(seed: int, options: Options) -> list[Measurement]:
    return [*_fill_mask(seed, options), *_classifier(seed, options)]


def _fill_mask(seed: int, options: Options) -> list[Measurement]:
    graph = _graph("bert_fill_mask", WIKITEXT_FULL if options.is_full else WIKITEXT_SMALL, "wikitext", seed, options)
    _write_words(graph, options.output_dir / f"{options.scale}-seed-{seed}-words.md")
    return _measured(graph, "wikitext", "perplexity", 1)


def _classifier(seed: int, options: Options) -> list[Measurement]:
    graph = _graph(str(CLASSIFIER), [] if options.is_full else YELP_SMALL, "yelp", seed, options)
    changed = graph.query(
        "fancyzhx/yelp_polarity",
        metric=f"functional_distance:{graph.root.id}:changed_predictions",
        split="test",
        max_samples=2000 if options.is_full else 40,
        max_length=96,
        data_root=options.data_root,
        seed=seed,
    )
    shares = {row["node"]: row["value"] for row in changed.ranking}
    found = _measured(graph, "yelp", "accuracy", 100)
    return found + [
        Measurement(node.name, "changed predictions", 100 * shares[node.id], _setting(node, "yelp"))
        for node in graph
        if node.id in shares
    ]


def _graph(recipe: str, overrides: list[str], name: str, seed: int, options: Options) -> ModelGraph:
    from hf_fip import ModelGraph

    folder = options.output_dir / f"{options.scale}-{name}-seed-{seed}"
    made = run_recipe(recipe, ["model=embedded:bert-mini", f"seed={seed}", *overrides], folder, options.data_root)
    return ModelGraph.load(made["graph"])


def _measured(graph: ModelGraph, task: str, metric: str, scale: int) -> list[Measurement]:
    found = []
    for node in graph:
        setting = _setting(node, task)
        found.append(Measurement(node.name, metric, scale * node.metrics[f"{task}/{metric}"], setting))
        found.append(Measurement(node.name, "zeros of all weights", 100 * node.sparsity, setting))
    return found


def _setting(node, task: str) -> dict:
    target = node.protocol.get("compression", {}).get("target")
    return {"data": task} if target is None else {"data": task, "sparsity": round(100 * target, 1)}


def _write_words(graph: ModelGraph, file: Path) -> None:
    """The three likeliest words at each mask with their probabilities, of each method at each sparsity."""
    from transformers import pipeline

    table = ["| method | sparsity | " + " | ".join(SENTENCES) + " |", "|---|---|" + "---|" * len(SENTENCES)]
    for node in graph:
        fill = pipeline("fill-mask", model=node.load_model(), tokenizer=node.load_processor(), device="cpu")
        words = [_guesses(fill(text, top_k=3)) for text in SENTENCES]
        share = _setting(node, "").get("sparsity", 0)
        table.append(f"| {node.name} | {share:g} % | {' | '.join(words)} |")
    file.write_text("\n".join(table) + "\n", encoding="utf-8")


def _guesses(found: list[dict]) -> str:
    return ", ".join(f"`{guess['token_str'].strip()}` {guess['score']:.0%}" for guess in found)


def protocol(options: Options) -> dict:
    return {
        "model": "embedded:bert-mini, 1.35 M weights; sparsity is of the encoder's matrices, embeddings stay dense",
        "wikitext": "masked tokens (15 %, the same for all nodes) of 300 test texts, 48 tokens; learned from the "
        "validation split; 360 steps of 16 texts on one path; 1,000 unlabelled anchors"
        if options.is_full
        else "tiny",
        "yelp": "2,000 test reviews, 96 tokens; 400 steps of 32 reviews on one path; the 4,000 "
        "training reviews without labels as anchors"
        if options.is_full
        else "tiny",
        "labels": "fip none; gmp, one_shot, movement, distill_gmp the training labels (wikitext: the masked tokens)",
        "learning rate": "wikitext 1e-3, gmp_slow 3e-4; yelp 3e-4, gmp 1e-3; fip's, gmp's and movement's chosen with "
        "seed 10 on test examples",
    }


def pictures(rows: list[dict]) -> dict:
    names = list(dict.fromkeys(row["method"] for row in rows))
    drawn = {}
    for task, metric, title, log in (
        ("wikitext", "perplexity", "perplexity of masked tokens, WikiText", True),
        ("yelp", "accuracy", "accuracy, Yelp (%)", False),
        ("yelp", "changed predictions", "changed predictions, Yelp (%)", False),
    ):
        shown = [row for row in rows if row["setting"]["data"] == task]
        named = {"dense" if name == "base" else name: (name, metric) for name in names}
        axes = ("sparsity of the encoder (%)", title)
        drawn[f"{task}-{metric.replace(' ', '-')}"] = lines(shown, named, x="sparsity", axes=axes, log=log)
    return drawn


PAPER = [{"finding": "BERT at 20 to 95 % fills in a mask sensibly (Fig. 5A: words and confidences)"}]

if __name__ == "__main__":
    reproduce("bert_sparsity", measure=measure, protocol=protocol, paper=PAPER, description=__doc__, pictures=pictures)
