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

Beside the tables each data set and seed gets a folder with the graph of both paths and its `report.html`, whose
section on ensembles shows accuracies under these attacks, uncertainty and diversity.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversarial_networks import (
    ADP_MEMBERS,
    CIFAR,
    MEMBERS,
    MNIST,
    VGG,
    Case,
    Data,
    base_network,
    ensembles_of,
    trained,
)
from adversarial_pictures import pictures
from experiment import Measurement, Options, reproduce


if TYPE_CHECKING:
    from torch import Tensor

# Seed of the surrogate that is no relative of the network under test.
SURROGATE = 1000


def measure(seed: int, options: Options) -> list[Measurement]:
    found = []
    for case in cases(options):
        folder = options.output_dir / f"{options.scale}-{case.name}-seed-{seed}"
        found += measure_case(case, seed, folder, options.data_root)
    return found


def cases(options: Options) -> list[Case]:
    return [VGG] if options.is_full else [MNIST, CIFAR]


def measure_case(case: Case, seed: int, folder: Path, data_root: str | None) -> list[Measurement]:
    """The numbers of one data set, whose graph is `FOLDER/graph`; its report lies beside it."""
    import torch

    from hf_fip import ModelGraph
    from hf_fip.attacks import pgd
    from hf_fip.report import write_report

    base, data = base_network(case, seed, folder, data_root)
    graph = ModelGraph.load(folder / "graph")
    ensembles, steps = ensembles_of(case, base, data, seed, folder, data_root)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SURROGATE + seed)
    surrogates = {
        "single network": ensembles["single"].to(device),
        "independent network": trained(case, case.network(), data, SURROGATE + seed, folder).to(device),
    }
    pixels, labels = data.test_pixels.to(device), data.test_labels.to(device)
    attacked, right = pixels[: case.attacked], labels[: case.attacked]
    half = case.attacked // 2
    settings = {"scale": data.scale, "seed": seed, "steps": case.pgd_steps}
    transferred = _transferred(case, surrogates, attacked, right, {**settings, "restarts": case.restarts})

    found = []
    for name, ensemble in ensembles.items():
        ensemble.to(device)
        white = pgd(ensemble, attacked[:half], right[:half], epsilon=case.middle, **settings)
        attacks = {**transferred, ("PGD white-box", case.middle): white}
        under_attack = {about: _accuracies(ensemble, images, right) for about, images in attacks.items()}
        values = {
            "training steps": steps[name],
            "share of the steps of ten networks": steps[name] / (MEMBERS * case.steps),
            **_clean(ensemble, surrogates, pixels, labels, case.attacked),
        }
        found += [Measurement(name, metric, value, {"data": case.name}) for metric, value in values.items()]
        found += [
            Measurement(name, attack, 100 * accuracy, {"data": case.name, "epsilon": round(epsilon, 4)})
            for (attack, epsilon), (accuracy, _) in under_attack.items()
        ]
        if name.startswith("fip"):
            _record(ensemble, name.replace(", ", "-"), graph, data, device, under_attack)
    graph.refresh()
    write_report(graph)
    return found


def _transferred(
    case: Case, surrogates: dict[str, Any], pixels: Tensor, labels: Tensor, settings: dict[str, Any]
) -> dict[tuple[str, float], Tensor]:
    """Attacked images by attack and bound, made on the surrogates."""
    from hf_fip.attacks import fgsm, pgd

    found = {}
    for surrogate, network in surrogates.items():
        for epsilon in case.epsilons:
            found[f"PGD from {surrogate}", epsilon] = pgd(network, pixels, labels, epsilon=epsilon, **settings)
        once = fgsm(network, pixels, labels, epsilon=case.middle, scale=settings["scale"])
        found[f"FGSM from {surrogate}", case.middle] = once
    return found


def _record(
    ensemble: Any,
    name: str,
    graph: Any,
    data: Data,
    device: Any,
    under_attack: dict[tuple[str, float], tuple[float, float]],
) -> None:
    """Keeps what the report shows of an ensemble beside its graph."""
    from hf_fip.ensembles.saved import measure_ensemble, save_ensemble

    parts = zip(data.test_pixels.split(500), data.test_labels.split(500), strict=True)
    batches = ({"pixel_values": pixels.to(device), "labels": right.to(device)} for pixels, right in parts)
    record = measure_ensemble(ensemble, batches, name=name, dataset=graph.root.tasks[0].name)
    named = {f"{attack}, {epsilon:.3g}": accuracies for (attack, epsilon), accuracies in under_attack.items()}
    attacks = {attack: accuracy for attack, (accuracy, _) in named.items()}
    members = {attack: accuracy for attack, (_, accuracy) in named.items()}
    save_ensemble(graph.folder, replace(record, attacks=attacks, member_attacks=members))


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


def _accuracies(ensemble: Any, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of an ensemble, and of its members in the mean, on the first images of those with labels."""
    import torch

    with torch.no_grad():
        answers = torch.cat([ensemble.member_log_probabilities(pixel_values=p) for p in pixels.split(500)], 1)
    right = labels[: len(pixels)]
    together = answers.exp().mean(0).argmax(-1) == right
    return float(together.double().mean()), float((answers.argmax(-1) == right).double().mean())


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
