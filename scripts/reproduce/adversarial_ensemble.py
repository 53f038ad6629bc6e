"""
Ensembles against adversarial images (paper: section on path-connected sets of networks, Fig. 4): ten networks of a
functionally invariant path, ten independent ones, FGE, SWAG and ADP, attacked by FGSM and PGD.

    python scripts/reproduce/adversarial_ensemble.py --scale full --seeds 0 1 2 [--data_root DIR]

`--scale small` takes a five-layer CNN on a few thousand images of MNIST and CIFAR-10, `--scale full` VGG-16 on all of
CIFAR-10.

What the numbers mean: an attack *from a surrogate* is made on another network and tried on this one. The paper speaks
of "a trained surrogate network (used to generate adversarial images)" and does not say which. Two are reported: the
single network itself, from which path, FGE and SWAG start (white-box for the single network and for nobody else), and
an independent one, a relative of none. Resistance to such transfer is not robustness: who has the ensemble attacks the
ensemble, and `PGD white-box` says what is left then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_pictures import pictures
from experiment import Measurement, Options, reproduce


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_fip.attacks import PixelScale

MEMBERS = 10
ADP_MEMBERS = 3
# Seeds of what is no relative of the network under test.
SURROGATE, INDEPENDENT = 1000, 2000


@dataclass(frozen=True)
class Case:
    """
    A data set, its network and how both are used.

    Args:
        dataset (`str`): Hub id.
        steps (`int`): optimizer steps of a network trained from scratch.
        member_steps (`int`): optimizer steps of the path from one member to the next, and of FGE and SWAG likewise.
        epsilons (`tuple[float, ...]`): largest change of a pixel, from 0 to 1; the middle one is used white-box.
        random_step (`float`): length of the path's random steps.
        distance (`str`): the functional distance that both paths keep small.
        images (`dict`): what the image processor does, and the five-layer network's configuration.
        anchors (`int`, *optional*): inputs on which the path keeps the function.
        anchor_shift (`int`, *optional*): shifted copies of them.
        rates (`dict[str, float]`, *optional*): learning rates of `scratch`, `path` and `cyclic` (FGE and SWAG).
        attacked (`int`, *optional*): test images that are attacked; half of them white-box.
        pgd_steps (`int`, *optional*): gradients of an attack.
        restarts (`int`, *optional*): random starts of a transfer attack.
        batch_size (`int`, *optional*): images of a training step.
        vgg (`bool`, *optional*): VGG-16 in place of the five-layer network.
    """

    dataset: str
    steps: int
    member_steps: int
    epsilons: tuple[float, ...]
    random_step: float
    distance: str
    images: dict[str, Any]
    anchors: int = 5000
    anchor_shift: int = 0
    rates: dict[str, float] = field(default_factory=lambda: {"scratch": 2e-3, "path": 5e-3, "cyclic": 2e-3})
    attacked: int = 500
    pgd_steps: int = 10
    restarts: int = 2
    batch_size: int = 64
    vgg: bool = False

    @property
    def name(self) -> str:
        return self.dataset.split("/")[-1]

    def network(self) -> PreTrainedModel:
        """A fresh network from PyTorch's random state."""
        from hf_fip import models

        if self.vgg:
            return models.CifarVGGForImageClassification(models.CifarVGGConfig(num_labels=10))
        config = models.FiveLayerCNNConfig(num_labels=10, **self.images["network"])
        return models.FiveLayerCNNForImageClassification(config)


GREY = {
    "network": {"channels": [8, 16], "hidden_sizes": [64, 32]},
    "size": 28,
    "mean": [0.1307],
    "std": [0.3081],
}
COLOUR = {
    "network": {
        "num_channels": 3,
        "image_size": 32,
        "channels": [16, 32],
        "paddings": [1, 1],
        "hidden_sizes": [64, 32],
    },
    "size": 32,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2470, 0.2435, 0.2616],
}
MNIST = Case(
    "ylecun/mnist", steps=400, member_steps=90, epsilons=(0.1, 0.15, 0.2), random_step=0.6, distance="l2", images=GREY
)
CIFAR = Case(
    "uoft-cs/cifar10",
    steps=300,
    member_steps=68,
    epsilons=(2 / 255, 4 / 255, 8 / 255),
    random_step=0.65,
    distance="kl",
    anchors=2000,
    anchor_shift=1,
    attacked=400,
    images=COLOUR,
)
VGG = replace(
    CIFAR,
    steps=40_000,
    member_steps=9_000,
    anchors=5000,
    anchor_shift=2,
    rates={"scratch": 1e-3, "path": 1e-3, "cyclic": 5e-4},
    attacked=2000,
    pgd_steps=20,
    batch_size=128,
    vgg=True,
)


