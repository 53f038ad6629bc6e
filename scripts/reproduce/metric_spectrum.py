"""
How much room a trained network has: the spectrum of its metric tensor (paper: a few directions of weight space change
the outputs, most hardly do). LeNet-300-100 and the 5-layer CNN on MNIST, a small BERT on Yelp reviews.

    python scripts/reproduce/metric_spectrum.py --scale full --seeds 0 1 2 [--data_root DIR]

`exact` lists every eigenvalue from the Gram matrix in float64; `lanczos` finds the largest on more anchors by products
alone, and estimates the others. `step of eq. 4` is what an exact step costs as the Trainer takes it. Each seed writes
its pictures and, beside its graphs, its spectra and a `report.html` with a section on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiment import Measurement, Options, reproduce


MNIST = {"name": "mnist", "dataset": "ylecun/mnist"}
YELP = {"name": "yelp", "dataset": "fancyzhx/yelp_polarity", "class_names": ["negative", "positive"]}
NETWORKS: dict[str, dict[str, Any]] = {
    "lenet": {
        "model": "embedded:lenet",
        "task": {**MNIST, "max_train": 10000, "max_test": 2000},
        "training": {"epochs": 3, "learning_rate": 1e-3, "batch_size": 64},
        "exact": 50,
        "lanczos": {"anchors": 500, "top": 50, "probes": 3, "steps": 40},
    },
    "cnn": {
        "model": "embedded:cnn",
        "task": {**MNIST, "max_train": 5000, "max_test": 2000},
        "training": {"epochs": 2, "learning_rate": 1e-3, "batch_size": 64},
        "exact": 30,
        "lanczos": {"anchors": 150, "top": 15, "probes": 1, "steps": 25},
    },
    "bert-mini": {
        "model": "embedded:bert-mini",
        "task": {**YELP, "max_train": 1600, "max_test": 500},
        "training": {"epochs": 1, "learning_rate": 8e-4, "batch_size": 32},
        "max_length": 128,
        "exact": 64,
    },
}
SMALL_TASK = {"max_train": 200, "max_test": 100}
SMALL_LANCZOS = {"anchors": 30, "top": 5, "probes": 1, "steps": 8}
# A step of this share of the weights' norm, and a change of this share of the outputs' standard deviation.
STEP = CHANGE = 0.01
LEADING = 5
# Enough to see that nothing but their rows moves the outputs.
CHECKED_ANCHORS = 8
# Of an exact step: anchors, as many inputs whose loss it lowers, and its length.
STEP_ANCHORS, STEP_LENGTH = 64, 0.1


def measure(seed: int, options: Options) -> list[Measurement]:
    from drawing import save

    from hf_fip.geometry.pictures import spectrum_figure

    found, drawn = [], {}
    for name, network in NETWORKS.items():
        if not options.is_full:
            network = {**network, "task": {**network["task"], **SMALL_TASK}, "exact": 8}
            network |= {"lanczos": SMALL_LANCZOS} if "lanczos" in network else {}
        folder = options.output_dir / f"{options.scale}-seed-{seed}" / name
        measurements, spectra = measure_network(name, network, folder, seed, options.data_root)
        found += measurements
        drawn |= {f"{name}, {setting}": spectrum for setting, spectrum in spectra.items()}
    figure = spectrum_figure(drawn)
    figure.update_layout(template="plotly_white", width=1000, height=480, margin={"t": 72, "r": 24})
    save({"spectra": figure}, options.output_dir / f"{options.scale}-seed-{seed}")
    return found


def measure_network(
    name: str, network: dict[str, Any], folder: Path, seed: int, data_root: str | None
) -> tuple[list[Measurement], dict[str, Any]]:
    """The numbers of one network, and its spectra by what they were taken of."""
    import torch

    from hf_fip import ModelGraph, Task, begin_graph
    from hf_fip.geometry import MetricTensor
    from hf_fip.geometry.saved import save_spectrum
    from hf_fip.geometry.spectrum import find_spectrum
    from hf_fip.report import write_report

    task, length = Task(**network["task"]), network.get("max_length")
    node = begin_graph(
        str(folder),
        model=network["model"],
        task=task,
        training={**network["training"], "disable_tqdm": True, "logging_strategy": "no"},
        seed=seed,
        data_root=data_root,
        max_length=length,
    )
    model = node.load_model()
    lanczos = network.get("lanczos")
    most = max(network["exact"], lanczos["anchors"] if lanczos else 0)
    inputs = anchor_inputs(node, task, most, seed, data_root, length)
    few = {key: values[: network["exact"]] for key, values in inputs.items()}
    spectra, found = {}, []
    for metric in ("l2", "fisher"):
        g = MetricTensor(model, few, metric, dtype=torch.float64)
        spectra[f"{metric}, exact"] = result = find_spectrum(g, method="dual")
        setting = {"metric": metric, "anchors": g.num_rows, "by": "exact"}
        found += numbers(name, setting, g, result)
        save_spectrum(folder, node.id, result)
    g = MetricTensor(model, {key: values[:CHECKED_ANCHORS] for key, values in inputs.items()}, dtype=torch.float64)
    setting = {"metric": "l2", "anchors": g.num_rows, "by": "exact"}
    found.append(Measurement(name, "squared change left outside the rows", outside(g, seed), setting))
    if lanczos:
        g = MetricTensor(model, {key: values[: lanczos["anchors"]] for key, values in inputs.items()})
        asked = {key: value for key, value in lanczos.items() if key != "anchors"}
        spectra["l2, lanczos"] = result = find_spectrum(g, method="lanczos", seed=seed, **asked)
        found += numbers(name, {"metric": "l2", "anchors": g.num_rows, "by": "lanczos"}, g, result)
    found += exact_step(name, model, anchor_inputs(node, task, 2 * STEP_ANCHORS, seed, data_root, length, True), seed)
    # Its section on spectra shows what was saved.
    write_report(ModelGraph.load(folder), folder / "report.html")
    accuracy = 100 * node.metrics[f"{task.name}/accuracy"]
    found.append(Measurement(name, "test accuracy", accuracy, {}))
    return found, {label: one for label, one in spectra.items() if "fisher" not in label}


def anchor_inputs(
    node, task, number: int, seed: int, data_root: str | None, length: int | None, labelled: bool = False
) -> dict[str, Any]:
    """Training inputs of the task as the model reads them."""
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

    from hf_fip.starting_network import TASK_COLUMN
    from hf_fip.task_data import TaskData

    processor = node.load_processor()
    space = {task.name: node.protocol["label_space"][task.name]}
    rows, _ = TaskData(processor, data_root, seed, length).anchors([task], space, number, labelled)
    rows = rows.remove_columns(TASK_COLUMN)
    is_text = isinstance(processor, PreTrainedTokenizerBase)
    collate = DataCollatorWithPadding(processor) if is_text else default_data_collator
    return dict(collate([rows[i] for i in range(len(rows))]))


def numbers(name: str, setting: dict[str, Any], g, result) -> list[Measurement]:
    """The numbers of one spectrum."""
    spread = g.outputs.var(0, correction=0).sum().sqrt().item()
    step, change = STEP * g.weights.norm().item(), CHANGE * spread
    values = {
        "weights": result.dimension,
        "rank bound": result.rank_bound,
        "rank": result.rank,
        "orders of magnitude": result.orders_of_magnitude,
        "participation ratio": result.participation_ratio,
        "entropy rank": result.entropy_rank,
        "trace": result.trace,
        "flat directions, per cent": 100 * result.flat_share(step, change) if g.metric == "l2" else None,
        "products": result.products,
        "forward-backward passes": result.forward_backwards,
    }
    leading = {f"eigenvalue {i + 1}": value for i, value in enumerate(result.eigenvalues[:LEADING])}
    return [
        Measurement(name, key, float(value), setting)
        for key, value in {**values, **leading}.items()
        if value is not None
    ]


def exact_step(name: str, model, inputs: dict[str, Any], seed: int) -> list[Measurement]:
    """What one step of eq. 4 costs: the metric of half of the inputs, the loss of the other half."""
    import torch

    from hf_fip.geometry import MetricTensor, fip_step
    from hf_fip.trust_region import STEP_PRODUCTS, TOLERANCE

    labels = inputs.pop("labels")
    anchors = {key: values[:STEP_ANCHORS] for key, values in inputs.items()}
    batch = {key: values[STEP_ANCHORS:] for key, values in inputs.items()}
    g = MetricTensor(model, anchors)
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    loss = model.eval()(**batch, labels=labels[STEP_ANCHORS:]).loss
    gradient = g.flatten(dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True)))
    step = fip_step(
        g,
        gradient,
        STEP_LENGTH,
        tolerance=TOLERANCE,
        max_products=STEP_PRODUCTS,
        generator=torch.Generator().manual_seed(seed),
    )
    setting = {"metric": "l2", "anchors": g.num_rows, "by": "step of eq. 4"}
    values = {
        "products": step.products,
        "forward-backward passes": g.cost.forward_backwards,
        "relative residual": 2 * step.residual / float(gradient.norm()),
    }
    return [Measurement(name, key, float(value), setting) for key, value in values.items()]


def outside(g, seed: int) -> float:
    """
    The squared output change along a random direction from which the span of the Jacobian's rows was taken, as a share
    of the change along the whole direction: zero if and only if the rank is at most the number of rows.
    """
    import torch

    direction = torch.randn(g.shape[0], generator=torch.Generator().manual_seed(seed), dtype=g.dtype).to(g.device)
    moved = g.jvp(direction)
    inverse = torch.linalg.pinv(g.gram() * g.num_rows, hermitian=True)
    rest = direction - g.vjp((inverse @ moved.reshape(-1)).view_as(moved))
    share = (rest @ (g @ rest)) / (direction @ (g @ direction))
    return float(share)


def protocol(options: Options) -> dict:
    return {
        "networks": "LeNet-300-100 (10,000 images, 3 epochs), 5-layer CNN (5,000 images, 2 epochs), bert-mini (1,600 "
        "reviews of 128 tokens, 1 epoch)"
        if options.is_full
        else "LeNet-300-100 and 5-layer CNN on 200 images, bert-mini on 200 reviews",
        "anchors": "training inputs, no labels",
        "effective ranks": "participation ratio (sum l)^2 / sum l^2; entropy rank exp(-sum q log q), q = l / sum l",
        "flat directions": f"share of eigendirections along which a step of {STEP:.0%} of the weights' norm changes "
        f"the outputs by less than {CHANGE:.0%} of their standard deviation",
        "forward-backward passes": "over the anchors, all the work of a spectrum or step; a product with g counts 4/3",
        "step of eq. 4": f"of length {STEP_LENGTH} against the loss on as many other inputs, as solver='trust_region' "
        "solves it",
    }


PAPER = [{"finding": "a small number of weight directions change the outputs; most eigenvalues of g are tiny"}]

if __name__ == "__main__":
    reproduce("metric_spectrum", measure=measure, protocol=protocol, paper=PAPER, description=__doc__)
