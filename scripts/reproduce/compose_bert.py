"""
Two operators in both orders (paper: Fig. 5C and D): BERT learns Yelp reviews; then it learns film reviews and is
compressed (Co∘CL), or is compressed and learns film reviews (CL∘Co), at 10 to 60 % sparsity. Both orders use the same
two operators with the same settings, so a node of either took the same number of steps. Measured are the accuracy of
both on both tasks beside the dense node that has learned both, and how far the two orders are from one another: the
size of the commutator, as functions and in weight space.

    python scripts/reproduce/compose_bert.py --scale full --seeds 0 1 2 [--data_root DIR]

Co∘CL is the recipe `cl_then_co`; CL∘Co starts from its base node: one path of six sparsities, and from each point of
it the path that learns film reviews. No label of an anchor is used, and no task id at test time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drawing import lines
from experiment import Measurement, Options, reproduce, run_recipe


if TYPE_CHECKING:
    from hf_fip import ModelGraph
    from hf_fip.graph import Node

FULL = ["max_length=96", "tasks.yelp.max_test=2000", "tasks.imdb.max_test=2000", "anchors=2000"]
FULL += ["path.1.steps=240", "path.1.anchors=2000", "path.1.training={learning_rate: 1e-4}", "training.epochs=1.5"]
SMALL = ["max_length=32", "tasks.yelp.max_test=40", "tasks.imdb.max_test=40", "tasks.yelp.max_train=64"]
SMALL += ["tasks.imdb.max_train=64", "anchors=20", "path.1.sparsity=[0.1,0.5]", "path.1.steps=4", "path.1.anchors=20"]
SMALL += ["base={max_steps: 2}", "training={max_steps: 2}"]
CO_CL, CL_CO = "learned, then compressed", "compressed, then learned"


def measure(seed: int, options: Options) -> list[Measurement]:
    graph, pairs = _both_orders(seed, options)
    dense = pairs[0][0].parent
    while "compression" in graph[dense].protocol:
        dense = graph[dense].parent
    found = [*_accuracies("dense, Yelp alone", graph.root, {}), *_accuracies("dense, both", graph[dense], {})]
    for co_cl, cl_co in pairs:
        setting = {"sparsity": round(100 * co_cl.protocol["compression"]["target"], 1)}
        found += [*_accuracies(CO_CL, co_cl, setting), *_accuracies(CL_CO, cl_co, setting)]
        found += _commutator(graph, co_cl, cl_co, setting, options)
    return found


def _both_orders(seed: int, options: Options) -> tuple[ModelGraph, list[tuple[Node, Node]]]:
    from hf_fip import Compression, ContinualLearning, ModelGraph
    from hf_fip.recipes import load_recipe

    overrides = ["model=embedded:bert-mini", f"seed={seed}", *(FULL if options.is_full else SMALL)]
    folder = options.output_dir / f"{options.scale}-seed-{seed}"
    graph = ModelGraph.load(run_recipe("cl_then_co", overrides, folder, options.data_root)["graph"])
    recipe = load_recipe("cl_then_co", overrides)
    learn, compress = recipe.plan()["fip"]

    shared = {"data_root": options.data_root}
    compressed = Compression(branch="co", training=compress.training, **shared, **compress.settings)(graph["base"])
    pairs = []
    for co_cl, sparse in zip(graph.lineage("fip")[2:], compressed, strict=True):
        task, name = recipe.tasks[learn.task], f"cl_at_{round(100 * sparse.protocol['compression']['target'])}"
        again = ContinualLearning(task, branch=name, training=learn.training, **shared, **learn.settings)
        pairs.append((co_cl, again(sparse).end))
    graph.refresh()
    return graph, pairs


def _accuracies(method: str, node: Node, setting: dict) -> list[Measurement]:
    values = {name: 100 * value for name, value in node.metrics.items() if name.endswith("/accuracy")}
    if len(values) == 2:
        values["mean accuracy"] = sum(values.values()) / 2
    return [Measurement(method, name, value, setting) for name, value in values.items()]


def _commutator(graph: ModelGraph, co_cl: Node, cl_co: Node, setting: dict, options: Options) -> list[Measurement]:
    asked = {"split": "test", "max_samples": 500 if options.is_full else 40, "max_length": 96, "progress": False}
    found = []
    for name, dataset in (("yelp", "fancyzhx/yelp_polarity"), ("imdb", "stanfordnlp/imdb")):
        asked["data_root"] = options.data_root
        moved = graph.distance(cl_co, co_cl, dataset, **asked)
        changed = graph.distance(cl_co, co_cl, dataset, functional_distance="changed_predictions", **asked)
        found += [
            Measurement("commutator", f"functional, {name} (%)", 100 * moved.functional, setting),
            Measurement("commutator", f"changed predictions, {name} (%)", 100 * changed.functional, setting),
        ]
    return [*found, Measurement("commutator", "euclidean", moved.euclidean, setting)]


def protocol(options: Options) -> dict:
    return {
        "model": "embedded:bert-mini, 1.35 M weights; sparsity is of the encoder's matrices, embeddings stay dense",
        "data": "4,000 training reviews of each set, 2,000 test reviews, 96 tokens" if options.is_full else "tiny",
        "steps": "188 to learn film reviews, 40 for each of the six sparsities" if options.is_full else "tiny",
        "learning rate": "8e-4 to learn, 1e-4 to compress (chosen on Yelp with seed 10)",
        "anchors": "2,000 without labels: Yelp's for learning, of all tasks the node knows for compressing",
        "head": "4 outputs, no task id",
        "functional": "mean squared distance of the outputs on test reviews, in per cent of their variance",
    }


def pictures(rows: list[dict]) -> dict:
    named = {
        "dense": "dense, both",
        "learned, then compressed (Co∘CL)": CO_CL,
        "compressed, then learned (CL∘Co)": CL_CO,
    }
    axes = "sparsity of the encoder (%)"
    drawn = {
        task: lines(
            rows,
            {name: (method, f"{task}/accuracy") for name, method in named.items()},
            x="sparsity",
            axes=(axes, f"accuracy, {task} (%)"),
        )
        for task in ("yelp", "imdb")
    }
    functional = {f"on {task}": ("commutator", f"functional, {task} (%)") for task in ("yelp", "imdb")}
    titles = axes, "functional distance of the two orders (% of variance)"
    drawn["functional"] = lines(rows, functional, x="sparsity", axes=titles)
    titles = axes, "Euclidean distance of the two orders"
    drawn["euclidean"] = lines(rows, {"weights": ("commutator", "euclidean")}, x="sparsity", axes=titles)
    return drawn


PAPER = [{"finding": "both orders keep both tasks; they function alike and differ in weights (Fig. 5C, D)"}]

if __name__ == "__main__":
    reproduce("compose_bert", measure=measure, protocol=protocol, paper=PAPER, description=__doc__, pictures=pictures)