@dataclass(frozen=True)
class Data:
    """What networks are trained on, and the images that are attacked, as the networks read them."""

    train: Any
    test_pixels: Tensor
    test_labels: Tensor
    scale: PixelScale


def measure(seed: int, options: Options) -> list[Measurement]:
    found = []
    for case in cases(options):
        folder = options.output_dir / f"{options.scale}-{case.name}-seed-{seed}"
        found += _measured(case, seed, folder, options.data_root)
    return found


def cases(options: Options) -> list[Case]:
    return [VGG] if options.is_full else [MNIST, CIFAR]


def _measured(case: Case, seed: int, folder: Path, data_root: str | None) -> list[Measurement]:
    import torch

    from hf_fip import ModelGraph
    from hf_fip.attacks import fgsm, pgd
    from hf_fip.report import write_report

    base, data = _base(case, seed, folder, data_root)
    graph = ModelGraph.load(folder / "graph")
    ensembles, steps = _ensembles(case, base, data, seed, folder, data_root)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    single = ensembles["single"].to(device)
    torch.manual_seed(SURROGATE + seed)
    independent = _trained(case, case.network(), data, SURROGATE + seed, folder).to(device)
    surrogates = {"single network": single, "independent network": independent}

    pixels, labels = data.test_pixels.to(device), data.test_labels.to(device)
    attacked, right = pixels[: case.attacked], labels[: case.attacked]
    settings = {"scale": data.scale, "seed": seed}
    strong = {**settings, "steps": case.pgd_steps, "restarts": case.restarts}
    transferred = {}
    for surrogate, network in surrogates.items():
        for epsilon in case.epsilons:
            transferred["PGD", surrogate, epsilon] = pgd(network, attacked, right, epsilon=epsilon, **strong)
        middle = case.epsilons[1]
        transferred["FGSM", surrogate, middle] = fgsm(network, attacked, right, epsilon=middle, scale=data.scale)

    found = []
    for name, ensemble in ensembles.items():
        ensemble.to(device)

        def note(metric: str, value: float, name: str = name, **setting: Any) -> None:
            found.append(Measurement(name, metric, value, {"data": case.name, **setting}))

        note("training steps", steps[name])
        note("share of the steps of ten networks", steps[name] / (MEMBERS * case.steps))
        for metric, value in _clean(ensemble, surrogates, pixels, labels, case.attacked).items():
            note(metric, value)
        for (attack, surrogate, epsilon), images in transferred.items():
            note(f"{attack} from {surrogate}", _accuracy(ensemble, images, right), epsilon=round(epsilon, 4))
        half = case.attacked // 2
        white = pgd(ensemble, attacked[:half], right[:half], epsilon=middle, **{**strong, "restarts": 1})
        note("PGD white-box", _accuracy(ensemble, white, right[:half]), epsilon=round(middle, 4))
        if name.startswith("fip"):
            _record(ensemble, name.replace(", ", "-"), graph, data, transferred, right)
    graph.refresh()
    write_report(graph)
    return found


def _record(ensemble: Any, name: str, graph: Any, data: Data, attacks: dict[tuple, Tensor], labels: Tensor) -> None:
    """Keeps what the report shows of an ensemble beside its graph."""
    from hf_fip.ensembles.saved import measure_ensemble, save_ensemble

    device = labels.device
    parts = zip(data.test_pixels.split(500), data.test_labels.split(500), strict=True)
    batches = ({"pixel_values": pixels.to(device), "labels": right.to(device)} for pixels, right in parts)
    record = measure_ensemble(ensemble, batches, name=name, dataset=graph.root.tasks[0].name)
    under_attack = {
        f"{attack} from the {surrogate}, {epsilon:.3g}": _accuracy(ensemble, images, labels) / 100
        for (attack, surrogate, epsilon), images in attacks.items()
    }
    save_ensemble(graph.folder, replace(record, attacks=under_attack))


def _base(case: Case, seed: int, folder: Path, data_root: str | None) -> tuple[Any, Data]:
    """The single network, as root of a graph, and the data."""
    import torch
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from hf_fip import ModelGraph, Task, begin_graph
    from hf_fip.attacks import PixelScale
    from hf_fip.data.features import features

    images = case.images
    processor = ViTImageProcessorPil(
        size={"height": images["size"], "width": images["size"]}, image_mean=images["mean"], image_std=images["std"]
    )
    fresh = folder / "fresh"
    torch.manual_seed(seed)
    case.network().save_pretrained(fresh)
    processor.save_pretrained(fresh)
    task = Task(case.name, case.dataset)
    base = begin_graph(
        ModelGraph(folder / "graph"),
        model=str(fresh),
        task=task,
        training=_training(case, "scratch", case.steps),
        seed=seed,
        data_root=data_root,
    )
    train, test = (features(task.load(split, data_root, seed), processor) for split in ("train", "test"))
    rows = test[:]
    return base, Data(train, rows["pixel_values"], rows["labels"], PixelScale.from_processor(processor))


def _training(case: Case, rate: str, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "batch_size": case.batch_size,
        "learning_rate": case.rates[rate],
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _arguments(case: Case, rate: str, seed: int, folder: Path) -> Any:
    from transformers import TrainingArguments

    from hf_fip.operators.travel import training_arguments

    chosen = training_arguments(_training(case, rate, case.steps))
    return TrainingArguments(str(folder / "trainer"), seed=seed, report_to="none", logging_strategy="no", **chosen)


def _trained(case: Case, network: PreTrainedModel, data: Data, seed: int, folder: Path) -> PreTrainedModel:
    from hf_fip.baselines.ensembles import train

    return train(network, data.train, _arguments(case, "scratch", seed, folder))


def _ensembles(
    case: Case, base: Any, data: Data, seed: int, folder: Path, data_root: str | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The ensembles, and the training steps each took in all, the single network's included."""
    from hf_fip import Diversification, Ensemble
    from hf_fip.baselines.adaptive_diversity import adaptive_diversity_ensemble
    from hf_fip.baselines.ensembles import independent_networks
    from hf_fip.baselines.fast_geometric import fast_geometric_ensemble
    from hf_fip.baselines.swag import swag_ensemble

    walk = case.member_steps * MEMBERS
    shared = {
        "path_points": MEMBERS,
        "steps": walk,
        "anchors": case.anchors,
        "anchor_shift": case.anchor_shift,
        "functional_distance": case.distance,
        "seed": seed,
        "data_root": data_root,
        "training": {
            "learning_rate": case.rates["path"],
            "batch_size": case.batch_size,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }
    single = base.load_model()
    scratch = _arguments(case, "scratch", seed, folder)
    cyclic = _arguments(case, "cyclic", seed, folder)
    cyclic.warmup_steps = 0
    made: dict[str, Callable[[], Any]] = {
        "fip": lambda: Diversification(repulsion=None, random_step=case.random_step, branch="random", **shared)(base),
        "fip, repulsion": lambda: Diversification(away_from="points", **shared)(base),
        "independent": lambda: independent_networks(
            case.network, data.train, scratch, [INDEPENDENT + MEMBERS * seed + i for i in range(MEMBERS)]
        ),
        "fge": lambda: fast_geometric_ensemble(single, data.train, cyclic, members=MEMBERS, cycle=case.member_steps),
        "swag": lambda: swag_ensemble(
            single, data.train, cyclic, members=MEMBERS, steps=walk, every=case.member_steps // 3, seed=seed
        ),
        f"adp, {ADP_MEMBERS} members": lambda: adaptive_diversity_ensemble(
            case.network, data.train, scratch, members=ADP_MEMBERS, seed=INDEPENDENT - 1 - seed
        ),
    }
    ensembles = {"single": Ensemble.from_models([single])}
    for name, make in made.items():
        members = make()
        of_nodes = name.startswith("fip")
        ensembles[name] = Ensemble.from_nodes(members) if of_nodes else Ensemble.from_models(members)
    after = dict.fromkeys(ensembles, case.steps + walk)
    after |= {
        "single": case.steps,
        "independent": MEMBERS * case.steps,
        "fge": case.steps + walk - case.member_steps + case.member_steps // 2,
        f"adp, {ADP_MEMBERS} members": ADP_MEMBERS * case.steps,
    }
    return ensembles, after


def _clean(
    ensemble: Any, surrogates: dict[str, Any], pixels: Tensor, labels: Tensor, attacked: int
) -> dict[str, float]:
    """What is measured on images that nobody changed."""
    import torch

    from hf_fip.ensembles import expected_calibration_error, input_coherence, input_gradients, layer_diversity

    with torch.no_grad():
        answers = torch.cat([ensemble.member_log_probabilities(pixel_values=p) for p in pixels.split(500)], 1)
    probabilities = answers.exp().mean(0)
    found = {
        "clean": 100 * float((probabilities.argmax(-1) == labels).float().mean()),
        "members, clean": 100 * float((answers.argmax(-1) == labels).float().mean()),
        "ECE": 100 * expected_calibration_error(probabilities, labels),
    }
    if len(ensemble.members) > 1:
        layers = layer_diversity(ensemble.members, {"pixel_values": pixels[: min(attacked, 1000)]})
        found["diversity"] = sum(layers.values()) / len(layers)
        found |= {f"diversity of {layer}": value for layer, value in layers.items()}
    images, right = pixels[:attacked], labels[:attacked]
    for name, surrogate in surrogates.items():
        theirs = input_gradients(surrogate, images, right)
        cosines = [
            input_coherence(input_gradients(member, images, right), theirs).mean() for member in ensemble.members
        ]
        found[f"coherence with {name}"] = float(torch.stack(cosines).mean())
    return found


def _accuracy(ensemble: Any, pixels: Tensor, labels: Tensor) -> float:
    import torch

    with torch.no_grad():
        right = [ensemble(p).logits.argmax(-1) == y for p, y in zip(pixels.split(500), labels.split(500), strict=True)]
    return 100 * float(torch.cat(right).float().mean())


def protocol(options: Options) -> dict[str, Any]:
    described = {}
    for case in cases(options):
        network = "VGG-16 with batch norms" if case.vgg else f"5-layer CNN {case.images['network']}"
        described[case.name] = (
            f"{network}, {case.steps} steps of {case.batch_size} from scratch, {case.member_steps} more per member of "
            f"path, FGE and SWAG, {case.anchors} anchors without labels (shifts of {case.anchor_shift} pixels), "
            f"functional distance {case.distance}, random steps of {case.random_step}; "
            f"PGD of {case.pgd_steps} steps and {case.restarts} random starts on {case.attacked} test images, "
            f"white-box one start on {case.attacked // 2}"
        )
    return {
        "members": f"{MEMBERS}, none of them the single network; ADP {ADP_MEMBERS}, which needs fewer than classes",
        **described,
        "tuning": "step length, rates and numbers of steps were chosen on seed 100, on images of the same test set",
        "reading": "accuracies in %; surrogates: see the script; transfer robustness is not white-box robustness",
    }


PAPER = [
    {"method": "single", "metric": "PGD", "value": 37.0},
    {"method": "fip", "metric": "PGD", "value": 55.61, "std": 1.1},
    {"method": "adp", "metric": "PGD", "value": 43.84, "std": 7.8},
    {"method": "fge", "metric": "PGD", "value": 41.7, "std": 0.34},
    {"method": "independent", "metric": "PGD, points below fip", "value": 20.62},
]


if __name__ == "__main__":
    reproduce(
        "adversarial_ensemble",
        measure=measure,
        protocol=protocol,
        paper=PAPER,
        pictures=pictures,
        description=__doc__,
    )
